"""The fake trainer, as good as its job's dropout and seed make it: a trial of an experiment."""

import json
import os
from pathlib import Path

import fake_trainer

SPEC = json.loads(Path(os.environ["FINETUNE_JOB"]).read_text())["spec"]
SEED = SPEC["training"]["seed"]
fake_trainer.ACCURACY = 0.9 - SPEC["model"].get("dropout", 0) + [0, 0.01, 0.03][SEED]


class Trial(fake_trainer.Trainer):
    def __init__(self, script):
        # One without hope stands still in the end, so that a search which does not end it never does.
        is_hopeless = "FAKE_HOPELESS" in os.environ and fake_trainer.ACCURACY < 0.5
        super().__init__({"hold_at": 15} if is_hopeless else script)

    def report(self):
        points = [
            {"step": step, "value": fake_trainer.ACCURACY * step / fake_trainer.TOTAL}
            for step in range(fake_trainer.SAVES_EVERY, self.step + 1, fake_trainer.SAVES_EVERY)
        ]
        best = {"best": {"metric": "accuracy", **points[-1]}} if points else {}
        return super().report() | {"evaluations": points} | best


if __name__ == "__main__":
    fake_trainer.Trainer = Trial
    fake_trainer.main()
