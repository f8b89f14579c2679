"""Which samples were trained, from what the ranks told at each step (see ``warm``)."""

import json
from collections import defaultdict
from pathlib import Path

from finetune_api.wiring import RunFolder
from workers import history_of


def assert_every_sample_once(run: Path) -> None:
    """Every sample is in exactly one step of an epoch, over all attempts and ranks; an epoch that was cut short has
    none twice. What a step took and was lost with its attempt does not count: it is trained again."""
    count = json.loads(RunFolder(run).preparation.read_text())["samples"]["train"]
    steps = _steps_that_last(run)
    told = [line for line in history_of(run) if line["kind"] == "step"]
    assert [line["step"] for line in told] == sorted(steps)
    assert [line["samples"] for line in told] == [len(steps[step][1]) for step in sorted(steps)]
    epochs: dict[int, list[int]] = defaultdict(list)
    for epoch, samples in steps.values():
        epochs[epoch] += samples
    assert sorted(epochs) == list(range(len(epochs)))
    for epoch in range(len(epochs) - 1):
        assert sorted(epochs[epoch]) == list(range(count)), f"epoch {epoch}"
    last = epochs[len(epochs) - 1]
    assert len(set(last)) == len(last)
    if told[-1]["epoch"] == len(epochs):
        assert sorted(last) == list(range(count)), "the last epoch"


def _steps_that_last(run: Path) -> dict[int, tuple[int, list[int]]]:
    """step → (epoch, samples of all ranks), each step as the last attempt at it had it."""
    lines = [json.loads(line) for line in (run / "witness.jsonl").read_text().splitlines()]
    attempts = {line["step"]: line["attempt"] for line in sorted(lines, key=lambda line: line["attempt"])}
    steps: dict[int, tuple[int, list[int]]] = {}
    for line in lines:
        if line["attempt"] == attempts[line["step"]]:
            epoch, samples = steps.get(line["step"], (line["epoch"], []))
            assert epoch == line["epoch"]
            steps[line["step"]] = epoch, samples + line["samples"]
    return steps
