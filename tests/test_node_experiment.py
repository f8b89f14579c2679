"""The example of an experiment on a real node: three schemes with three seeds, two trials at a time, and its answer.

The same experiment is run by `finetune run` on this machine, with as many threads: every number is the same.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import on_node
from charts import ROOT
from finetune_cli.experiments.store import ExperimentStore
from on_node import Site

pytestmark = [pytest.mark.node, pytest.mark.timeout(2400)]
EXAMPLE = ROOT / "examples/digits-experiment.yaml"
NAME, TRIALS = "digits-schemes", 9
ANSWER_SECONDS = 1500


@pytest.fixture(scope="module")
def site(node_cluster, tmp_path_factory):
    with on_node.site(node_cluster, tmp_path_factory.mktemp("volumes")) as ours:
        yield ours


@dataclass
class Concluded:
    """The experiment, its trials by name, and the most pods that were seen alive."""

    experiment: dict[str, Any]
    trials: dict[str, dict[str, Any]]
    most: int

    @property
    def status(self) -> dict[str, Any]:
        return self.experiment["status"]

    @property
    def answer(self) -> str:
        return next(one["message"] for one in self.status["conditions"] if one["type"] == "Concluded")


@pytest.fixture(scope="module")
def concluded(site: Site):
    site.kubectl("apply", f"--filename={EXAMPLE}")
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, sum(pod["status"]["phase"] == "Running" for pod in site.get("pods")))
        (experiment,) = site.get("finetuneexperiments")
        return experiment.get("status", {}).get("phase") in ("Succeeded", "Failed")

    try:
        on_node.until(look, ANSWER_SECONDS, "the answer")
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{site.kubectl('describe', 'fte,ftj')[-6000:]}") from failure
    (experiment,) = site.get("finetuneexperiments")
    return Concluded(experiment, {one["metadata"]["name"]: one for one in site.get("finetunejobs")}, most)


@pytest.fixture(scope="module")
def locally(site: Site, tmp_path_factory):
    """The same experiment without a cluster."""
    root = tmp_path_factory.mktemp("local")
    (root / "volumes").mkdir()
    (root / "volumes/data").symlink_to(site.data)
    places = ["--volumes", root / "volumes", "--out", root / "run", "--cache", root / "cache"]
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", EXAMPLE, *places]
    subprocess.run(command, check=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    return ExperimentStore(root / "run")


def test_every_trial_ran_and_the_answer_is_given(concluded):
    assert concluded.status["phase"] == "Succeeded", concluded.status
    assert concluded.status["trials"]["succeeded"] == TRIALS
    assert len(concluded.trials) == TRIALS
    assert concluded.most == 2
    slow = next(row for row in concluded.status["variants"] if row["name"] == "slow")
    assert slow["difference"]["verdict"] == "worse"
    assert concluded.answer.startswith("plain is better than slow by ")
    print(concluded.answer)


def test_trials_made_the_data_ready_once(concluded, site):
    (cache,) = site.runs.glob(f"{NAME}-????????-cache")
    made = Counter(path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir())
    assert made == {"samples": 1, "images": 1}


def test_the_best_trials_model_is_on_the_volume(concluded, site):
    best = concluded.status["best"]
    folder = site.runs / best["model"].removeprefix("pvc://runs/")
    assert (folder / "model.safetensors").exists()
    assert best["trial"] in folder.parts[-2]


def test_the_same_experiment_on_this_machine_gives_the_same_numbers(concluded, locally):
    ours = locally.read().status
    assert {row["name"]: row["value"] for row in concluded.status["trialTable"]} == {
        row.name: row.value for row in ours.trial_table
    }
    courses = {name: job.status.to_wire()["evaluations"] for name, job in locally.read_trials().items()}
    assert {name: one["status"]["evaluations"] for name, one in concluded.trials.items()} == courses
    told = next(one.message for one in ours.conditions if one.type == "Concluded")
    assert concluded.answer == told


def test_deleting_it_deletes_its_trials(concluded, site):
    site.kubectl("delete", "finetuneexperiment", NAME)
    on_node.until(lambda: not site.get("finetunejobs") and not site.get("pods"), 60, "nothing is left")
    assert list(Path(site.runs).glob(f"{NAME}-*")), "what lies on the tenant's claim stays"
