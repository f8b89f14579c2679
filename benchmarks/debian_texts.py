"""The benchmarks' real data set: long descriptions of Debian's packages, labelled with the section they belong to.

Read from the package lists at run time and kept in the cache folder; nothing of it is part of this repository. A list
names, for each package, its section and the MD5 of its description (``Description-md5``); the translation file
(``Translation-en``) holds the descriptions by that MD5. Format: https://wiki.debian.org/DebianRepository/Format

    python benchmarks/debian_texts.py        make it, and say what is in it
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CACHE = Path.home() / ".cache" / "finetune-operator" / "debian"
SECTIONS = 12
"""The largest sections; the rest is left out."""
_FIELD = re.compile(r"^(Section|Description-md5|Description-en): (.*(?:\n .*)*)", re.MULTILINE)


class Unavailable(Exception):  # noqa: N818 - what is said of the data
    """There is no apt here, or its mirror cannot be reached."""


def debian_texts(cache: Path = CACHE, sections: int = SECTIONS) -> Path:
    """The data set as a CSV file with the columns ``text`` and ``label``; made at the first call.

    Every text is there once, under one label; the order is that of the package lists.

    Raises:
        Unavailable: It is not in the cache and cannot be made.
    """
    path = cache / f"sections-{sections}.csv"
    if not path.is_file():
        lists = cache / "lists"
        _update(lists)
        _write(path, _largest(_joined(lists), sections))
        shutil.rmtree(lists)
    return path


def _update(lists: Path) -> None:
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "Dir::State::Lists": lists,
        "Dir::Cache": lists.parent / "apt",
        "APT::Sandbox::User": "",
        "APT::Update::Post-Invoke": "",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    try:
        done = subprocess.run(["apt-get", "update", *options], capture_output=True, text=True, check=False, timeout=600)
    except FileNotFoundError as error:
        raise Unavailable("apt-get is not here; this data set is made from Debian's package lists") from error
    if not list(lists.glob("*_Packages")) or not list(lists.glob("*_i18n_Translation-en")):
        raise Unavailable(f"apt-get update brought no package lists:\n{done.stdout}{done.stderr}")


def _joined(lists: Path) -> Iterator[tuple[str, str]]:
    """(text, section) of every package, by the MD5 of its description."""
    texts: dict[str, str] = {}
    for path in sorted(lists.glob("*_i18n_Translation-en")):
        texts |= {fields["Description-md5"]: fields.get("Description-en", "") for fields in _stanzas(path)}
    for path in sorted(lists.glob("*_Packages")):
        for fields in _stanzas(path):
            text = _long_part(texts.get(fields.get("Description-md5", ""), ""))
            if text and "Section" in fields:
                yield text, fields["Section"].rpartition("/")[2]


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        if "Description-md5" in fields:
            yield fields


def _long_part(description: str) -> str:
    """The long description: all but the first line, unfolded; `` .`` is an empty line between paragraphs."""
    lines = [line.strip() for line in description.split("\n")[1:]]
    return " ".join(" ".join("" if line == "." else line for line in lines).split())


def _largest(pairs: Iterator[tuple[str, str]], sections: int) -> list[tuple[str, str]]:
    """Every text once (with the first section that has it), of the largest sections."""
    section_of: dict[str, str] = {}
    for text, section in pairs:
        section_of.setdefault(text, section)
    kept = {section for section, _ in Counter(section_of.values()).most_common(sections)}
    return [(text, section) for text, section in section_of.items() if section in kept]


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    temporary.replace(path)


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of the CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where to keep it (default: {CACHE})")
    path = debian_texts(parser.parse_args().cache)
    texts, labels = read_texts(path)
    words = sorted(len(text.split()) for text in texts)
    print(f"{path}: {len(texts):,} texts, {words[len(words) // 2]} words in the median")
    for label, count in Counter(labels).most_common():
        print(f"{count:7,} {label}")


if __name__ == "__main__":
    main()
