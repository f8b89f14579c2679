"""Variants of texts: where synonyms come from, translations there and back, and which variant an epoch sees."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GPT2Config

import tiny
from finetune_api import SpecError
from finetune_api.job import BackTranslation, Synonyms, TextAugmentation
from finetune_trainer.data.augment.synonyms import read_synonyms, synonym_file
from finetune_trainer.data.augment.translate import RoundTrip, Translator
from finetune_trainer.data.augment.turns import Turns
from finetune_trainer.data.augment.variants import TextChanges, vary
from finetune_trainer.data.cache import no_beat
from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.errors import DataError, NotFoundError, PlatformError, SpecFault
from finetune_trainer.run import prepare
from translators import LONGEST, write_translator

WORDNET = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.1.dtd">
<LexicalResource xmlns:dc="https://globalwordnet.github.io/schemas/dc/">
  <Lexicon id="{id}" label="tiny" language="en" email="a@example.org" license="-" version="1">
    <LexicalEntry id="{id}-car"><Lemma writtenForm="car" partOfSpeech="n"/><Sense id="{id}-1" synset="{id}-s1"/>
    </LexicalEntry>
    <LexicalEntry id="{id}-auto"><Lemma writtenForm="{auto}" partOfSpeech="n"/><Sense id="{id}-2" synset="{id}-s1"/>
    </LexicalEntry>
    <LexicalEntry id="{id}-motor"><Lemma writtenForm="motor_car" partOfSpeech="n"/><Sense id="{id}-3" synset="{id}-s1"/>
    </LexicalEntry>
    <LexicalEntry id="{id}-alone"><Lemma writtenForm="alone" partOfSpeech="n"/><Sense id="{id}-4" synset="{id}-s2"/>
    </LexicalEntry>
    <Synset id="{id}-s1" ili="" partOfSpeech="n"/><Synset id="{id}-s2" ili="" partOfSpeech="n"/>
  </Lexicon>
</LexicalResource>
"""


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """The package's data folder, with two lexicons."""
    import wn
    from wn._db import clear_connections

    folder = tmp_path_factory.mktemp("wordnet")
    wn.config.data_directory = folder
    for id_, auto in (("one", "auto"), ("two", "Wagen")):
        source = folder / f"{id_}.xml"
        source.write_text(WORDNET.format(id=id_, auto=auto))
        wn.add(source, progress_handler=None)
    clear_connections()
    return folder


@pytest.mark.parametrize(
    ("lexicon", "expected"),
    [
        ("one:1", {"car": ["auto", "motor car"], "auto": ["car", "motor car"]}),
        ("two:1", {"car": ["Wagen", "motor car"]}),
        (None, {"car": ["Wagen", "auto", "motor car"], "auto": ["car", "motor car"]}),
    ],
    ids=["one", "the other", "both"],
)
def test_synonyms_of_a_wordnet(wordnet, lexicon, expected):
    assert read_synonyms(synonym_file(wordnet), ["car", "auto", "alone", "unknown"], lexicon) == expected


def test_synonyms_of_a_file(tmp_path):
    file = tmp_path / "synonyms.tsv"
    file.write_text("\ufeffGood\tfine\tnot bad\n\nfilm\tmovie\t\nunused\tidle\n", encoding="utf-8")
    assert read_synonyms(synonym_file(file), {"good", "film", "x"}, None) == {
        "good": ["fine", "not bad"],
        "film": ["movie"],
    }


BROKEN = {
    "no tab": (
        b"good\tfine\nbad",
        None,
        DataError,
        "synonyms.tsv:2: must be a word, a tab and its synonyms, got 'bad'",
    ),
    "no synonym": (b"good\t", None, DataError, "synonyms.tsv:1: must be a word"),
    "not UTF-8": (b"g\xff\tx", None, DataError, "is not UTF-8"),
    "a lexicon of a file": (b"good\tfine", "one", SpecFault, "spec.data.augmentation.text.synonyms.lexicon: goes with"),
}


@pytest.mark.parametrize(("content", "lexicon", "error", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_synonyms(tmp_path, content, lexicon, error, message):
    file = tmp_path / "synonyms.tsv"
    file.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_synonyms(file, {"good"}, lexicon)
    assert "spec.data.augmentation.text.synonyms." in str(caught.value)


def test_a_broken_wordnet(tmp_path, wordnet, monkeypatch):
    with pytest.raises(SpecFault, match=r"synonyms\.source: .* has no wn.db; name a file"):
        synonym_file(tmp_path)
    with pytest.raises(SpecFault, match=r"synonyms\.lexicon: there is no 'three'; there are: one:1, two:1"):
        read_synonyms(synonym_file(wordnet), ["car"], "three")
    (tmp_path / "wn.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"synonyms\.source: .*wn.db: file is not a database"):
        read_synonyms(synonym_file(tmp_path), ["car"], None)
    monkeypatch.setitem(__import__("sys").modules, "wn", None)
    with pytest.raises(PlatformError, match="needs the package wn"):
        read_synonyms(synonym_file(wordnet), ["car"], None)


# ── translations ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translators")
    return write_translator(folder / "there", 0), write_translator(folder / "back", 1)


def trip(models, cache: Path, temperature: float) -> RoundTrip:
    there, back = (Translator(folder, "f", torch.device("cpu"), temperature) for folder in models)
    return RoundTrip(there, back, cache, no_beat)


def sentences(count: int) -> list[str]:
    chosen = np.random.default_rng(0)
    return [" ".join(chosen.choice(tiny.WORDS[:50], 3)) for _ in range(count)]


def plainly(folder: Path, text: str) -> str:
    """As the documentation of transformers does it, one at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = model.generate(**tokenizer([text], return_tensors="pt"), num_beams=4, do_sample=False, max_length=LONGEST)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)[0]


def test_the_likeliest_translation(models, tmp_path):
    texts = sentences(40)
    found = trip(models, tmp_path, 0)([*texts[:38], ". ".join(texts[38:]), ""], 1)
    wanted = [plainly(models[1], plainly(models[0], text)) for text in [*texts[:38], f"{texts[38]}.", texts[39]]]
    assert found == [*(back or text for back, text in zip(wanted, texts[:38], strict=False)), " ".join(wanted[38:]), ""]


def test_drawn_translations(models, tmp_path):
    texts = sentences(40)
    first = trip(models, tmp_path / "a", 0.9)
    found = {key: first(texts, key) for key in (1, 2)}
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    assert trip(models, tmp_path / "b", 0.9)(texts, 1) == found[1], "a function of texts, models and key"
    assert torch.equal(torch.get_rng_state(), state), "the run's randomness is left alone"
    assert found[1] != found[2]
    assert trip(models, tmp_path / "a", 0.8)(texts, 1) != found[1]


def test_a_translation_is_made_once(models, tmp_path, monkeypatch):
    texts = sentences(5)
    found = trip(models, tmp_path, 0.9)(texts, 1)
    monkeypatch.setattr(Translator, "translate", None)
    assert trip(models, tmp_path, 0.9)(texts, 1) == found
    for other in (trip(models, tmp_path, 0.5), trip(models[::-1], tmp_path, 0.9)):
        with pytest.raises(TypeError):
            other(texts, 1)


# ── variants ─────────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES = TextAugmentation(variants=3, swap=0.3, deletion=0.2)
TABLE = pa.table({"text": sentences(30), "text_pair": sentences(60)[30:], "label": ["a"] * 30})
ROWS = np.array([3, 4, 9, 27, 0])


def varied(cache: Path, spec: TextAugmentation = CHANGES, *, seed: int = 0, rows=ROWS, **rest):
    changes = TextChanges(spec, seed, rest.get("synonyms"), rest.get("round_trip"))
    table, _ = vary(TABLE, rows, {"k": 1}, changes, cache=cache, beat=no_beat)
    return table.to_pydict()


def test_the_table_of_variants(tmp_path):
    found = varied(tmp_path)
    assert found.keys() == {"text", "text_pair"}
    assert [len(texts) for texts in found.values()] == [20, 20]
    for name, texts in found.items():
        original = TABLE[name].take(ROWS).to_pylist()
        assert texts[:5] == original
        for version in range(1, 4):
            variants = texts[5 * version : 5 * version + 5]
            assert all(set(one.split()) <= set(text.split()) for one, text in zip(variants, original, strict=True))
            assert variants != original
    assert found["text"][5:10] != found["text"][10:15]


def test_a_variant_is_a_function_of_seed_and_index(tmp_path, monkeypatch):
    """Whether it is made whole or in chunks, now or before."""
    found = varied(tmp_path / "a")
    assert varied(tmp_path / "a") == found
    assert varied(tmp_path / "c", seed=1) != found
    monkeypatch.setattr("finetune_trainer.data.augment.variants._CHUNK", 2)
    assert varied(tmp_path / "b") == found
    fewer = varied(tmp_path / "d", rows=ROWS[:4])
    assert fewer["text"][4:8] == found["text"][5:9]


def test_variants_of_everything(models, tmp_path):
    """Words are changed after the translation, and synonyms are found of what it brings."""
    back = TextAugmentation(variants=2, backTranslation=BackTranslation(forward="hf://a/b", backward="hf://a/b"))
    translated = varied(tmp_path, back, round_trip=trip(models, tmp_path, 0.9))
    word = next(
        word for word in translated["text"][7].split() if word not in " ".join(TABLE["text"].to_pylist()).split()
    )
    file = tmp_path / "synonyms.tsv"
    file.write_text(f"{word}\tREPLACED\n")
    both = back.model_copy(update={"synonyms": Synonyms(source="hf://a/b", rate=1)})
    found = varied(tmp_path, both, synonyms=file, round_trip=trip(models, tmp_path, 0.9))
    assert found["text"][7].split() == ["REPLACED" if each == word else each for each in translated["text"][7].split()]
    file.write_text(f"{word}\tOTHERWISE\n")
    assert "OTHERWISE" in varied(tmp_path, both, synonyms=file, round_trip=trip(models, tmp_path, 0.9))["text"][7]


def test_the_turns():
    turns = Turns(seed=3, samples=50, versions=4)
    epochs = np.stack([turns.rows(epoch) for epoch in range(4)])
    assert (np.sort(epochs, axis=0) == np.arange(4)[:, None] * 50 + np.arange(50)).all(), "each version once"
    assert (turns.rows(4) == epochs[0]).all()
    assert len(set(epochs[0] // 50)) == 4, "samples start with different ones"
    assert (Turns(4, 50, 4).rows(0) != epochs[0]).any()


AUGMENTED = {"data": {"augmentation": {"text": {"variants": 3, "deletion": 0.4, "swap": 0.2}}}}


@pytest.mark.parametrize("kind", ["text-classification", "text-regression"])
def test_the_lengths_of_an_epoch_are_true(tmp_path, kind):
    """A batch by tokens never holds more than it may, and its target is that of the text it came from."""
    parts = prepare(tiny.process_of(tiny.job(tmp_path, kind, AUGMENTED, samples=60), tmp_path / "run")).parts
    plain = prepare(tiny.process_of(tiny.job(tmp_path, kind, samples=60), tmp_path / "plain")).parts
    train, lengths = parts["train"], []
    assert len(train) == len(plain["train"])
    for epoch in range(4):
        part = train.at(epoch)
        lengths.append(part.lengths)
        batches = epoch_batches(len(part), part.padded_lengths, BatchSize(None, 64), seed=0, epoch=epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(part)))
        for indices in batches:
            batch = part.batch(epoch, indices, is_counted=True)
            width = batch.inputs["input_ids"].shape[1]
            assert width * len(indices) <= 64
            mask = batch.inputs.get("attention_mask", torch.ones(len(indices), width))
            assert mask.sum(1).tolist() == part.lengths[indices].tolist()
            assert torch.equal(batch.target, plain["train"].batch(0, indices, is_counted=True).target)
    assert any((one != lengths[0]).any() for one in lengths)
    assert (np.max(lengths, axis=0) == plain["train"].lengths).all(), "one of them is the original"
    for name in ("validation",):
        assert (parts[name].at(2).lengths == plain[name].lengths).all(), "the others stay as they are"


FIELD = "spec.data.augmentation.text"
REFUSED = {
    "rate above 1": ({"text": {"deletion": 1.5}}, "deletion: must be ≤ 1, got 1.5"),
    "rate below 0": ({"text": {"synonyms": {"source": "file:///x", "rate": -1}}}, "synonyms.rate: must be ≥ 0"),
    "nothing asked for": ({"text": {"variants": 3}}, "text: must have synonyms, swap, deletion or backTranslation"),
    "no variants": ({"text": {"variants": 0, "swap": 1}}, "variants: must be ≥ 1, got 0"),
    "one model": ({"text": {"backTranslation": {"forward": "file:///x"}}}, "backTranslation.backward: is required"),
    "no source": ({"text": {"synonyms": {}}}, "synonyms.source: is required"),
    "images of a text": ({"image": {"verticalFlip": 1}}, "image: goes with task image-… or object-detection only"),
    "mixup of a text": ({"image": {"mixup": 1}}, "image: goes with task"),
}


@pytest.mark.parametrize(("augmentation", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_spec_may_not_say(tmp_path, augmentation, message):
    with pytest.raises(SpecError) as caught:
        tiny.job(tmp_path, "text-classification", {"data": {"augmentation": augmentation}})
    assert message in str(caught.value)
    assert "spec.data.augmentation." in str(caught.value)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_only_classes_are_mixed(tmp_path, option):
    spec = {"task": "object-detection", "data": {"augmentation": {"image": {option: 1}}}}
    with pytest.raises(SpecError, match=rf"image\.{option}: goes with task image-classification only"):
        tiny.job(tmp_path, "image-classification", spec)


def test_texts_that_are_the_target_are_not_changed(tmp_path):
    with pytest.raises(SpecError, match=r"augmentation\.text: goes with task text-classification or text-regression"):
        tiny.job(tmp_path, "causal-lm", AUGMENTED)


def wrong_models(folder: Path) -> dict[str, tuple[dict, type[Exception], str]]:
    empty, gpt, torn = folder / "empty", folder / "gpt", folder / "torn"
    empty.mkdir()
    torn.mkdir()
    (torn / "config.json").write_text('{"model_type": ')
    GPT2Config(n_layer=1).save_pretrained(gpt)
    there = write_translator(folder / "there", 0)
    bare = folder / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((there / "config.json").read_text())

    def both(forward, backward):
        return {"backTranslation": {"forward": f"file://{forward}", "backward": f"file://{backward}"}}

    return {
        "not there": (both(folder / "no", there), NotFoundError, f"{FIELD}.backTranslation.forward: file://"),
        "no model": (both(there, empty), NotFoundError, f"{FIELD}.backTranslation.backward: .* has no config.json"),
        "does not translate": (both(gpt, there), SpecFault, f"{FIELD}.backTranslation.forward: must be a translation"),
        "torn": (both(there, torn), SpecFault, f"{FIELD}.backTranslation.backward: .*torn"),
        "no weights": (both(bare, there), NotFoundError, f"{FIELD}.backTranslation.forward: .*bare"),
        "no synonyms": (
            {"synonyms": {"source": f"file://{folder}/no.tsv"}},
            NotFoundError,
            f"{FIELD}.synonyms.source: file://.* is not there",
        ),
    }


def test_what_is_not_there_is_told_before_the_first_step(tmp_path):
    for text, error, message in wrong_models(tmp_path).values():
        job = tiny.job(tmp_path, "text-classification", {"data": {"augmentation": {"text": text}}})
        with pytest.raises(error, match=message):
            prepare(tiny.process_of(job, tmp_path / "run"))
