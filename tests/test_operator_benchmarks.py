"""Every benchmark of the operator runs and prints figures. What they are is for a quiet machine to say."""

import pytest

from cluster.programs import build_all
from cluster.running import Shape
from figures import assert_figures

FIGURES = {
    "operator_scale": {
        "last pod, ours / bare at 3",
        "operator CPU ms a job at 3",
        "floor: CPU ms a job at 3",
        "operator CPU at 3, of the floor",
        "operator CPU at 3, of that of Kubernetes' controllers",
        "operator requests a job at 3",
        "looks a job at 3",
        "operator peak MiB at 3",
        "cores with 5 finished jobs",
        "MiB with 5 finished jobs",
    },
    "operator_tenants": {"quiet p99, beside / alone, bare Jobs", "quiet p99, beside / alone, FineTuneJobs"},
    "operator_experiments": {"requests of a trial / of a job", "CPU of a trial / of a job"},
}


@pytest.fixture(scope="module", autouse=True)
def programs():
    build_all(Shape(simulated_nodes=1).programs())


@pytest.mark.parametrize("name", FIGURES)
def test_a_benchmark_prints_its_figures(name):
    assert_figures(name, FIGURES[name])
