"""What the launcher sets for a process."""

import pytest

from finetune_api import cgroups
from finetune_api.load import parse_job
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


THREADS = {
    "shared by the processes of a worker": ({}, ("3", "3")),
    "as the user says, and as many processes compile": ({"OMP_NUM_THREADS": "2"}, ("2", "2")),
    "both as the user says": ({"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}, ("2", "1")),
}


@pytest.mark.parametrize(("environment", "expected"), THREADS.values(), ids=THREADS)
def test_threads(environment, expected, monkeypatch):
    monkeypatch.setattr(cgroups, "usable_cores", lambda: 12)
    found = variables("text-regression", "auto", environment, distributed={"processesPerWorker": 4})
    assert (found["OMP_NUM_THREADS"], found["TORCHINDUCTOR_COMPILE_THREADS"]) == expected
