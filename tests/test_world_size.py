"""A run that is stopped and goes on with another number of processes: the same samples, the same losses."""

import pytest

import tiny
from witness import assert_every_sample_once
from workers import history_of

PREEMPTED = 143
TOLERANCE = 1e-5
KINDS = {
    "ddp": ("text-classification", "ddp", {"batchSize": None, "tokensPerBatch": 64}),
    "fsdp": ("causal-lm", "fsdp", {"batchSize": 5}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_two_one_processes(workers, tmp_path, kind):
    task, strategy, training = KINDS[kind]

    def job(processes):
        return tiny.job(
            tmp_path,
            task,
            {
                "training": {**training, "epochs": 4, "maxSteps": None},
                "distributed": {"processesPerWorker": processes, "strategy": strategy},
                "evaluation": {"every": {"steps": 7}},
                "checkpoint": {"every": {"steps": 4}},
            },
            samples=60,
        )

    def go(run, attempt, processes):
        return workers.start(job(processes), run, attempt=attempt, witness=str(run / "witness.jsonl"))

    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    assert workers.start(job(1), undisturbed).wait() == 0
    expected = history_of(undisturbed)
    for attempt, (processes, stop_at) in enumerate([(1, 5), (2, 13)], 1):
        worker = go(run, attempt, processes)
        worker.await_step(stop_at)
        worker.terminate()
        assert worker.wait() == PREEMPTED
    assert history_of(run)[-1]["step"] < expected[-1]["step"], "it was stopped before the end"
    assert go(run, 3, 1).wait() == 0
    told = history_of(run)
    assert [shape(line) for line in told] == [shape(line) for line in expected]
    for one, other in zip(told, expected, strict=True):
        assert figures(one) == pytest.approx(figures(other), rel=TOLERANCE)
    assert_every_sample_once(run)


def shape(line):
    return line["kind"], line["step"], line["epoch"], line.get("samples")


def figures(line):
    return line["metrics"] if line["kind"] == "evaluation" else {"loss": line["loss"]}
