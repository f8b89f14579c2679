"""BLEU and ROUGE against torchmetrics, in batches; and texts that a model writes in an evaluation."""

import random

import numpy as np
import pytest
import torch
from torchmetrics.text import BLEUScore, ROUGEScore

import tiny
from finetune_trainer.metrics import TEXT_SCORES
from finetune_trainer.run import build_model, prepare
from finetune_trainer.task import IGNORED
from finetune_trainer.text_scores import TextScores
from finetune_trainer.writing import answer_start, write_answers
from whole import whole_run

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "it", "is", "was", "12", "red"]


def texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts, and others that share most of their words."""
    chosen, written, expected = random.Random(seed), [], []
    for _ in range(count):
        words = chosen.choices(WORDS, k=chosen.randint(1, 15))
        expected.append(" ".join(words))
        changed = [word for word in words if chosen.random() < 0.9] or ["The"]
        written.append(", ".join(changed) if chosen.random() < 0.3 else " ".join(changed) + " a red")
    return written, expected


CASES = {
    "many": texts(200),
    "one": texts(1),
    "alike": (["the cat sat on the mat"], ["the cat sat on the mat"]),
    "nothing in common": (["dog"], ["a red cat"]),
    "nothing written": (["", "a cat sat on it"], ["a cat", "a cat sat on it"]),
    "short": (["a"], ["a"]),
    "upper case and signs": (["The CAT-12!"], ["the cat 12"]),
}


@pytest.mark.parametrize(("written", "expected"), CASES.values(), ids=CASES)
def test_scores_are_those_of_torchmetrics(written, expected):
    scores = TextScores()
    for start in range(0, len(written), 7):
        scores.update(written[start : start + 7], expected[start : start + 7])
    rouge = ROUGEScore(rouge_keys=("rouge1", "rouge2", "rougeL"))
    rouge.update(written, expected)
    theirs = {name: rouge.compute()[f"{name}_fmeasure"].item() for name in ("rouge1", "rouge2", "rougeL")}
    reference = BLEUScore()
    reference.update(written, [[each] for each in expected])
    assert scores.compute() == pytest.approx({"bleu": reference.compute().item(), **theirs}, abs=1e-6)


def test_no_text():
    scores = TextScores()
    scores.update([], [])
    assert scores.compute() == dict.fromkeys(TEXT_SCORES, 0.0)


NO = IGNORED
STARTS = {
    "an answer": ([NO, NO, 5, 6], 2),
    "the last of two answers": ([NO, 5, NO, NO, 6, 7], 4),
    "everything is learned": ([4, 5, 6, 7, 8], 2),
    "one token": ([4], 1),
}


@pytest.mark.parametrize(("wanted", "start"), STARTS.values(), ids=STARTS)
def test_where_an_answer_starts(wanted, start):
    assert answer_start(torch.tensor(wanted)) == start


@pytest.mark.parametrize("columns", [{}, {"prompt": "other", "completion": "text"}], ids=["texts", "answers"])
def test_texts_that_a_language_model_writes_are_measured(tmp_path, columns):
    """Of every sample, with intervals, in batches as one by one."""
    values = []
    for size in (1, 7):
        spec = {
            "data": {"columns": columns, "split": {"train": 10, "validation": 4, "test": 4}},
            "training": {"maxSteps": 1},
            "evaluation": {"metrics": ["rougeL", "bleu", "rouge1"], "batchSize": size},
        }
        if columns:
            spec["data"]["columns"] = {**columns, "text": "unused"}
        result = whole_run(tiny.process_of(tiny.job(tmp_path, "causal-lm", spec), tmp_path / f"run {size}"))
        assert result.intervals.keys() == {"loss", "rougeL", "bleu", "rouge1"}
        values.append(dict(result.metrics))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_what_is_written_is_what_the_model_would_write_alone(tmp_path):
    """Prompts of unlike lengths, padded on the left, beside each by itself."""
    process = tiny.process_of(tiny.job(tmp_path, "causal-lm"), tmp_path / "run")
    material = prepare(process)
    model, _ = build_model(process.spec, material)
    part = material.parts["train"]
    batch = part.batch(0, np.arange(6), is_counted=True)
    together = write_answers(model.eval(), batch, material.companion)
    alone = [
        write_answers(model, part.batch(0, np.array([index]), is_counted=True), material.companion)
        for index in range(6)
    ]
    assert together[1] == [expected for _, (expected,) in alone]
    for whole, (own, _) in zip(together[0], alone, strict=True):
        assert whole.startswith(own[0])
