"""Sequence to sequence: batches, texts that are written, and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

import ranks
import tiny
from architectures import ARCHITECTURES
from finetune_api.wiring import RunFolder
from finetune_trainer.data.prepare import describe
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.run import build_model, prepare
from finetune_trainer.task import IGNORED
from finetune_trainer.writing import write_sequences
from translators import write_translator
from whole import whole_run
from words import write_tokenizer

KIND = "sequence-to-sequence"


def process_of(folder: Path, spec=None, **model):
    """A process of a tiny job; ``model``: fields of its model that are others."""
    wanted = tiny.job(folder, KIND, spec)
    changed = wanted.spec.model_copy(update={"model": wanted.spec.model.model_copy(update=model)})
    return tiny.process_of(wanted.model_copy(update={"spec": changed}), folder / "run")


def material_of(folder: Path, spec=None, **model):
    return prepare(process_of(folder, spec, **model))


def cells(part, column):
    return [part.samples.table[column][row].as_py() for row in part.rows.tolist()]


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch(tmp_path):
    material = material_of(tmp_path)
    part, piece, tokenizer = material.parts["train"], material.prepared.slices["train"], material.companion
    batch = part.batch(0, np.arange(6), is_counted=True)
    texts = tokenizer(cells(piece, "text")[:6], padding=True, return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], texts["input_ids"])
    assert torch.equal(batch.inputs["attention_mask"], texts["attention_mask"])
    targets = tokenizer(text_target=cells(piece, "target")[:6], padding=True, return_tensors="pt")
    kept = targets["attention_mask"].bool()
    assert torch.equal(batch.target, torch.where(kept, targets["input_ids"], IGNORED))
    assert set(batch.inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert torch.equal(material.task.objective.counts(batch), kept.sum(1))
    both = [len(tokenizer(text)["input_ids"]) for role in ("text", "target") for text in cells(piece, role)]
    assert part.lengths.tolist() == np.reshape(both, (2, -1)).max(axis=0).tolist()


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_the_decoder_is_given_what_the_model_itself_would_give_it(tmp_path, name):
    model = ARCHITECTURES[name].build()
    material = material_of(tmp_path, config={"model_type": name, "vocab_size": 30522})
    batch = material.parts["train"].batch(0, np.arange(6), is_counted=True)
    model.config.decoder_start_token_id = material.config.decoder_start_token_id
    model.config.pad_token_id = material.config.pad_token_id
    assert torch.equal(
        batch.inputs["decoder_input_ids"], model.prepare_decoder_input_ids_from_labels(batch.target.clone())
    )


def test_what_is_cut_is_told(tmp_path):
    material = material_of(tmp_path, {"data": {"maxLength": 6}})
    told = describe(material.prepared, material.parts)["lengths"]
    lengths = [
        max(len(material.companion(text)["input_ids"]) for text in both)
        for piece in material.prepared.slices.values()
        for both in zip(cells(piece, "text"), cells(piece, "target"), strict=True)
    ]
    assert (told["max"], told["truncated"]) == (6, sum(length > 6 for length in lengths))


# ── texts that are written ───────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_together_is_what_is_written_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune_trainer.writing.MOST_TOKENS", 16)
    process = tiny.process_of(tiny.job(tmp_path, KIND), tmp_path / "run")
    material = prepare(process)
    model = build_model(process.spec, material)[0].eval()
    part, piece = material.parts["train"], material.prepared.slices["train"]
    written, expected = write_sequences(model, part.batch(0, np.arange(6), is_counted=True), material.companion)
    tokenizer = material.companion
    assert expected == [
        tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) for text in cells(piece, "target")[:6]
    ]
    alone = [write_sequences(model, part.batch(0, np.array([at]), is_counted=True), tokenizer) for at in range(6)]
    assert written == [text for (text,), _ in alone]


DIVISIONS = {"ddp": {}, "fsdp": {"distributed": {"strategy": "fsdp"}}}


def test_texts_and_metrics_of_several_processes_are_those_of_one(tmp_path, group):
    words, chosen = tiny.WORDS[:6], random.Random(0)
    pairs = [
        {role: " ".join(chosen.choices(words, k=chosen.randint(2, 9))) for role in ("text", "target")}
        for _ in range(18)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    asked = {
        "model": {"tokenizer": write_tokenizer(tmp_path / "tokenizer", words).as_uri(), "config": {"vocab_size": 10}},
        "data": {"source": (tmp_path / "data.jsonl").as_uri(), "columns": {"target": "target"}},
        "training": {"maxSteps": 3},
        "strategy": {"learningRate": {"value": 3e-2}},
        "evaluation": {"metrics": ["perplexity", "tokenAccuracy", "rougeL", "rouge1"]},
    }
    group.run(ranks.train_all, 1, {tmp_path / "alone": (KIND, asked)})
    group.run(ranks.train_all, 2, {tmp_path / name: (KIND, asked | spec) for name, spec in DIVISIONS.items()})
    alone, *others = (evaluation_of(tmp_path / name) for name in ("alone", *DIVISIONS))
    assert alone.keys() == {"loss", "perplexity", "tokenAccuracy", "rougeL", "rouge1"}
    assert alone["rouge1"] > 0
    for other in others:
        assert other == pytest.approx(alone, rel=1e-4)


def evaluation_of(run):
    lines = map(json.loads, RunFolder(run).history.read_text().splitlines())
    (found,) = [line["metrics"] for line in lines if line["kind"] == "evaluation"]
    return found


def test_a_marian_checkpoint_with_its_own_tokenizer(tmp_path):
    """Which is a slow one, of two vocabularies; an adapter is merged, and the report shows what the model writes."""
    base = write_translator(tmp_path / "base", seed=0)
    spec = {
        "model": {"source": base.as_uri(), "config": None, "tokenizer": None},
        "data": {"split": {"train": 12, "validation": 4, "test": 2}},
        "strategy": {"lora": {"r": 2}, "learningRate": {"value": 1e-2}},
        "training": {"maxSteps": 3, "loss": {"name": "crossEntropy", "labelSmoothing": 0.1}},
        "evaluation": {"metrics": ["rouge1", "bleu"]},
    }
    process = tiny.process_of(tiny.job(tmp_path, KIND, spec), tmp_path / "run")
    result = whole_run(process)
    assert result.adapter is not None
    assert result.intervals.keys() == {"loss", "rouge1", "bleu"}
    record = json.loads(process.context.run.evaluation.read_text())
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(result.model), AutoTokenizer.from_pretrained(result.model)
    for shown in record["examples"]:
        ids = model.generate(**tokenizer([shown["given"]], truncation=True, return_tensors="pt"), max_new_tokens=11)
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [shown["predicted"]]
    assert {one["expected"] for one in record["worst"]} == {shown["expected"] for shown in record["examples"]}


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


def changed(base: Path, **fields) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


REFUSED = {
    "another end": (
        {"eos_token_id": 5},
        "spec.model.config.eos_token_id: must be 102, by which the tokenizer ends a text",
    ),
    "no start": (
        {"eos_token_id": 102, "decoder_start_token_id": None},
        "spec.model.config.decoder_start_token_id: must be the token from which on a text is written",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_checkpoints_that_end_otherwise(tmp_path, fields, message):
    AutoConfig.for_model(**tiny.T5).save_pretrained(tmp_path / "base")
    changed(tmp_path / "base", **fields)
    with pytest.raises(SpecFault) as fault:
        material_of(tmp_path, source=(tmp_path / "base").as_uri(), config=None)
    assert str(fault.value) == message


def test_a_tokenizer_that_does_not_end_texts(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer", tiny.WORDS, chat_template="none")
    with pytest.raises(SpecFault) as fault:
        material_of(tmp_path, tokenizer=tokenizer.as_uri())
    assert str(fault.value) == "spec.model.tokenizer: must put a token after each text, as T5's does"


def test_a_model_that_writes_no_texts_from_texts(tmp_path):
    process = process_of(tmp_path, config=tiny.BERT)
    material = prepare(process)
    with pytest.raises(SpecFault, match=r"^spec\.model: cannot be used for sequence-to-sequence: "):
        build_model(process.spec, material)


ROWS = {
    "empty": ({"text": "a", "target": " "}, "data.jsonl:1: spec.data.columns.target: is empty; fill it in or remove"),
    "null": ({"text": None, "target": "b"}, "data.jsonl:1: spec.data.columns.text: is null; fill it in or remove"),
    "a number": (
        {"text": "a", "target": 3},
        "data.jsonl:1: spec.data.columns.target: is the number 3, must be a string",
    ),
    "another name": ({"text": "a", "goal": "b"}, 'spec.data.columns.target: data.jsonl:1 has no key "target"'),
}


@pytest.mark.parametrize(("row", "message"), ROWS.values(), ids=ROWS)
def test_rows_that_lack_something(tmp_path, row, message):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row))
    with pytest.raises(DataError) as fault:
        material_of(tmp_path, {"data": {"source": data.as_uri(), "columns": {"target": "target"}}})
    assert str(fault.value).startswith(message)


def test_a_sample_is_a_duplicate_if_both_its_texts_are(tmp_path):
    """Another target of the same text is another sample."""
    rows = [
        ("a b", "c d"),
        ("A  b", "c d"),
        ("a b", "other"),
        ("", "x"),
        ("x", ""),
        *((f"t{n}", "y") for n in range(9)),
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "target": target}) for text, target in rows))
    cleaning = {"empty": "drop", "duplicates": "drop"}
    spec = {"data": {"source": data.as_uri(), "columns": {"target": "target"}, "cleaning": cleaning}}
    material = material_of(tmp_path, spec)
    table = material.prepared.slices["train"].samples.table
    assert table["row"].to_pylist() == [1, 3, *range(6, 15)]
