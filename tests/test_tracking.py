"""Trackers by name: where each writes to is a function of its own settings."""

import pytest

import tiny
from finetune_trainer.tracking import make_trackers

WANDB = {"project": "team/project", "mode": "offline"}
ASKED = {
    "none": ({}, []),
    "TensorBoard": ({"tensorboard": True}, [("tensorboard", "tiny")]),
    "both": ({"tensorboard": True, "wandb": WANDB}, [("tensorboard", "tiny"), ("wandb", "team/project")]),
}


@pytest.mark.parametrize(("tracking", "names"), ASKED.values(), ids=ASKED)
def test_names_of_trackers(tmp_path, tracking, names):
    process = tiny.process_of(tiny.job(tmp_path, "text-classification", {"tracking": tracking}), tmp_path / "run")
    assert [(tracker.name, tracker.run_name) for tracker in make_trackers(process.context)] == names
