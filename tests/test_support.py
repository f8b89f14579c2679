"""The page of what goes with which task."""

from typing import get_args

import pytest

import tiny
from finetune_api.job import TaskName
from finetune_api.support import OPTIONS, is_taken

ROWS = {name: asked for rows in OPTIONS.values() for name, asked in rows.items()}
TASKS = get_args(TaskName)


@pytest.mark.parametrize("task", TASKS)
def test_the_smallest_job_is_valid(task):
    assert is_taken(task, {})


@pytest.mark.parametrize("asked", ROWS.values(), ids=ROWS.keys())
def test_every_option_goes_with_a_task(asked):
    """A field that is misspelt would go with none."""
    assert any(is_taken(task, asked) for task in TASKS)


def test_an_option_that_a_task_lacks_is_refused():
    assert not is_taken("causal-lm", ROWS["mixup, CutMix"])


PROMISED = [
    (task, name)
    for task in ("token-classification", "sequence-to-sequence")
    for name, asked in ROWS.items()
    if is_taken(task, asked) and "distributed" not in asked
]
"""Of the tasks that no other test goes through by rows; several processes have theirs in ``test_gradients``."""


@pytest.mark.parametrize(("task", "name"), PROMISED, ids=map(": ".join, PROMISED))
def test_what_the_page_promises_is_trained(tmp_path, task, name):
    few = {"training": {"maxSteps": 2}, "evaluation": {"every": {"steps": 1}}}
    asked = tiny.merged(few, ROWS[name])
    if "tokensPerBatch" in asked["training"]:
        asked["training"]["batchSize"] = None
    tiny.trained(tiny.process_of(tiny.job(tmp_path, task, asked), tmp_path / "run"))
    assert len(tiny.steps_of(tmp_path / "run")) == 2
