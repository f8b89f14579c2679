"""Texts to token ids: as the tokenizer gives them one by one, made once, in one flat array."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from finetune_trainer.data import encode
from finetune_trainer.data.encode import encode_texts

CHOSEN = random.Random(0)
TEXTS = [tiny.sentence(CHOSEN) for _ in range(50)] + ["", " ", "a", "ä ö 你好 🙂 ﬁ", "x" * 300, "a" * 9 + " b" * 90]
PAIRS = TEXTS[::-1]


@pytest.fixture(scope="module")
def bert():
    return AutoTokenizer.from_pretrained(tiny.TOKENIZER)


@pytest.fixture(scope="module")
def plain():
    """A tokenizer without special tokens around a text, as language models have it; 1 ends a text."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, **{f"w{n}": n + 2 for n in range(50)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<end>",
        model_input_names=["input_ids", "attention_mask"],
    )


def encoded(tokenizer, cache, texts, pairs=None, *, max_length=16, end_id=None, key="texts", beat=lambda: None):
    columns = {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}
    table = pa.table({**columns, "label": ["x"] * len(texts)})
    return encode_texts(table, tokenizer, max_length=max_length, end_id=end_id, key={"of": key}, cache=cache, beat=beat)


def ids_of(found) -> list[list[int]]:
    return [found.ids[start:end].tolist() for start, end in zip(found.offsets, found.offsets[1:], strict=False)]


def types_of(found) -> list[list[int]]:
    return [
        [int(position >= second) for position in range(length)]
        for length, second in zip(found.lengths, found.second, strict=True)
    ]


@pytest.mark.parametrize("max_length", [3, 16, 512])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_as_one_by_one(bert, tmp_path, monkeypatch, max_length, chunk):
    monkeypatch.setattr(encode, "_CHUNK", chunk)
    found = encoded(bert, tmp_path, TEXTS, max_length=max_length)
    wanted = [bert(text, truncation=True, max_length=max_length)["input_ids"] for text in TEXTS]
    assert ids_of(found) == wanted
    assert found.lengths.tolist() == list(map(len, wanted))
    assert found.second.tolist() == list(map(len, wanted)), "nothing is a second text"
    assert (found.ids.dtype, found.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("max_length", [5, 16, 512])
def test_pairs_as_one_by_one(bert, tmp_path, max_length):
    found = encoded(bert, tmp_path, TEXTS, PAIRS, max_length=max_length)
    pairs = zip(TEXTS, PAIRS, strict=True)
    wanted = [bert([one], [other], truncation=True, max_length=max_length) for one, other in pairs]
    assert ids_of(found) == [each["input_ids"][0] for each in wanted]
    assert types_of(found) == [each["token_type_ids"][0] for each in wanted]
    assert max(found.lengths) <= max_length


ENDED = {
    "every text ends": ([["w1", "w2"], ["w3"]], 8, [[3, 4, 1], [5, 1]]),
    "none ends twice": ([["w1", "<end>"]], 8, [[3, 1]]),
    "an empty text is its end": ([[]], 8, [[1]]),
    "one that is cut does not end": ([["w1"] * 9], 4, [[3, 3, 3]]),
    "one that just fits ends": ([["w1"] * 3], 4, [[3, 3, 3, 1]]),
}


@pytest.mark.parametrize(("texts", "max_length", "ids"), ENDED.values(), ids=ENDED)
def test_end_of_text(plain, tmp_path, texts, max_length, ids):
    found = encoded(plain, tmp_path, [" ".join(words) for words in texts], max_length=max_length, end_id=1)
    assert (ids_of(found), found.second) == (ids, None)


class Counted:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.texts = tokenizer, 0

    def __call__(self, text, **options):
        self.texts += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_texts_are_tokenized_once(bert, tmp_path):
    """A tokenizer remembers how it truncated last; that must not make it another one."""
    bert("a text", truncation=True, max_length=7)
    counted, beats = Counted(bert), []
    first = encoded(counted, tmp_path, TEXTS, beat=lambda: beats.append(1))
    assert (counted.texts, len(beats)) == (len(TEXTS), 1)
    again = encoded(counted, tmp_path, TEXTS, beat=lambda: beats.append(1))
    assert (counted.texts, len(beats)) == (len(TEXTS), 1)
    assert ids_of(again) == ids_of(first)
    assert isinstance(again.ids, np.memmap), "mapped, not read"


AGAIN = {
    "other texts": {"key": "others"},
    "other length": {"max_length": 8},
    "with an end": {"end_id": 102},
}


@pytest.mark.parametrize("change", AGAIN.values(), ids=AGAIN)
def test_what_makes_it_another_entry(bert, tmp_path, change):
    counted = Counted(bert)
    encoded(counted, tmp_path, TEXTS)
    encoded(counted, tmp_path, TEXTS, **change)
    assert counted.texts == 2 * len(TEXTS)


def test_another_tokenizer_makes_another_entry(bert, plain, tmp_path):
    assert ids_of(encoded(bert, tmp_path, TEXTS)) != ids_of(encoded(plain, tmp_path, TEXTS))


def test_a_damaged_entry_is_made_again(bert, tmp_path, caplog):
    counted = Counted(bert)
    wanted = ids_of(encoded(counted, tmp_path, TEXTS))
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (entry / "ids.bin").write_bytes(b"short")
    assert ids_of(encoded(counted, tmp_path, TEXTS)) == wanted
    assert counted.texts == 2 * len(TEXTS)
    size = json.loads((entry / "manifest.json").read_text())["ids.bin"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{entry} is damaged and is made again: ids.bin has 5 bytes instead of {size}"
    ]


CUT = {
    "exactly at the limit": ("w1 w2 w3 w4", None, False),
    "one more": ("w1 w2 w3 w4 w5", None, True),
    "shorter": ("w1", None, False),
    "room for the end": ("w1 w2 w3", 1, False),
    "no room for the end": ("w1 w2 w3 w4", 1, True),
}


@pytest.mark.parametrize(("text", "end_id", "cut"), CUT.values(), ids=CUT)
def test_texts_that_were_cut_are_known(plain, tmp_path, text, end_id, cut):
    found = encoded(plain, tmp_path, [text, "w9"], max_length=4, end_id=end_id)
    assert found.truncated.tolist() == [cut, False]
