"""The page of what goes with which task."""

from typing import get_args

import pytest

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
