"""Synonyms of words, from a text file or a WordNet."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.errors import DataError, PlatformError, SpecFault

if TYPE_CHECKING:
    from wn import Wordnet

Synonyms = Mapping[str, Sequence[str]]
"""Word in lower case → its synonyms."""
FIELD = "spec.data.augmentation.text.synonyms"
_DATABASE = "wn.db"


def synonym_file(path: Path) -> Path:
    """The file that the synonyms are read from: ``path``, or the WordNet in the folder ``path``.

    Raises:
        SpecFault: A folder without one.
    """
    if not path.is_dir():
        return path
    if not (path / _DATABASE).is_file():
        raise SpecFault(
            f"{FIELD}.source: {path} has no {_DATABASE}; name a file of synonyms, or the data folder of the package wn"
        )
    return path / _DATABASE


def read_synonyms(file: Path, words: Iterable[str], lexicon: str | None) -> Synonyms:
    """Synonyms of those of ``words`` (lower case) that have any.

    Args:
        file: What ``synonym_file`` found.
        words: The words to look for.
        lexicon: Of a WordNet, the one to use; None for all.

    Raises:
        DataError: A line of the file is not a word and its synonyms, divided by tabs; or the database is none.
        SpecFault: There is no such lexicon, or the file is no WordNet and has none.
        PlatformError: The package ``wn`` is not there.
    """
    if file.name == _DATABASE:
        return _read_wordnet(file.parent, words, lexicon)
    if lexicon is not None:
        raise SpecFault(f"{FIELD}.lexicon: goes with a WordNet; {file} is a file of synonyms")
    wanted = set(words)
    return {word: synonyms for word, synonyms in _read_lines(file) if word in wanted}


def _read_lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{FIELD}.source: {file} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, *synonyms = (each.strip() for each in line.split("\t"))
        if not word or not any(synonyms):
            raise DataError(
                f"{FIELD}.source: {file}:{number}: must be a word, a tab and its synonyms, got {line[:80]!r}"
            )
        yield word.lower(), [each for each in synonyms if each]


def _read_wordnet(folder: Path, words: Iterable[str], lexicon: str | None) -> Synonyms:
    with _opened(folder, lexicon) as wordnet:
        found = {word: _of(wordnet, word) for word in words}
    return {word: synonyms for word, synonyms in found.items() if synonyms}


def _of(wordnet: "Wordnet", word: str) -> list[str]:
    """The other words of the synsets that a word is in, in the order of the alphabet."""
    lemmas = {lemma.replace("_", " ") for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
    return sorted(lemma for lemma in lemmas if lemma.lower() != word)


@contextmanager
def _opened(folder: Path, lexicon: str | None) -> Iterator["Wordnet"]:
    """The WordNet of a folder; the package has one folder for the whole process."""
    try:
        import wn
        from wn._db import clear_connections
    except ImportError as error:
        raise PlatformError(f"{FIELD}.source: a WordNet needs the package wn, which is not installed") from error
    config = wn.config  # type: ignore[attr-defined]  # documented, but not in its __all__
    before = config.database_path.parent  # its data_directory would be made when asked for
    config.data_directory = folder
    try:
        yield wn.Wordnet(lexicon)
    except (wn.DatabaseError, sqlite3.DatabaseError) as error:
        raise DataError(f"{FIELD}.source: {folder / _DATABASE}: {error}") from error
    except wn.Error as error:
        known = ", ".join(each.specifier() for each in wn.lexicons())
        raise SpecFault(f"{FIELD}.lexicon: there is no {lexicon!r}; there are: {known}") from error
    finally:
        clear_connections()
        config.data_directory = before
