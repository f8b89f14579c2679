"""Which files a source is made of, and their format.

Invariant: the order of the files, and so of the samples, is that of their names; hidden files are never read.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.data import images
from finetune_trainer.data.columns import listing
from finetune_trainer.errors import DataError, Denied, NotFoundError

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "imagefolder": images.SUFFIXES,
}
"""Format (as in ``spec.data.format``) → suffixes of its files, in lower case."""


@dataclass(frozen=True)
class Source:
    """The files of a source, of one format."""

    root: Path
    """The file, or the folder; absolute."""
    format: str
    """csv, jsonl, parquet or imagefolder."""
    names: tuple[str, ...]
    """Names of the files as messages show them: relative to ``root``, or that of ``root`` if it is a file. Sorted."""

    def path(self, name: str) -> Path:
        """Absolute path of the file that has this name."""
        return self.root / name if self.root.is_dir() else self.root


def find_files(path: Path, *, format: str | None, field: str) -> Source:  # noqa: A002 - the spec's word
    """The files under ``path``, of the format that is given or that their suffixes tell.

    Raises DataError naming ``field`` if there are none, or if they are of several formats and none is given.
    """
    root = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are: the name is what the user knows
    if not root.is_dir():
        return _one_file(root, format, field)
    names = sorted(_walk(root, "", frozenset()))
    format = format or _told_by_suffixes(names, root, field)  # noqa: A001
    chosen = tuple(name for name in names if Path(name).suffix.lower() in SUFFIXES[format])
    if not chosen:
        raise DataError(
            f"{field}: {root} has no file that ends in {' or '.join(SUFFIXES[format])}; {_what_is_there(names)}"
        )
    return Source(root, format, chosen)


def _one_file(root: Path, format: str | None, field: str) -> Source:  # noqa: A002
    if not root.exists():
        raise NotFoundError(f"{field}: {root} is not there")
    found = format or _format_of(root.name)
    if found is None:
        raise DataError(f"{field}: the format of {root.name} is unknown; set spec.data.format to csv, jsonl or parquet")
    if found == "imagefolder":
        raise DataError(f"{field}: {root} is one file; an imagefolder is a folder that holds class/image.png")
    return Source(root, found, (root.name,))


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of all files below ``folder``; links are followed, but never into a folder ``above`` (device, inode)."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError as error:
        raise Denied(f"{folder} may not be read; give this user access to it") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        else:
            yield prefix + entry.name


def _told_by_suffixes(names: list[str], root: Path, field: str) -> str:
    """The one format of these files; files of no format (README.md, LICENSE) do not count."""
    formats = sorted({kind for name in names if (kind := _format_of(name))})
    if len(formats) > 1:
        raise DataError(
            f"{field}: {root} has files of several formats ({', '.join(formats)}); set spec.data.format to one"
        )
    if not formats:
        raise DataError(
            f"{field}: {root} has no data: no CSV, JSON Lines, Parquet or image file; {_what_is_there(names)}"
        )
    return formats[0]


def _format_of(name: str) -> str | None:
    suffix = Path(name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _what_is_there(names: list[str]) -> str:
    return f"it has {listing(names)}" if names else "it is empty"
