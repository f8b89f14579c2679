"""`finetune compare`: specs, metrics and curves side by side, of folders and of jobs."""

import json
from datetime import UTC, datetime

import pytest

from finetune_api import parse_job
from finetune_api.status import Best, EvaluationPoint, JobStatus, Phase, Progress, Result
from finetune_cli.compare import compare
from finetune_cli.comparison import differences, rows, subject_of
from finetune_cli.main import main
from finetune_cli.store import Store
from finetune_cli.tail import Evaluation

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def job(name="a", accuracy=0.9, **spec):
    made = parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": {
                "task": "text-classification",
                "model": {"source": "hf://a/b"},
                "data": {"source": "file:///d"},
                "distributed": {"workers": 2},
                **spec,
            },
        }
    )
    status = JobStatus(
        phase=Phase.SUCCEEDED,
        progress=Progress(step=20, total_steps=20, epoch=2, percent=100, time=T0),
        best=Best(metric="accuracy", value=accuracy, step=20),
        evaluations=(EvaluationPoint(step=10, value=accuracy / 2), EvaluationPoint(step=20, value=accuracy)),
        running_seconds=60,
        result=Result(reason="Completed", model="/m", metrics={"loss": 0.5, "accuracy": accuracy}),
    )
    return made.model_copy(update={"status": status})


def test_only_what_differs_is_listed():
    subjects = [
        subject_of("a", job()),
        subject_of("b", job(strategy={"lora": {"r": 8}}, training={"compile": True})),
    ]
    found = differences(subjects)
    assert {field: found[field] for field in ("strategy.lora.r", "training.compile")} == {
        "strategy.lora.r": [None, 8],
        "training.compile": [False, True],
    }
    assert all(field.startswith(("strategy.lora.", "training.compile")) for field in found)
    assert differences(subjects[:1] * 3) == {}


def test_the_table():
    subjects = [subject_of("a", job()), subject_of("b", job(accuracy=0.8, strategy={"learningRate": {"value": 1e-3}}))]
    assert list(rows(subjects)) == [
        ["", "a", "b"],
        ["phase", "Succeeded", "Succeeded"],
        ["steps", "20", "20"],
        ["worker time", "2:00 min", "2:00 min"],
        ["", "", ""],
        ["spec:", "", ""],
        ["  strategy.learningRate.value", "2e-05", "0.001"],
        ["", "", ""],
        ["result:", "", ""],
        ["  loss", "0.5", "0.5"],
        ["  accuracy", "0.9", "0.8"],
        ["", "", ""],
        ["validation accuracy by step:", "", ""],
        ["  10", "0.45", "0.4"],
        ["  20", "0.9", "0.8"],
    ]


def test_a_long_curve_is_shown_in_few_rows_with_its_end():
    measured = [Evaluation(step, 0.0, {"accuracy": step / 100}, improved=False) for step in range(1, 101)]
    shown = [row[0] for row in rows([subject_of("a", job(), measured)]) if row[0].strip().isdecimal()]
    assert (len(shown), shown[-1]) == (20, "  100")


def test_a_run_that_has_not_begun():
    bare = job().model_copy(update={"status": None})
    assert list(rows([subject_of("a", bare)])) == [
        ["", "a"],
        ["phase", "Pending"],
        ["steps", "0"],
        ["worker time", "0 s"],
    ]


@pytest.fixture
def folders(tmp_path):
    for name, accuracy in (("one", 0.9), ("two", 0.7)):
        store = Store(tmp_path / name)
        store.root.mkdir()
        store.write(job(name, accuracy))
        line = {
            "kind": "evaluation",
            "step": 20,
            "epoch": 2,
            "metrics": {"accuracy": accuracy, "f1": 0.6},
            "improved": True,
        }
        store.folder.history.write_text(json.dumps(line) + "\n")
    return tmp_path


def no_cluster(name):
    raise AssertionError(name)


def test_folders_are_compared_with_all_that_was_measured(folders, capsys):
    assert main(["compare", str(folders / "one"), str(folders / "two"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["metrics"]["accuracy"] for one in found["subjects"]] == [0.9, 0.7]
    assert found["subjects"][1]["evaluations"] == [{"step": 20, "metrics": {"accuracy": 0.7, "f1": 0.6}}]
    assert found["differences"] == {}
    assert main(["compare", str(folders / "one"), str(folders / "two")]) == 0
    assert "  accuracy" in capsys.readouterr().out


def test_a_folder_beside_a_job_of_a_cluster(folders, capsys):
    assert (
        compare(
            [str(folders / "one"), "other"],
            as_json=False,
            read_cluster=lambda name: iter([subject_of(name, job(name, 0.5))]),
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1].split() == ["20", "0.9", "0.5"]


def test_a_folder_without_a_run(folders, capsys):
    assert compare([str(folders)], as_json=False, read_cluster=no_cluster) == 66
    assert capsys.readouterr().err == f"{folders}: holds no run (no status.yaml)\n"


def test_a_damaged_run(folders, capsys):
    (folders / "one/status.yaml").write_text("kind: [")
    assert compare([str(folders / "one")], as_json=False, read_cluster=no_cluster) == 65
    assert "status.yaml" in capsys.readouterr().err


def test_a_page(folders, capsys):
    page = folders / "pages" / "compared.html"
    assert main(["compare", str(folders / "one"), str(folders / "two"), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    content = page.read_text()
    assert all(text in content for text in ("<svg", "0.9", "0.7", "Their specs are the same"))


def test_a_page_that_cannot_be_written(folders, capsys):
    assert main(["compare", str(folders / "one"), "--html", str(folders / "one/status.yaml/page.html")]) == 77
    assert capsys.readouterr().err.startswith("--html: ")
