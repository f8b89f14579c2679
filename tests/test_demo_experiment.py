"""The example of an experiment, made smaller: real trainers, data prepared once, numbers that come back the same."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from finetune_cli.experiments.store import ExperimentStore

ROOT = Path(__file__).parent.parent
SMALLER = ("spec.seeds=[1]", "spec.template.training.epochs=2", "spec.template.evaluation={every: {epochs: 0.5}}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    make = [sys.executable, ROOT / "examples/make_digits.py", root / "volumes/data/digits"]
    subprocess.run(make, check=True)
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", ROOT / "examples/digits-experiment.yaml"]
    places = ["--volumes", root / "volumes", "--out", root / "run", "--cache", root / "cache"]
    smaller = [part for one in SMALLER for part in ("--set", one)]
    done = subprocess.run([*command, *places, *smaller], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


def test_every_trial_has_its_own_run_and_the_table_its_value(ran):
    root, output = ran
    status = ExperimentStore(root / "run").read().status
    jobs = ExperimentStore(root / "run").read_trials()
    assert {row.name: row.value for row in status.trial_table} == {
        name: job.status.result.metrics["accuracy"] for name, job in jobs.items()
    }
    assert len(jobs) == 3
    assert "No difference in accuracy between plain and slow, augmented can be told at n = 1" in output
    assert (Path(status.best.model) / "model.safetensors").exists()


def test_the_course_of_a_trial_is_on_its_status(ran):
    root, _ = ran
    status = ExperimentStore(root / "run").read_trials()["digits-schemes-plain-1"].status
    assert [one.step for one in status.evaluations] == [10, 20, 30, 40]
    assert status.evaluations[-1].value == pytest.approx(status.best.value, rel=1e-5)


def test_data_is_prepared_once_for_all_trials(ran):
    root, _ = ran
    made = Counter(path.name.partition("-")[0] for path in (root / "cache").iterdir() if path.is_dir())
    assert made == {"samples": 1, "images": 1}
