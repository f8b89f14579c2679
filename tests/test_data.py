"""Reading data: every format's bytes to samples, every fault to its file, line and field; the cache."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune_trainer.data.read import Samples, read_samples
from finetune_trainer.errors import DataError, NotFoundError, PlatformError

ROLES = {"text": "text", "label": "label"}
FIELD = "spec.data.source"


def read(path: Path, *, cache: Path | None = None, format=None, roles=ROLES) -> Samples:  # noqa: A002
    return read_samples(path, format=format, roles=roles, cache=cache or path.parent / ".cache", field=FIELD)


def rows(samples: Samples, *names: str) -> list[tuple]:
    return list(zip(*(samples.table[name].to_pylist() for name in names), strict=True))


def origins(samples: Samples) -> list[str]:
    return [samples.origin(index) for index in range(samples.table.num_rows)]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def png(path: Path, size=(2, 2), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)
    return path


# What is read ---------------------------------------------------------------------------------------------------------

GOOD = {
    "csv": ("d.csv", b"text,label\na,1\nb,2\n", [("a", "1"), ("b", "2")], ["d.csv:2", "d.csv:3"]),
    "csv, columns in another order, more of them": (
        "d.csv",
        b"label,id,text\n1,7,a\n",
        [("a", "1")],
        ["d.csv:2"],
    ),
    "csv of Windows: mark, CRLF, no end of line": (
        "d.csv",
        b"\xef\xbb\xbftext,label\r\na,1\r\nb,2",
        [("a", "1"), ("b", "2")],
        ["d.csv:2", "d.csv:3"],
    ),
    "csv of an old Mac": ("d.csv", b"text,label\ra,1\rb,2\r", [("a", "1"), ("b", "2")], ["d.csv:2", "d.csv:3"]),
    "csv quotes": (
        "d.csv",
        b'text,label\n"a ""b"", c",1\n"two\r\nlines\n\n",2\n\n  \xc3\xa4 5" ,3.0\n',
        [('a "b", c', "1"), ("two\r\nlines\n\n", "2"), ('  ä 5" ', "3.0")],
        ["d.csv:2", "d.csv:3", "d.csv:8"],
    ),
    "csv, empty label is kept": ("d.csv", b"text,label\na,\n", [("a", "")], ["d.csv:2"]),
    "csv, words like null are text": ("d.csv", b"text,label\nnull,NA\n", [("null", "NA")], ["d.csv:2"]),
    "tsv": ("d.tsv", b"text\tlabel\na,b\t1\n", [("a,b", "1")], ["d.tsv:2"]),
    "jsonl strings": (
        "d.jsonl",
        b'\n{"text": "a\\n\\u00e4", "label": "x", "more": {"y": [1]}}\r\n\n{"label": "y", "text": "b"}',
        [("a\nä", "x"), ("b", "y")],
        ["d.jsonl:2", "d.jsonl:4"],
    ),
    "jsonl numbers and booleans": (
        "d.ndjson",
        "".join(
            f'{{"text": "a", "label": {label}}}\n' for label in ("3", "3.0", "-0.5", "1e300", "true", '"x"')
        ).encode(),
        [("a", label) for label in ("3", "3", "-0.5", "1e+300", "true", "x")],
        [f"d.ndjson:{line}" for line in range(1, 7)],
    ),
    "jsonl lists": (
        "d.jsonl",
        b'{"text": "a", "label": ["x", 2]}\n{"text": "b", "label": []}\n',
        [("a", ["x", "2"]), ("b", [])],
        ["d.jsonl:1", "d.jsonl:2"],
    ),
    "jsonl with a mark": ("d.jsonl", b'\xef\xbb\xbf{"text": "a", "label": 1}', [("a", "1")], ["d.jsonl:1"]),
}


@pytest.mark.parametrize(("name", "content", "expected", "places"), GOOD.values(), ids=GOOD)
def test_reads(tmp_path, name, content, expected, places):
    samples = read(write(tmp_path / name, content))
    assert rows(samples, "text", "label") == expected
    assert origins(samples) == places


PARQUET_LABELS = {
    "strings": (pa.array(["x", "y"]), ["x", "y"]),
    "categories": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "integers": (pa.array([3, -1], pa.int8()), ["3", "-1"]),
    "floats": (pa.array([3.0, 0.1]), ["3", "0.1"]),
    "single floats": (pa.array([3.0, 0.1], pa.float32()), ["3", "0.1"]),
    "half floats": (pa.array([3.0, 0.5], pa.float16()), ["3", "0.5"]),
    "booleans": (pa.array([True, False]), ["true", "false"]),
    "lists": (pa.array([["x"], []], pa.large_list(pa.string())), [["x"], []]),
    "lists of integers": (pa.array([[1, 2], [3]]), [["1", "2"], ["3"]]),
}


@pytest.mark.parametrize(("labels", "expected"), PARQUET_LABELS.values(), ids=PARQUET_LABELS)
def test_reads_parquet(tmp_path, labels, expected):
    texts = pa.array(["a", "b"], pa.large_string())
    samples = read(parquet(tmp_path / "d.parquet", {"label": labels, "text": texts}))
    assert rows(samples, "text", "label") == [("a", expected[0]), ("b", expected[1])]
    assert origins(samples) == ["d.parquet:1", "d.parquet:2"]
    assert set(samples.table.column_names) == {"text", "label", "file", "row"}


def test_reads_a_folder_in_the_order_of_names_without_hidden_files(tmp_path):
    write(tmp_path / "set/b.csv", "text,label\nb,2\n")
    write(tmp_path / "set/a/deep.csv", "label,text\n1,a\n")
    write(tmp_path / "set/.hidden.csv", "x")
    write(tmp_path / "set/.git/x.csv", "x")
    write(tmp_path / "set/README.md", "x")
    (tmp_path / "set/a/loop").symlink_to(tmp_path / "set")
    samples = read(tmp_path / "set")
    assert rows(samples, "text", "label", "file") == [("a", "1", 0), ("b", "2", 1)]
    assert origins(samples) == ["a/deep.csv:2", "b.csv:2"]


def test_reads_only_the_roles_asked_for(tmp_path):
    file = write(tmp_path / "d.csv", "first,second,label\na,b,\n")
    samples = read(file, roles={"text": "first", "text_pair": "second"})
    assert rows(samples, "text", "text_pair") == [("a", "b")]


def test_one_column_may_play_two_roles(tmp_path):
    samples = read(parquet(tmp_path / "d.parquet", {"text": ["a"]}), roles={"text": "text", "label": "text"})
    assert rows(samples, "text", "label") == [("a", "a")]


def test_reads_a_folder_of_images(tmp_path):
    for name in ("dog/2.JPG", "cat/1.png", "cat/notes.txt"):
        write(tmp_path / "set" / name, "not opened yet")
    samples = read(tmp_path / "set", roles={"image": "image", "label": "label"})
    expected = [(str(tmp_path / "set/cat/1.png"), "cat"), (str(tmp_path / "set/dog/2.JPG"), "dog")]
    assert rows(samples, "image", "label") == expected
    assert origins(samples) == ["cat/1.png", "dog/2.JPG"]


def test_paths_of_images_are_relative_to_the_file_that_names_them(tmp_path):
    png(tmp_path / "set/in/x.png")
    file = write(tmp_path / "set/d.jsonl", '{"image": "in/x.png", "label": 1}\n{"image": "no.png", "label": 1}\n')
    roles = {"image": "image", "label": "label"}
    with pytest.raises(NotFoundError) as error:
        read(file, roles=roles)
    assert str(error.value) == f"d.jsonl:2: spec.data.columns.image: {tmp_path}/set/no.png is not there"
    write(file, '{"image": "in/x.png", "label": 1}')
    assert rows(read(file, roles=roles), "image", "label") == [(str(tmp_path / "set/in/x.png"), "1")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_survives_csv_and_jsonl(tmp_path, texts, end):
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    csv_file, lines = "text,label" + end, []
    for text in texts:
        lines.append(len(csv_file.replace("\r\n", "\n").replace("\r", "\n").split("\n")))
        csv_file += f"{quoted(text)},1{end}"
    found = read(write(tmp_path / "d.csv", csv_file))
    assert found.table["text"].to_pylist() == texts
    assert found.table["row"].to_pylist() == lines
    found = read(write(tmp_path / "d.jsonl", "".join(json.dumps({"text": text, "label": 1}) + end for text in texts)))
    assert found.table["text"].to_pylist() == texts
    assert found.table["row"].to_pylist() == list(range(1, len(texts) + 1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_bytes_are_samples_or_a_data_error(tmp_path, content, suffix):
    heads = {"csv": b"text,label\n", "jsonl": b'{"text": "a", "label": 1}\n', "parquet": b"PAR1"}
    try:
        read(write(tmp_path / f"d.{suffix}", heads[suffix] + content)).table.validate(full=True)
    except DataError as error:
        message = str(error)
    else:
        return
    assert message.startswith((f"d.{suffix}:", "spec.data."))


# What is refused ------------------------------------------------------------------------------------------------------

HEAD = b"text,label\n"
LINE = b'{"text": "a", "label": "x"}\n'
TEXT = "spec.data.columns.text"
LABEL = "spec.data.columns.label"

BAD = {
    "csv, too many columns": ("d.csv", HEAD + b"a,1\n\nb,2,3\n", "d.csv:4: has 3 columns, the header has 2"),
    "csv, too few columns": ("d.csv", HEAD + b'"a\nb",1\nb\n', "d.csv:4: has 1 column, the header has 2"),
    "csv, empty": ("d.csv", b"", "d.csv: is empty; its first line must name the columns"),
    "csv, header only": ("d.csv", HEAD, "spec.data.source: {path} has no samples; the data set is empty"),
    "csv, no such column": (
        "d.csv",
        b"Txt,label\na,1\n",
        f'{TEXT}: d.csv has no column "text"; it has "Txt", "label"; did you mean "Txt"?',
    ),
    "csv, column twice": (
        "d.csv",
        b"text,text,label\na,b,1\n",
        f'{TEXT}: d.csv has 2 columns "text"; rename all but one',
    ),
    "csv, other delimiter": ("d.csv", b"text;label\na;1\n", f'{TEXT}: d.csv has no column "text"; it has "text;label"'),
    "csv, quote not closed": (
        "d.csv",
        HEAD + b'a,1\n"b,2\nc,3\n',
        "d.csv:3: a quoted field begins in this row and is never closed",
    ),
    "csv, quote not doubled": (
        "d.csv",
        HEAD + b'"a "b" c",1\n',
        'd.csv:2: a quote (") inside a quoted field must be doubled ("")',
    ),
    "csv, not UTF-8": (
        "d.csv",
        HEAD + b"a,1\nna\xefve,2\n",
        "d.csv:3: byte 3 (0xef) is not UTF-8; save the file as UTF-8",
    ),
    "csv, UTF-16": ("d.csv", "text,label\na,1\n".encode("utf-16"), "d.csv: is UTF-16; save it as UTF-8"),
    "csv, empty text": (
        "d.csv",
        HEAD + b"a,1\n\xc2\xa0\t,2\n",
        f"d.csv:3: {TEXT}: is empty; fill it in or remove the row",
    ),
    "jsonl, broken": (
        "d.jsonl",
        LINE + b"\n" + b'{"text": "a", label: 1}\n',
        "d.jsonl:3: column 15: Expecting property name enclosed in double quotes; each line must be one JSON object",
    ),
    "jsonl, one array": (
        "d.jsonl",
        b'[\n{"text": "a", "label": 1}\n]\n',
        "d.jsonl:1: column 2: Expecting value; each line must be one JSON object",
    ),
    "jsonl, array in a line": ("d.jsonl", LINE + b"[1]\n", "d.jsonl:2: is a list, must be a JSON object"),
    "jsonl, key missing": (
        "d.jsonl",
        LINE + b'{"body": "a", "labels": 1, "text": "x"}\n',
        f'{LABEL}: d.jsonl:2 has no key "label"; it has "body", "labels", "text"; did you mean "labels"?',
    ),
    "jsonl, no keys": ("d.jsonl", b"{}", f'{TEXT}: d.jsonl:1 has no key "text"; it has none'),
    "jsonl, null": (
        "d.jsonl",
        LINE + b'{"text": null, "label": 1}\n',
        f"d.jsonl:2: {TEXT}: is null; fill it in or remove the row",
    ),
    "jsonl, null label": (
        "d.jsonl",
        LINE + b'{"text": "a", "label": null}\n',
        f"d.jsonl:2: {LABEL}: is null; label the sample or remove it",
    ),
    "jsonl, number for a text": (
        "d.jsonl",
        LINE * 2 + b'{"text": 5, "label": 1}\n',
        f"d.jsonl:3: {TEXT}: is the number 5, must be a string",
    ),
    "jsonl, object for a label": (
        "d.jsonl",
        LINE + b'{"text": "a", "label": {"x": 1}}\n',
        f"d.jsonl:2: {LABEL}: is an object; must be a string, a number, true or false; or all labels lists of these",
    ),
    "jsonl, list and scalar": (
        "d.jsonl",
        b'{"text": "a", "label": ["x"]}\n' + LINE,
        f'd.jsonl:2: {LABEL}: is "x", where the labels before are lists',
    ),
    "jsonl, null in a list": (
        "d.jsonl",
        b'{"text": "a", "label": ["x", null]}\n',
        f"d.jsonl:1: {LABEL}: is a list with null in it",
    ),
    "jsonl, NaN": ("d.jsonl", b'{"text": "a", "label": NaN}\n', "d.jsonl:1: cannot be read: NaN is no JSON value"),
    "jsonl, half a surrogate pair": (
        "d.jsonl",
        LINE + b'{"text": "\\ud800", "label": 1}\n',
        f"d.jsonl:2: {TEXT}: has half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    ),
    "jsonl, not UTF-8": (
        "d.jsonl",
        LINE + b'{"text": "\xff"}',
        "d.jsonl:2: byte 11 (0xff) is not UTF-8; save the file as UTF-8",
    ),
    "jsonl, empty": ("d.jsonl", b"\n\n", "spec.data.source: {path} has no samples; the data set is empty"),
    "parquet, damaged": ("d.parquet", b"PAR1xxxxPAR1", "d.parquet: is damaged, or is not Parquet: "),
    "unknown suffix": (
        "d.txt",
        b"a",
        "spec.data.source: the format of d.txt is unknown; set spec.data.format to csv, jsonl or parquet",
    ),
    "an image": (
        "d.png",
        b"a",
        "spec.data.source: {path} is one file; an imagefolder is a folder that holds class/image.png",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_refuses(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        read(path)
    found, expected = str(error.value), message.replace("{path}", str(path))
    assert found == expected or (message.endswith(": ") and found.startswith(expected) and len(found) > len(expected))
    assert not list((tmp_path / ".cache").glob("samples-*[!k]"))


def test_refuses_deeply_nested_json(tmp_path):
    with pytest.raises(DataError, match=r"^d.jsonl:1: cannot be read: "):
        read(write(tmp_path / "d.jsonl", b'{"text": ' + b"[" * 200_000))


BAD_PARQUET = {
    "no such column": (
        {"txt": ["a"], "label": [1]},
        f'{TEXT}: d.parquet has no column "text"; it has "txt", "label"; did',
    ),
    "null": ({"text": ["a", None], "label": [1, 2]}, f"d.parquet:2: {TEXT}: is null; fill it in or remove the row"),
    "null label": ({"text": ["a"], "label": [None]}, f"d.parquet:1: {LABEL}: is null; label the sample or remove it"),
    "NaN": ({"text": ["a", "b"], "label": [1.0, float("nan")]}, f"d.parquet:2: {LABEL}: is null; label the sample"),
    "null in a list": ({"text": ["a", "b"], "label": [["x"], [None]]}, f"d.parquet:2: {LABEL}: has null in its list; "),
    "numbers": ({"text": [1], "label": [1]}, f"{TEXT}: column of d.parquet is of type int64, must be a string"),
    "objects": (
        {"text": ["a"], "label": [{"x": 1}]},
        f"{LABEL}: column of d.parquet is of type struct<x: int64>; a label",
    ),
    "empty": ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}, "spec.data.source: "),
    "not UTF-8": (
        {"text": pa.array([b"a", b"\xff"], pa.binary()).view(pa.string()), "label": [1, 2]},
        f"d.parquet:2: {TEXT}: is not UTF-8",
    ),
}


@pytest.mark.parametrize(("columns", "message"), BAD_PARQUET.values(), ids=BAD_PARQUET)
def test_refuses_parquet(tmp_path, columns, message):
    with pytest.raises(DataError) as error:
        read(parquet(tmp_path / "d.parquet", columns))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_refuses_damaged_parquet(tmp_path, damage):
    path = parquet(tmp_path / "d.parquet", {"text": [f"text {i}" for i in range(5000)], "label": list(range(5000))})
    content = bytearray(path.read_bytes())
    write(path, bytes(content[:-20] if damage == "truncate" else content[:400] + b"\xff" * 400 + content[800:]))
    with pytest.raises(DataError, match=r"^d.parquet"):
        read(path)


FOLDERS = {
    "empty": ([], None, "{root} has no data: no CSV, JSON Lines, Parquet or image file; it is empty"),
    "no data": (
        ["a.md"],
        None,
        '{root} has no data: no CSV, JSON Lines, Parquet or image file; it has "a.md"',
    ),
    "several formats": (
        ["a.csv", "b.jsonl"],
        None,
        "{root} has files of several formats (csv, jsonl); set spec.data.format to one",
    ),
    "not the format": (["a.csv"], "jsonl", '{root} has no file that ends in .jsonl or .ndjson; it has "a.csv"'),
    "image in no class": (
        ["a.png"],
        None,
        "{root}/a.png lies in no class's folder; an imagefolder holds class/image.png",
    ),
    "images too deep": (
        ["train/cat/a.png"],
        None,
        "{root}/train/cat/a.png lies 2 folders deep; an imagefolder holds class/image.png: is {root}/train the source?",
    ),
}


@pytest.mark.parametrize(("names", "format_given", "message"), FOLDERS.values(), ids=FOLDERS)
def test_refuses_folder(tmp_path, names, format_given, message):
    root = tmp_path / "set"
    root.mkdir()
    for name in names:
        write(root / name, "x")
    with pytest.raises(DataError) as error:
        read(root, format=format_given)
    assert str(error.value) == f"spec.data.source: {message.replace('{root}', str(root))}"


def test_labels_are_lists_in_all_files_or_in_none(tmp_path):
    write(tmp_path / "set/a.jsonl", LINE)
    write(tmp_path / "set/b.jsonl", b'\n{"text": "a", "label": ["x"]}\n')
    with pytest.raises(DataError) as error:
        read(tmp_path / "set")
    assert str(error.value) == f"b.jsonl:2: {LABEL}: is a list, where the labels before are not"


def test_a_dangling_link_is_not_found(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.csv").symlink_to("nowhere")
    with pytest.raises(NotFoundError, match=r"^a.csv: .* is a link to a file that is not there$"):
        read(tmp_path / "set")


# The cache ------------------------------------------------------------------------------------------------------------


def entries(cache: Path) -> list[Path]:
    return [entry for entry in cache.iterdir() if entry.is_dir()]


def test_an_entry_is_made_once_and_again_when_the_data_change(tmp_path, monkeypatch):
    file, cache = write(tmp_path / "d.csv", HEAD + b"a,1\n"), tmp_path / "cache"
    assert rows(read(file, cache=cache), "text") == [("a",)]
    monkeypatch.setattr("finetune_trainer.data.read._write", lambda *_: pytest.fail("made again"))
    assert rows(read(file, cache=cache), "text") == [("a",)]
    monkeypatch.undo()
    write(file, HEAD + b"b,1\n")
    os.utime(file, ns=(1, 1))
    assert rows(read(file, cache=cache), "text") == [("b",)]
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("victim", ["samples.arrow", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_damaged_entry_is_made_again_and_said_so(tmp_path, caplog, victim, damage):
    file, cache = write(tmp_path / "d.csv", HEAD + b"a,1\n" * 1000), tmp_path / "cache"
    read(file, cache=cache)
    target = entries(cache)[0] / victim
    content = target.read_bytes()
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff" * len(content))
    with caplog.at_level(logging.WARNING):
        assert read(file, cache=cache).table.num_rows == 1000
    assert "is damaged and is made again" in caplog.text
    assert len(entries(cache)) == 1


def test_what_a_killed_process_left_is_swept(tmp_path):
    file, cache = write(tmp_path / "d.csv", HEAD + b"a,1\n"), tmp_path / "cache"
    read(file, cache=cache)
    entry = entries(cache)[0]
    entry.rename(cache / f".tmp-{entry.name}-left")
    read(file, cache=cache)
    assert entries(cache) == [entry]


ASK = """
import sys, time
from pathlib import Path
import finetune_trainer.data.read as module
path, me, other = Path(sys.argv[1]), *sys.argv[2:]
write, made, beats = module._write, [], []
def slow_write(*arguments):
    made.append(1)
    while not (path.parent / f"{other} waits").exists():
        time.sleep(0.01)
    write(*arguments)
module._write = slow_write
(path.parent / me).touch()
while not (path.parent / other).exists():
    time.sleep(0.01)
roles = {"text": "text", "label": "label"}
def beat():
    beats.append(1)
    (path.parent / f"{me} waits").touch()
samples = module.read_samples(path, format=None, roles=roles, cache=path.parent / "cache", field="f", beat=beat)
print(samples.table.num_rows, "made it" if made else "waited" if beats else "did nothing")
"""


def test_of_two_processes_one_makes_the_entry_and_one_waits(tmp_path):
    file = write(tmp_path / "d.csv", HEAD + b"a,1\n" * 100)
    asks = [[sys.executable, "-c", ASK, str(file), *names] for names in (("one", "two"), ("two", "one"))]
    processes = [subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) for ask in asks]
    told = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert told == ["100 made it", "100 waited"]


def test_a_full_volume_is_the_platforms_fault(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune_trainer.data.read._write", full)
    with pytest.raises(PlatformError, match=r"^FINETUNE_CACHE: no space left in "):
        read(write(tmp_path / "d.csv", HEAD + b"a,1\n"))
    assert not entries(tmp_path / ".cache")


PEAK = """
import sys
from pathlib import Path
from finetune_trainer.data.read import read_samples
path = Path(sys.argv[1])
read_samples(path, format=None, roles={"text": "text", "label": "label"}, cache=path.parent / "cache", field="f")
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


PROMPT_TO_FREE = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
"""Arrow's own pool gives memory back when it pleases, the later the busier the machine: its peak would say little."""


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_data(tmp_path, suffix):
    peaks = []
    for times in (4, 12):  # × 9 MB
        file = tmp_path / f"{times}.{suffix}"
        write_many(file, 24_000 * times)
        command = [sys.executable, "-c", PEAK, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | PROMPT_TO_FREE)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 8 * 9_000 / 3, "a third of what has come in addition, in KiB"


def write_many(path: Path, count: int) -> None:
    """So many samples of about 360 bytes."""
    text = "word, " * 60
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [f"{index} {text}" for index in range(count)], "label": [1] * count}), path)
        return
    with path.open("w") as file:
        file.write("text,label\n")
        file.writelines(f'"{text}",1\n' for _ in range(count))
