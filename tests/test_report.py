"""The report page and the model card, made from folders such as real runs leave behind."""

import ast
import base64
import io
import json
import math
import re
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune_api import parse_job
from finetune_api.status import Result
from finetune_api.wiring import RunFolder
from finetune_trainer.report import tables, words, write_model_card, write_report
from finetune_trainer.report.curves import MAX_POINTS
from finetune_trainer.report.history import envelope, moving_mean, read_history, thin
from finetune_trainer.report.records import (
    AttemptEnd,
    AttemptStart,
    Example,
    FinalEvaluation,
    Preparation,
    read_attempts,
)

EVIL = "<script>alert('x')</script>&\"|`"
NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SECTIONS = ("training", "evaluation", "examples", "data", "parameters", "attempts", "settings", "spec")
VOID = {"meta", "img", "br", "link", "hr", "input"}
CURVES = {"loss", "learning-rate", "gradient-norm"}


def make_job(task="text-classification", **spec):
    base = {
        "task": task,
        "model": {"source": "hf://owner/base"},
        "data": {"source": "file:///data/notes.csv"},
        "training": {"epochs": 2, "seed": 7},
        "earlyStopping": {"metric": "f1", "patience": 2},
    }
    metadata = {"name": "triage", "namespace": "clinic"}
    return parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": base | spec}
    )


def result(reason="Completed", **metrics):
    return Result(reason=reason, model="/somewhere/on/this/machine/model", metrics=metrics)


def step(number, loss=0.5):
    return {
        "kind": "step",
        "step": number,
        "epoch": number / 50,
        "loss": loss,
        "learningRate": 1e-5,
        "gradNorm": 1 + 1 / number,
        "samples": number * 32,
    }


def evaluation(number, improved=True, **metrics):
    return {"kind": "evaluation", "step": number, "epoch": number / 50, "metrics": metrics, "improved": improved}


def write_lines(path, lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def thumbnail():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def course(metrics):
    """A hundred steps with an evaluation every 25; the third is the best."""
    lines = []
    for number in range(1, 101):
        lines.append(step(number, 0.3 + math.exp(-number / 20)))
        if number % 25 == 0:
            lines.append(evaluation(number, number <= 75, loss=1 / number, **dict.fromkeys(metrics, number / 110)))
    return lines


def make_run(root, *, metrics=("accuracy", "f1"), preparation=None, **final):
    run = RunFolder(root)
    write_lines(run.history, course(metrics), torn='{"kind":"step","st')
    scores = {"loss": 0.3312, **dict.fromkeys(metrics, 0.9)}
    run.evaluation.write_text(
        json.dumps({"part": "test", "metrics": scores, "validation": dict.fromkeys(scores, 0.95), "worst": [], **final})
    )
    run.preparation.write_text(
        json.dumps(
            {
                "samples": {"train": 700, "validation": 200, "test": 100},
                "lengths": {"p50": 61, "p90": 143, "p99": 256, "max": 1120, "truncated": 37},
                "parameters": {"total": 1000, "trainable": 250},
                "rates": [
                    {"group": "layer 3", "learningRate": 1e-5, "parameters": 200},
                    {"group": "head", "learningRate": 2e-5, "parameters": 50},
                ],
                **(preparation or {}),
            }
        )
    )
    write_lines(
        run.attempts,
        [
            {"event": "start", "attempt": 1, "time": "2025-03-01T09:00:00Z", "fromStep": 0, "worldSize": 2},
            {
                "event": "end",
                "attempt": 1,
                "time": "2025-03-01T10:20:00Z",
                "step": 60,
                "exitCode": 143,
                "cause": "Preempted",
                "message": EVIL,
            },
            {"event": "start", "attempt": 2, "time": "2025-03-01T11:00:00Z", "fromStep": 50, "worldSize": 2},
        ],
        torn='{"event":',
    )
    return run


def worst(**fields):
    return {"text": None, "textPair": None, "image": None, "origin": "train.csv:17", "loss": 3.2} | fields


def classification_run(root, labels=("a", EVIL), **final):
    size = len(labels)
    matrix = [[40 if i == j else (i + j) % 3 for j in range(size)] for i in range(size)]
    examples = [
        worst(text=f"{EVIL} " + "long " * 100, textPair="second", expected=labels[0], predicted=labels[1]),
        worst(text=EVIL, expected=[labels[0]], predicted=[]),
    ]
    counts = {part: dict.fromkeys(labels, 5) for part in ("train", "validation", "test")}
    fields = {"labels": labels, "confusion": matrix, "worst": examples} | final
    return make_run(root, preparation={"labels": labels, "labelCounts": counts}, **fields)


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.links, self.words = [], [], [], [], []
        self.headings = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("href", "src", "xlink:href", "action", "data") if name in given]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()[0]}"

    def handle_data(self, data):
        assert "style" in self.open or "script" not in self.open
        self.words.append(data)

    def all(self, tag):
        return [given for name, given in self.tags if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def check_page(path):
    """What holds for every report: balanced, complete, accessible and sealed."""
    text = path.read_text()
    page = Page(text)
    assert {given.get("id") for given in page.all("section")} == set(SECTIONS)
    assert [link for link in page.links if not link.startswith(("#", "data:image/"))] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []
    assert page.all("script") == []
    assert "default-src 'none'" in str(page.all("meta"))
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert all(given.get("alt") for given in page.all("img"))
    assert all(given.get("aria-label") for given in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("h1")) == 1
    return page


def check_pictures(run, names):
    found = {path.stem: path for path in run.pictures.iterdir()}
    assert set(found) == names
    for path in found.values():
        with Image.open(path) as picture:
            picture.load()
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, f"{path.name} is empty"


def test_classification(tmp_path):
    run = classification_run(tmp_path)
    path = write_report(run, make_job(), result("EarlyStopped", loss=0.3312, accuracy=0.9), now=NOW)
    assert path == run.report
    page = check_page(path)
    check_pictures(run, CURVES | {"metric-accuracy", "metric-f1", "confusion"})
    for said in (
        "Training stopped early, after 100 steps: F1 had not improved in 2 evaluations.",
        "The model is the best checkpoint, that of step 75.",
        "Accuracy, test 0.9000 0.9500 on validation",
        "2 h 20 min running",
        "preempted: it was asked to leave",
        "37 texts (3.7 %) were longer",
        "250 of 1,000 parameters (25.0 %) are trained",
        "source: file:///data/notes.csv",
        EVIL,
    ):
        assert said in page.text


def test_what_users_wrote_is_escaped_everywhere(tmp_path):
    run = classification_run(tmp_path, labels=(EVIL, "$x^2$", "猫 \N{GRINNING FACE}"))
    job = make_job(data={"source": f"file:///{EVIL.replace(' ', '_')}"})
    check_page(write_report(run, job, result("Completed", **{EVIL: 0.5}), now=NOW))


@pytest.mark.parametrize(
    "image",
    [
        "http://example.com/a.png",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,AA" onerror="x',
        "x" * 500_000,
    ],
    ids=["server", "svg", "quote", "huge"],
)
def test_an_image_that_is_no_thumbnail_is_left_out(image):
    rows = tables.example_rows(FinalEvaluation(worst=(Example(image=image),)))
    assert [row.image for row in rows] == [None]


def test_images_are_shown(tmp_path):
    run = classification_run(tmp_path, worst=[worst(image=thumbnail(), expected="a", predicted="b")])
    page = check_page(write_report(run, make_job("image-classification"), result(accuracy=0.9), now=NOW))
    assert [given["alt"] for given in page.all("img")] == ["a taken for b"]


def test_many_classes_are_told_by_their_most_confused_pairs(tmp_path):
    run = classification_run(tmp_path, labels=tuple(f"intent {i}" for i in range(30)))
    page = check_page(write_report(run, make_job(), result(accuracy=0.9), now=NOW))
    check_pictures(run, CURVES | {"metric-accuracy", "metric-f1"})
    assert "the 20 most frequent of" in page.text
    assert "the 20 of 30 classes with the lowest F1" in page.text


def test_regression(tmp_path):
    expected = np.random.default_rng(0).normal(size=300)
    residuals = {"expected": expected.tolist(), "predicted": (expected * 0.9 + 0.1).tolist()}
    examples = [worst(text="t", expected=3.25, predicted=-0.51)]
    run = make_run(tmp_path, metrics=("mae", "mse"), residuals=residuals, worst=examples)
    page = check_page(write_report(run, make_job("text-regression"), result(mae=0.1), now=NOW))
    check_pictures(run, CURVES | {"metric-mae", "metric-mse", "predictions", "errors"})
    assert "−0.51" in page.text


def test_language_model(tmp_path):
    run = make_run(tmp_path, metrics=("perplexity",), worst=[worst(text="once upon a time")])
    page = check_page(write_report(run, make_job("causal-lm"), result(perplexity=12.3456), now=NOW))
    check_pictures(run, CURVES | {"metric-perplexity"})
    assert "12.35" in page.text
    assert "Predicted" not in page.text


def test_an_empty_folder_has_a_page(tmp_path):
    run = RunFolder(tmp_path / "run")
    page = check_page(write_report(run, make_job(), None, now=NOW))
    assert "The run is not finished: nothing is trained yet." in page.text
    assert not run.pictures.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"metrics": 3}', "\ud800"], ids=repr)
def test_a_broken_file_is_named_and_left_out(tmp_path, content):
    run = RunFolder(tmp_path)
    for path in (run.evaluation, run.preparation, run.history, run.attempts):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    page = check_page(write_report(run, make_job(), None, now=NOW))
    assert "evaluation.json could not be read" in page.text


def test_numbers_that_are_none(tmp_path):
    run = RunFolder(tmp_path)
    lines = [step(1), step(2, math.nan), step(3, None), step(4, "oops"), step(5, math.inf)]
    write_lines(run.history, [*lines, evaluation(5, False, loss=math.nan, accuracy=None), {"kind": "step"}, 3])
    run.evaluation.write_text(json.dumps({"metrics": {"loss": math.nan}, "worst": [worst(loss=math.inf)]}))
    page = check_page(write_report(run, make_job(), None, now=NOW))
    assert "5 steps trained so far" in page.text


def test_a_run_of_one_step(tmp_path):
    run = RunFolder(tmp_path)
    write_lines(run.history, [step(1), evaluation(1, loss=0.5, accuracy=0)])
    check_page(write_report(run, make_job(), result(accuracy=0), now=NOW))
    check_pictures(run, CURVES | {"metric-accuracy"})


def test_threads_do_not_disturb_each_other(tmp_path):
    runs = [classification_run(make_folder(tmp_path / str(i))) for i in range(3)]
    threads = [threading.Thread(target=write_report, args=(r, make_job(), None), kwargs={"now": NOW}) for r in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.report.read_text() for run in runs}) == 1


def make_folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("lines", "steps", "best"),
    [
        pytest.param([step(1), step(2)], [1, 2], None, id="plain"),
        pytest.param([step(1), step(2), step(3), step(2, 0.1)], [1, 2], None, id="resumed, not yet as far"),
        pytest.param([step(1), evaluation(1), step(2), evaluation(2), step(2)], [1, 2], 1, id="evaluation undone"),
        pytest.param([step(2), evaluation(2), evaluation(2, False)], [2], 2, id="evaluated again"),
        pytest.param([evaluation(4), step(8), evaluation(9, False)], [8], 4, id="steps logged rarely"),
    ],
)
def test_later_lines_supersede(tmp_path, lines, steps, best):
    write_lines(tmp_path / "history.jsonl", lines)
    history = read_history(tmp_path / "history.jsonl")
    assert history.steps.step.tolist() == steps
    assert (history.best and history.best.step) == best


def test_a_long_history_is_thinned_and_loses_no_spike(tmp_path):
    run = RunFolder(tmp_path)
    write_lines(run.history, [step(number, 9.0 if number == 12_345 else 0.5) for number in range(1, 20_001)])
    history = read_history(run.history)
    assert history.steps.step.size == 20_000
    starts, low, high = envelope(history.steps.step, history.steps.loss, MAX_POINTS)
    assert (starts.size, low.min(), high.max()) == (MAX_POINTS, 0.5, 9.0)
    x, _ = thin(history.steps.step, history.steps.loss, 100)
    assert (x.size, x[0], x[-1]) == (100, 1, 20_000)
    assert write_report(run, make_job(), None, now=NOW).stat().st_size < 300_000


def test_moving_mean_shifts_nothing():
    assert moving_mean(np.array([0.0, 3.0, 6.0, 3.0, 0.0]), 3).tolist() == [1.5, 3, 4, 3, 1.5]
    assert moving_mean(np.array([1.0, 2.0]), 1).tolist() == [1, 2]


def test_attempts(tmp_path):
    begin = {"event": "start", "time": "2025-03-01T09:00:00Z", "worldSize": 4}
    end = {
        "event": "end",
        "attempt": 2,
        "time": "2025-03-01T09:00:30",
        "step": 70,
        "exitCode": 75,
        "cause": "Infrastructure",
    }
    lines = [
        begin | {"attempt": 1},
        begin | {"attempt": 2, "fromStep": 40},
        end,
        begin | {"attempt": 3, "fromStep": 70},
    ]
    write_lines(tmp_path / "attempts.jsonl", lines)
    attempts = read_attempts(tmp_path / "attempts.jsonl")
    rows = tables.attempt_rows(attempts, 90, finished=True, now=datetime(2025, 3, 1, 10, tzinfo=UTC))
    assert [(r.number, r.duration, r.from_step, r.to_step, r.exit_code, r.ending) for r in rows] == [
        (1, "—", "0", "≥ 40", "—", "killed without a word"),
        (2, "30.0 s", "40", "70", "75", "a node, a peer or the network was lost"),
        (3, "1 h 0 min", "70", "90", "—", "finished"),
    ]


def test_class_scores_and_pairs():
    names, matrix = ("a", "b", "c"), ((8, 2, 0), (1, 9, 0), (0, 0, 0))
    scores = tables.class_scores(names, matrix)
    assert [(s.name, s.precision, s.recall, round(s.f1, 4), s.samples) for s in scores] == [
        ("a", 8 / 9, 0.8, 0.8421, 10),
        ("b", 9 / 11, 0.9, 0.8571, 10),
        ("c", None, None, 0.0, 0),
    ]
    assert tables.confused_pairs(names, matrix) == [
        tables.ConfusedPair("a", "b", 2, 0.2),
        tables.ConfusedPair("b", "a", 1, 0.1),
    ]


def test_class_counts():
    counts = {"train": {"a": 5, "b": 10}, "test": {"b": 1, "c": 2}}
    parts, rows = tables.class_counts(Preparation(labels=("a", "b"), label_counts=counts))
    assert parts == ("train", "test")
    assert [(row.name, row.counts, row.share) for row in rows] == [
        ("b", (10, 1), 1.0),
        ("a", (5, 0), 0.5),
        ("c", (0, 2), 0.0),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91344, "0.9134"), (0.9, "0.9000"), (23.4, "23.40"), (-0.5, "−0.5000"), (12_345.6, "12,346"), (3.2e-5, "3.2e-5"),
     (0, "0"), (math.inf, "∞"), (math.nan, "—"), (None, "—"), (1e12, "1e12")],
)  # fmt: skip
def test_measure(value, text):
    assert words.measure(value) == text


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (words.rate, 2e-5, "2e-5"),
        (words.rate, 0.01, "0.01"),
        (words.rate, 0.0, "0"),
        (words.metric_name, "f1Weighted", "F1 weighted"),
        (words.metric_name, "auroc", "AUC-ROC"),
        (words.metric_name, "perplexity", "Perplexity"),
        (words.duration, 59.94, "59.9 s"),
        (words.duration, 3599.7, "1 h 0 min"),
        (words.duration, 100_000, "1 d 3 h"),
        (words.target, ("a", "b"), "a, b"),
        (words.target, 2.0, "2"),
    ],
)
def test_words(function, value, text):
    assert function(value) == text


def test_share_is_never_rounded_to_all_or_nothing():
    assert [words.share(part, 10_000) for part in (0, 1, 9_999, 10_000)] == ["0 %", "0.1 %", "99.9 %", "100 %"]


def test_an_unfinished_run_says_why():
    start = AttemptStart(attempt=2, time=NOW)
    end = AttemptEnd(
        attempt=2, time=NOW + timedelta(1), step=5, exit_code=137, cause="OutOfMemory", message="Use less."
    )
    history = read_history(Path("/nowhere"))
    said = words.outcome(make_job(), None, history, [(start, end)])
    assert said == "The run is not finished: nothing is trained yet; attempt 2 ended, it ran out of memory. Use less."


TASKS = {
    "text-classification": ("text-classification", {}),
    "text-regression": ("text-classification", {}),
    "causal-lm": ("text-generation", {}),
    "image-classification": ("image-classification", {}),
    "token-classification": ("token-classification", {}),
    "sequence-to-sequence": ("text-generation", {}),
    "multi-label": ("text-classification", {"data": {"source": "hf://owner/data", "multiLabel": True}}),
    "pairs": ("text-classification", {"data": {"source": "hf://owner/data", "columns": {"textPair": "second"}}}),
}


@pytest.mark.parametrize("name", TASKS)
def test_model_card(tmp_path, name):
    pipeline, spec = TASKS[name]
    job = make_job(name if "-" in name and name != "multi-label" else "text-classification", **spec)
    run = classification_run(tmp_path)
    card = write_model_card(run.model, job, result(accuracy=0.9), run, {"torch": "2.11.0", "transformers": "5.17.0"})
    assert card == run.model / "README.md"
    text = card.read_text()
    _, matter, body = text.split("---\n", 2)
    front = yaml.safe_load(matter)
    assert (front["library_name"], front["pipeline_tag"], front["base_model"]) == (
        "transformers",
        pipeline,
        "owner/base",
    )
    (index,) = front["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in index["metrics"]} == {
        "loss": 0.3312,
        "accuracy": 0.9,
        "f1": 0.9,
    }
    assert index["dataset"]["split"] == "test"
    ast.parse(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1])
    again = parse_job(yaml.safe_load(re.search(r"````yaml\n(.*?)````", body, re.DOTALL)[1]))
    assert again == job
    assert "| Accuracy | 0.9000 | 0.9500 |" in body
    assert "| transformers | 5.17.0 |" in body
    assert "/somewhere" not in text
    assert str(tmp_path) not in text
    assert "<script>" not in body.replace("\\<script\\>", "")


def test_model_card_without_test_set_or_hub(tmp_path):
    run = RunFolder(tmp_path)
    run.evaluation.write_text(json.dumps({"part": "validation", "metrics": {"loss": math.nan, "accuracy": 0.5}}))
    job = make_job(model={"config": {"model_type": "bert"}}, strategy={"lora": {}})
    text = write_model_card(run.model, job, result(), run, {}).read_text()
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert "base_model" not in front
    assert front["metrics"] == ["accuracy"]
    assert front["tags"] == ["finetune-operator", "text-classification", "lora"]
    assert "trained from random weights (`bert`)" in text
    assert "There was no test set." in text
    assert "not pinned" not in text
