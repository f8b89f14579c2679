"""What the launcher sets for a process."""

import pytest

from finetune_api import cgroups
from finetune_api.load import parse_job
from finetune_trainer import launch
from finetune_trainer.launch import rank_variables


def variables(task, precision, environment, **more):
    spec = {
        "task": task,
        "model": {"source": "file:///models/m"},
        "data": {"source": "file:///data/d"},
        "training": {"precision": precision},
        **more,
    }
    name = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    return rank_variables(parse_job({**name, "spec": spec}), 0, 0, environment)


KERNELS = {
    "texts": ("text-classification", "auto", {}, "8"),
    "a language model in fp32": ("causal-lm", "fp32", {}, "8"),
    "what the user sets": ("text-regression", "auto", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "100"}, "100"),
    "matrix products in bf16 are dear to make": ("text-classification", "bf16", {}, None),
    "images have one shape": ("image-classification", "fp32", {}, None),
}


@pytest.mark.parametrize(("task", "precision", "environment", "kept"), KERNELS.values(), ids=KERNELS)
def test_few_kernels_are_kept_where_shapes_vary(task, precision, environment, kept):
    assert variables(task, precision, environment).get("ONEDNN_PRIMITIVE_CACHE_CAPACITY") == kept


def test_threads_are_shared_by_the_processes_of_a_worker(monkeypatch):
    monkeypatch.setattr(cgroups, "usable_cores", lambda: 12)
    spread = {"distributed": {"processesPerWorker": 4}}
    found = variables("text-regression", "auto", {"OMP_NUM_THREADS": "2"}, **spread)
    assert {name: found[name] for name in launch.THREADS} == {
        "OMP_NUM_THREADS": "2",  # as the user says
        "TORCHINDUCTOR_COMPILE_THREADS": "3",
    }
