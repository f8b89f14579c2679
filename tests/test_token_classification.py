"""Token classification: words, their tags and the tokens that count; entities as CoNLL counts them; what is refused."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

import documents
import ranks
import tiny
from finetune_api.wiring import RunFolder
from finetune_trainer.data.columns import FIELDS
from finetune_trainer.data.words import counted_words, encode_words, first_token_targets
from finetune_trainer.entities import entity_counts, entity_scores, scheme_of
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.run import prepare
from finetune_trainer.task import IGNORED
from whole import whole_run

# ── entities ─────────────────────────────────────────────────────────────────────────────────────────────────────

LABELS = ("O", "B-A", "I-A", "B-B", "I-B", "C")


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """First word, last word + 1 and type of each entity: one word after the other, as one would read them."""
    found, start, kind = set(), None, ""
    for place, tag in enumerate([*tags, "O"]):
        if start is not None and tag != f"I-{kind}":
            found.add((start, place, kind))
            start = None
        if start is None and tag != "O":
            start, kind = place, tag.removeprefix("B-").removeprefix("I-")
    return found


@st.composite
def tagged(draw):
    """Tags (n, T) that are predicted and that are right, with places between that do not count."""
    count, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    ids = st.lists(st.integers(0, len(LABELS) - 1), min_size=width, max_size=width)
    kept = st.lists(st.booleans(), min_size=width, max_size=width)
    rows = [(draw(ids), draw(ids) if draw(st.booleans()) else None, draw(kept)) for _ in range(count)]
    predicted = torch.tensor([found for found, _, _ in rows])
    wanted = torch.tensor([found if right is None else right for found, right, _ in rows])
    wanted[~torch.tensor([places for _, _, places in rows])] = IGNORED
    return predicted, wanted


@given(tagged())
def test_entities_are_those_that_one_reads(both):
    predicted, wanted = both
    expected = []
    for found, right in zip(predicted, wanted, strict=True):
        kept = right != IGNORED
        ours, theirs = (spans([LABELS[tag] for tag in tags[kept]]) for tags in (found, right))
        expected.append([len(ours & theirs), len(theirs), len(ours)])
    assert entity_counts(scheme_of(LABELS), predicted, wanted).tolist() == expected


SCORES = {
    "some": ([2.0, 4, 5], {"entityPrecision": 0.4, "entityRecall": 0.5, "entityF1": 4 / 9}),
    "none is found": ([0.0, 3, 0], dict.fromkeys(("entityPrecision", "entityRecall", "entityF1"), 0.0)),
    "there are none": ([0.0, 0, 0], dict.fromkeys(("entityPrecision", "entityRecall", "entityF1"), 0.0)),
}


@pytest.mark.parametrize(("sums", "scores"), SCORES.values(), ids=SCORES)
def test_scores(sums, scores):
    found = entity_scores(torch.tensor(sums, dtype=torch.float64))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(scores)


def evaluations_of(run):
    lines = map(json.loads, RunFolder(run).history.read_text().splitlines())
    return [line["metrics"] for line in lines if line["kind"] == "evaluation"]


def test_metrics_of_several_processes_are_those_of_one(tmp_path, group):
    kind = "token-classification"
    for world_size in (1, 2):
        group.run(ranks.train_all, world_size, {tmp_path / str(world_size): (kind, {"training": {"maxSteps": 2}})})
    (one,), (two,) = (evaluations_of(tmp_path / name) for name in ("1", "2"))
    assert one.keys() == {"loss", "entityF1", "entityPrecision", "entityRecall", "tokenAccuracy"}
    assert two == pytest.approx(one, rel=1e-5)


# ── words and tokens ─────────────────────────────────────────────────────────────────────────────────────────────

TARGETS = {
    "one token a word": ([None, 0, 1, None], [7, 8], [IGNORED, 7, 8, IGNORED]),
    "several": ([None, 0, 0, 1, 1, 1, None], [7, 8], [IGNORED, 7, IGNORED, 8, IGNORED, IGNORED, IGNORED]),
    "a word without a token": ([None, 0, 2, None], [7, 8, 9], [IGNORED, 7, 9, IGNORED]),
    "cut": ([None, 0, 0, None], [7, 8], [IGNORED, 7, IGNORED, IGNORED]),
    "no special tokens": ([0, 1, 1], [7, 8], [7, 8, IGNORED]),
}


@pytest.mark.parametrize(("word_ids", "tags", "targets"), TARGETS.values(), ids=TARGETS)
def test_the_first_token_of_a_word_has_its_tag(word_ids, tags, targets):
    assert first_token_targets(word_ids, tags) == targets


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single letters, without dots: what is written with k letters is k tokens."""
    known = {letter: number for number, letter in enumerate(("[PAD]", "[CLS]", "[SEP]", *"abcdefgh"))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[PAD]"))
    tokenizer.normalizer = normalizers.Replace(".", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def test_words_that_are_cut_off_or_have_no_token_do_not_count(letters, tmp_path):
    words = [["ab", ".", "c"], ["abc", "defgh", "a"]]
    tags = SimpleNamespace(ids_of=lambda row: np.array([[1, 2, 3], [1, 2, 3]][row]))
    table = pa.table({"tokens": words})
    found = encode_words(table, tags, letters, max_length=7, key={}, cache=tmp_path, beat=lambda: None)
    no = IGNORED
    assert found.targets.tolist() == [no, 1, no, 3, no, no, 1, no, no, 2, no, no]
    assert found.truncated.tolist() == [False, True]
    assert counted_words(words[0], letters) == [0, 2]


def test_a_tokenizer_that_does_not_know_words(tmp_path):
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(SpecFault, match=r"^spec\.model\.tokenizer: must be a fast one"):
        encode_words(pa.table({"tokens": []}), None, slow, max_length=7, key={}, cache=tmp_path, beat=lambda: None)


def test_a_byte_level_tokenizer_sees_a_blank_before_every_word(tmp_path):
    """As in pretraining; it is exported so."""
    documents.byte_pairs([" ".join(tiny.WORDS)] * 3, RobertaTokenizer).save_pretrained(tmp_path / "tokenizer")
    model = {"tokenizer": (tmp_path / "tokenizer").as_uri(), "config": tiny.BERT | {"model_type": "roberta"}}
    material = prepare(tiny.process_of(tiny.job(tmp_path, "token-classification", {"model": model}), tmp_path / "run"))
    batch = material.parts["train"].batch(0, np.array([0]), is_counted=True)
    (row,) = material.prepared.slices["train"].rows[:1].tolist()
    words = material.prepared.slices["train"].samples.table["tokens"][row].as_py()
    firsts = batch.inputs["input_ids"][batch.target != IGNORED]
    tokens = material.companion.convert_ids_to_tokens(firsts)
    assert len(tokens) == len(words)
    assert all(token.startswith("Ġ") for token in tokens)


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = [["Ada", "Lovelace", "wrote", "1843"], ["O", "é"], ["in", "London"]] * 4
NAMES = [["B-PER", "I-PER", "O", "O"], ["O", "O"], ["O", "B-LOC"]] * 4
GIVEN = ["O", "B-PER", "I-PER", "B-LOC"]
NUMBERS = [[GIVEN.index(name) for name in names] for names in NAMES]


def as_jsonl(folder, words, tags):
    lines = [json.dumps({"tokens": one, "tags": other}) for one, other in zip(words, tags, strict=True)]
    (folder / "data.jsonl").write_text("\n".join(lines))


def as_csv(folder, words, tags):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["tokens", "tags"])
    writer.writerows([json.dumps(one), json.dumps(other)] for one, other in zip(words, tags, strict=True))
    (folder / "data.csv").write_text(file.getvalue())


def as_parquet(folder, words, tags):
    pq.write_table(pa.table({"tokens": words, "tags": tags}), folder / "data.parquet")


FORMATS = {
    "jsonl": (as_jsonl, NAMES, None),
    "jsonl, numbers": (as_jsonl, NUMBERS, GIVEN),
    "csv": (as_csv, NAMES, None),
    "csv, numbers": (as_csv, NUMBERS, GIVEN),
    "parquet": (as_parquet, NAMES, None),
    "parquet, numbers": (as_parquet, NUMBERS, GIVEN),
}


def material_of(folder, data):
    (folder / "data").mkdir(exist_ok=True)
    spec = {"data": {"source": (folder / "data").as_uri(), "format": None, **data}}
    return prepare(tiny.process_of(tiny.job(folder, "token-classification", spec), folder / "run"))


@pytest.mark.parametrize(("write", "tags", "labels"), FORMATS.values(), ids=FORMATS)
def test_formats(tmp_path, write, tags, labels):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", WORDS, tags)
    material = material_of(tmp_path, {"labels": labels} if labels else {})
    assert material.prepared.labels == tuple(labels or sorted(GIVEN))
    samples, values = material.prepared.slices["train"].samples, material.prepared.slices["train"].values
    assert samples.table["tokens"].to_pylist() == WORDS
    found = [[material.prepared.labels[tag] for tag in values.ids_of(row)] for row in range(len(WORDS))]
    assert found == NAMES


PLACE = "data.jsonl:2: spec.data.columns"
FAULTS = {
    "a tag is lacking": ([["a", "b"]], [["O"]], {}, f"{PLACE}.tags: has 1 for 2 words; mend or remove the row"),
    "no words": ([[]], [[]], {}, f"{PLACE}.tokens: is empty; mend or remove the row"),
    "null": ([None], [["O"]], {}, f"{PLACE}.tokens: is null; mend or remove the row"),
    "an empty word": ([["a", " "]], [["O", "O"]], {}, f"{PLACE}.tokens: is empty at 1, counted from 0; mend or"),
    "an empty tag": ([["a", "b"]], [["O", None]], {}, f"{PLACE}.tags: is empty at 1, counted from 0; mend or"),
    "a text": (["a b"], [["O"]], {}, f"{PLACE}.tokens: is no list as JSON: Expecting value"),
    "a number": ([3], [["O"]], {}, f"{PLACE}.tokens: is the number 3, must be a list"),
    "lists in a list": ([[["a"]]], [["O"]], {}, f"{PLACE}.tokens: is a list; must be a string, a number"),
    "an unknown tag": (
        [["a"]],
        [["b-A"]],
        {"labels": ["O", "B-A"]},
        f'{PLACE}.tags: "b-A" is not in spec.data.labels ("O", "B-A"); did you mean "B-A"?',
    ),
    "a number too large": ([["a"]], [[2]], {"labels": ["O", "B-A"]}, f'{PLACE}.tags: "2" is not in spec.data.labels'),
    "another scheme": (
        [["a"]],
        [["S-A"]],
        {},
        'spec.data.columns.tags: "S-A": not of IOB2; write B- at an entity\'s first word, I- at the others',
    ),
    "nothing is left": (
        [["a"]],
        [["O"]],
        {"maxLength": 2},
        "spec.data: no word is left within spec.data.maxLength (2 tokens); raise it",
    ),
    "another column": (
        [["a"]],
        [["O"]],
        {"columns": {"tags": "tag"}},
        f'{FIELDS["tags"]}: data.jsonl:1 has no key "tag"',
    ),
}


@pytest.mark.parametrize(("words", "tags", "data", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, words, tags, data, message):
    (tmp_path / "data").mkdir()
    others = [["x", "y"]] * 8
    as_jsonl(tmp_path / "data", [others[0], *words, *others], [["O", "B-A"], *tags, *([["O", "B-A"]] * 8)])
    with pytest.raises(DataError) as fault:
        material_of(tmp_path, data)
    assert str(fault.value).startswith(message)


ALIKE = {
    "numbers without names": ([[0, 1]], "spec.data.columns.tags: are numbers; name the tags in spec.data.labels"),
    "one tag": (
        [["O", "O"]],
        'spec.data.columns.tags: all 26 labels of the training samples are "O"; there must be two',
    ),
}


@pytest.mark.parametrize(("tags", "message"), ALIKE.values(), ids=ALIKE)
def test_tags_that_say_nothing(tmp_path, tags, message):
    (tmp_path / "data").mkdir()
    as_jsonl(tmp_path / "data", [["x", "y"]] * 18, tags * 18)
    with pytest.raises(DataError) as fault:
        material_of(tmp_path, {})
    assert str(fault.value).startswith(message)


def test_cleaning(tmp_path):
    """What lacks something is left out, of what is the same all but the first; other tags are told as a conflict."""
    (tmp_path / "data").mkdir()
    long = [f"word{number}" for number in range(30)]
    words = [["Ada", "wrote"], ["ada", "wrote"], ["Ada", "wrote"], [], ["x"], long, [*long, "more"], [*long, "less"]]
    tags = [["B-A", "O"], ["B-A", "O"], ["O", "O"], [], ["O", "O"], ["O"] * 30, ["O"] * 31, ["O"] * 30 + ["B-A"]]
    as_jsonl(tmp_path / "data", words + [[f"only{number}"] for number in range(9)], tags + [["O"]] * 9)
    cleaning = {"empty": "drop", "duplicates": "drop", "nearDuplicates": {"action": "drop", "threshold": 0.7}}
    material = material_of(tmp_path, {"cleaning": cleaning, "labels": ["O", "B-A"]})
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").findings.read_text().splitlines()]
    found = [(line["origin"].removeprefix("data.jsonl:"), line["kind"], line["outcome"], line["why"]) for line in lines]
    assert found == [
        ("4", "empty", "dropped", "tokens is empty"),
        ("5", "empty", "dropped", "tags has 2 for 1 words"),
        ("2", "duplicate", "dropped", "the same content"),
        ("3", "duplicate", "dropped", 'the same content, but the label "" where the other has "ada B-A"'),
        ("7", "nearDuplicate", "dropped", "almost the same content"),
        ("8", "nearDuplicate", "reported", 'almost the same content, but the label "less B-A" where the other has ""'),
    ]
    kept = material.prepared.slices["train"].samples.table["tokens"].to_pylist()
    assert kept[:3] == [["Ada", "wrote"], long, [*long, "less"]]


# ── what is told at the end ──────────────────────────────────────────────────────────────────────────────────────


def test_the_worst_examples_name_the_words_that_are_tagged(tmp_path):
    spec = {"data": {"split": {"train": 8, "validation": 5, "test": 5}}, "training": {"maxSteps": 1}}
    process = tiny.process_of(tiny.job(tmp_path, "token-classification", spec), tmp_path / "run")
    result = whole_run(process)
    assert result.intervals.keys() == result.metrics.keys()
    record = json.loads(process.context.run.evaluation.read_text())
    lines = (tmp_path / "token-classification").read_text().splitlines()
    assert len(record["worst"]) == 5
    for one in record["worst"]:
        sample = json.loads(lines[int(one["origin"].rpartition(":")[2]) - 1])
        assert one["text"] == sample["text"]
        both = zip(sample["tokens"], sample["tags"], strict=True)
        assert one["expected"] == ", ".join(f"{word} {tag}" for word, tag in both if tag != "O")
        assert all(name.partition(" ")[0] in sample["tokens"] for name in one["predicted"].split(", ") if name)
