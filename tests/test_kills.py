"""Runs killed with SIGKILL at random moments and started again until they finish equal the uninterrupted run."""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from finetune_api.outcomes import Cause
from finetune_api.wiring import RunFolder
from finetune_trainer.checkpoint import name_of, steps_in, verify
from witness import assert_every_sample_once
from workers import Worker, Workers, history_of, last_step, until

SAMPLE_KILLS, CAMPAIGN_KILLS = 2, 17
"""Of each kind of job."""
MOST_ATTEMPTS = 60
KILLED = 137
EVALUATION_STEPS = 7

SPEC = {
    "model": {"dropout": 0.1},
    "training": {"epochs": 5, "maxSteps": None},
    "evaluation": {"every": {"steps": EVALUATION_STEPS}},
    "checkpoint": {"every": {"steps": 3}},
    "earlyStopping": {"patience": 4},
}
KINDS = {
    "images, augmented": (
        "image-classification",
        1,
        {
            "data": {
                "augmentation": {
                    "image": {
                        "rotateDegrees": 20,
                        "cropMinArea": 0.6,
                        "horizontalFlip": 0.5,
                        "verticalFlip": 0.5,
                        "color": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hueDegrees": 20},
                        "erasing": {"probability": 0.5},
                        "mixup": 0.5,
                        "cutmix": 1.0,
                        "mixProbability": 0.8,
                    }
                }
            },
            "training": {"batchSize": 4},
        },
    ),
    "texts by tokens, 2 processes, 2 parts": (
        "text-classification",
        2,
        {"training": {"batchSize": None, "tokensPerBatch": 48, "gradientAccumulation": 2}},
    ),
    "texts, sharded over 2 processes": (
        "text-regression",
        2,
        {"training": {"batchSize": 4}, "distributed": {"strategy": "fsdp"}},
    ),
}
"""Name → (kind of job, processes, spec)."""

MOMENTS = ("start", *3 * ("step",), *3 * ("checkpoint",), *2 * ("evaluation",), "end")


@dataclass(frozen=True)
class Outcome:
    """What must not depend on how often a run was killed."""

    history: bytes
    weights: bytes
    evaluation: Any

    @staticmethod
    def of(run: Path) -> "Outcome":
        folder = RunFolder(run)
        weights = (folder.model / "model.safetensors").read_bytes()
        return Outcome(folder.history.read_bytes(), weights, json.loads(folder.evaluation.read_bytes()))


@dataclass
class Campaign:
    """Kills runs of one job."""

    workers: Workers
    folder: Path
    kind: str
    chosen: random.Random

    def __post_init__(self) -> None:
        base, self.processes, spec = KINDS[self.kind]
        wanted = tiny.merged(tiny.merged(SPEC, spec), {"distributed": {"processesPerWorker": self.processes}})
        self.job = tiny.job(self.folder, base, wanted, samples=60)
        self.kills: Counter[str] = Counter()
        self.runs = self.torn = self.mid_epoch = 0

    def kill(self, kills: int) -> None:
        """Run to the end again and again until ``kills`` kills are done; every run must equal the undisturbed one."""
        undisturbed = self.folder / "undisturbed"
        assert self.workers.start(self.job, undisturbed).wait() == 0
        expected = Outcome.of(undisturbed)
        self.last = last_step(RunFolder(undisturbed))
        while self.kills.total() < kills:
            self.runs += 1
            run = self.folder / f"run-{self.runs}"
            self._run(run, kills)
            assert Outcome.of(run) == expected
            assert_every_sample_once(run)

    def _run(self, run: Path, kills: int) -> None:
        for attempt in range(1, MOST_ATTEMPTS):
            worker = self.workers.start(self.job, run, attempt=attempt, witness=str(run / "witness.jsonl"))
            if self.kills.total() == kills:
                assert worker.wait() == 0, worker.log.read_text()
                return
            moment = self.chosen.choice(MOMENTS)
            if not self._await(moment, worker):
                assert worker.wait() == 0, worker.log.read_text()
                return
            self._strike(moment, worker)
            self.torn += any(worker.run.checkpoints.glob(".tmp-*"))
            for step in steps_in(worker.run.checkpoints):
                verify(worker.run.checkpoints / name_of(step))
        raise AssertionError(f"{run} made no progress")

    def _await(self, moment: str, worker: Worker) -> bool:
        """Wait for a moment; whether the worker still runs then."""
        start, ahead = last_step(worker.run), self.chosen.randint(0, 9)

        def is_due() -> bool:
            if worker.poll() is not None or moment == "start":
                return True
            lines = history_of(worker.run.root)
            step = lines[-1]["step"] if lines else 0
            if moment == "end":
                return step == self.last
            if step < start + ahead or not lines:
                return False
            if moment == "evaluation":
                return step % EVALUATION_STEPS == 0 and lines[-1]["kind"] == "step"
            return moment == "step" or any(worker.run.checkpoints.glob(".tmp-*"))

        with worker.told():
            until(is_due, moment, pause=0.001)
        time.sleep(self.chosen.uniform(0, {"start": 0.5, "step": 0.05, "end": 1.0}.get(moment, 0.002)))
        return worker.poll() is None

    def _strike(self, moment: str, worker: Worker) -> None:
        """Kill all of a worker, or one of its ranks."""
        victim = self.chosen.randrange(-1, self.processes) if moment != "start" else -1
        if victim < 0:
            worker.kill()
        else:
            worker.ranks(self.processes)[victim].kill()
        code = worker.wait(seconds=20)
        if code == 0:
            return  # it was already on its way out
        assert code == KILLED, worker.log.read_text()
        until(lambda: not worker.survivors(), "the end of every process", seconds=10)
        if victim >= 0:
            told = worker.message()
            assert (told.cause, told.message) == (Cause.INFRASTRUCTURE, f"rank {victim} was ended by SIGKILL")
        self.kills[f"{moment}, {'worker' if victim < 0 else 'one rank'}"] += 1
        lines = history_of(worker.run.root)
        self.mid_epoch += bool(lines) and lines[-1]["epoch"] % 1 > 0


@pytest.mark.parametrize("kind", KINDS)
def test_killed_runs_equal_the_undisturbed_one(workers, tmp_path, kind):
    Campaign(workers, tmp_path, kind, random.Random(kind)).kill(SAMPLE_KILLS)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_kill_campaign(workers, tmp_path):
    kills: Counter[str] = Counter()
    runs = torn = mid_epoch = 0
    for number, kind in enumerate(KINDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        campaign = Campaign(workers, folder, kind, random.Random(kind))
        campaign.kill(CAMPAIGN_KILLS)
        kills += campaign.kills
        runs, torn, mid_epoch = runs + campaign.runs, torn + campaign.torn, mid_epoch + campaign.mid_epoch
    moments = ", ".join(f"{count} at {moment}" for moment, count in sorted(kills.items()))
    print(
        f"\n{kills.total()} kills of {runs} runs ({moments}; {mid_epoch} within an epoch,"
        f" {torn} left a half-written checkpoint): every run finished, its history and weights equal to the undisturbed"
        " run's bit for bit"
    )
    assert torn > 0, "no kill fell while a checkpoint was written"
    assert mid_epoch > 0, "no kill fell within an epoch"
