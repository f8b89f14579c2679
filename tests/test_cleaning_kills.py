"""Whole runs with cleaning: killed while they clean and at any time after, on several processes, and with leaks."""

import json
import random
import time
from functools import partial

import numpy as np
import pytest

import ranks
import tiny
from finetune_api.outcomes import Cause, ExitCode
from finetune_api.wiring import RunFolder
from finetune_trainer.data.prepare import prepare_slices
from finetune_trainer.tasks import task_of
from test_cleaning_run import essays, noisy, with_brought, write_rows
from test_kills import KILLED, Outcome
from workers import until

CLEANING = {
    "empty": "drop",
    "duplicates": "drop",
    "nearDuplicates": {"threshold": 0.7},
    "labelNoise": {"action": "downWeight"},
}
SPEC = {
    "model": {"dropout": 0.1},
    "training": {"maxSteps": 30, "batchSize": 16},
    "evaluation": {"every": {"steps": 10}},
    "checkpoint": {"every": {"steps": 5}},
}
PLANTED = {"empty": 3, "duplicate": 5, "nearDuplicate": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """1,500 essays, a tenth with a wrong label, and what is planted among them."""
    rows, _ = noisy(essays(1500))
    rows += [{"text": " ", "label": "sea"}] * PLANTED["empty"]
    rows += rows[: PLANTED["duplicate"]]
    rows += [{**row, "text": row["text"] + " indeed"} for row in rows[10 : 10 + PLANTED["nearDuplicate"]]]
    return write_rows(tmp_path_factory.mktemp("planted") / "data.jsonl", rows)


def cleaning_job(folder, source, action="downWeight", **spec):
    cleaning = CLEANING | {"labelNoise": {"action": action}}
    data = {"source": f"file://{source}", "cleaning": cleaning, "split": {"train": 8, "validation": 2}}
    return tiny.job(folder, "text-classification", tiny.merged(SPEC, {"data": data, **spec}))


def record_of(run):
    """What a run tells of its cleaning, to the byte."""
    return run.findings.read_bytes(), run.cleaning.read_bytes()


MOMENTS = {
    "over duplicates": lambda run, cache: any(cache.glob(".tmp-cleaned-*")),
    "over labels": lambda run, cache: any(cache.glob(".tmp-mislabelled-*")),
    "over the record": lambda run, cache: run.findings.exists() and not run.history.exists(),
    "in training": lambda run, cache: run.history.exists(),
}


def is_time(worker, moment, cache):
    """Whether the moment has come, or cannot come any more."""
    return worker.poll() is not None or moment(worker.run, cache)


def test_a_run_that_is_killed_while_it_cleans_equals_the_undisturbed_one(workers, tmp_path, source):
    chosen = random.Random(0)
    undisturbed = workers.start(cleaning_job(tmp_path, source), tmp_path / "undisturbed/run")
    assert undisturbed.wait() == 0, undisturbed.log.read_text()
    job, run, cache = cleaning_job(tmp_path, source), tmp_path / "killed/run", tmp_path / "killed/cache"
    order = [moment for moment in MOMENTS for _ in range(2)]
    killed = []
    for attempt, moment in enumerate(order, 1):
        worker = workers.start(job, run, attempt=attempt)
        with worker.told():
            until(partial(is_time, worker, MOMENTS[moment], cache), moment, pause=0.0005)
        time.sleep(chosen.uniform(0, 0.05))
        worker.kill()
        if worker.wait(seconds=20) == KILLED:
            killed.append(moment)
    assert set(MOMENTS) - {"over the record"} <= set(killed), "what is made in between may be too quick to be hit"
    last = workers.start(job, run, attempt=len(order) + 1)
    assert last.wait() == 0, last.log.read_text()
    assert record_of(last.run) == record_of(undisturbed.run)
    assert Outcome.of(run) == Outcome.of(undisturbed.run.root)
    assert not list(cache.glob(".tmp-*")), "what a killed process left is swept"
    counts = {one["kind"]: one["samples"] for one in json.loads(last.run.cleaning.read_text())["found"]}
    assert counts.items() >= PLANTED.items()


@pytest.mark.parametrize("action", ["drop", "downWeight"])
def test_two_processes_clean_as_one_does(group, tmp_path, source, action):
    """The same samples are kept, with the same weights and the same record; and training takes the same course."""
    runs, kept = {}, {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        job = cleaning_job(folder, source, action, model={"dropout": 0})
        spec = job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        group.run(ranks.train_all, size, {folder / "run": ("text-classification", spec)})
        process = tiny.process_of(job, folder / "run", rank=size - 1, world_size=size)
        prepared = prepare_slices(job.spec, task_of(job.spec), process.context, process.check_in)
        kept[size] = {name: piece.rows for name, piece in prepared.slices.items()}, prepared.slices["train"].weights
        runs[size] = RunFolder(folder / "run")
    assert record_of(runs[1]) == record_of(runs[2])
    for name, rows in kept[1][0].items():
        assert np.array_equal(rows, kept[2][0][name])
    assert np.array_equal(kept[1][1], kept[2][1]) or (action == "drop" and kept[1][1] is kept[2][1] is None)
    one, two = (tiny.steps_of(runs[size].root) for size in (1, 2))
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], rel=1e-5)


def test_a_leak_ends_the_run_with_where_it_is(workers, tmp_path):
    worker = workers.start(with_brought(tmp_path, {"duplicates": "drop"}), tmp_path / "run")
    assert worker.wait() == ExitCode.BAD_DATA
    told = worker.message()
    assert told.cause == Cause.CONFIGURATION
    assert told.message.startswith("spec.data.cleaning.leakage: is error, and 2 were found: dev.jsonl:11 has the same")
    leaks = [line for line in map(json.loads, worker.run.findings.read_text().splitlines()) if line["kind"] == "leak"]
    assert [(leak["outcome"], leak["origin"]) for leak in leaks] == [
        ("refused", "dev.jsonl:11"),
        ("refused", "data.jsonl:1"),
    ]


def test_leaks_that_are_dropped_are_not_trained_on(workers, tmp_path):
    cleaning = {"duplicates": "drop", "nearDuplicates": {}, "leakage": "drop"}
    worker = workers.start(with_brought(tmp_path, cleaning), tmp_path / "run")
    assert worker.wait() == 0, worker.log.read_text()
    samples = json.loads(worker.run.preparation.read_text())["samples"]
    assert samples == {"train": 28, "validation": 10, "test": 11}
    assert "the same content, in spec.data.testSource" in worker.run.report.read_text()
