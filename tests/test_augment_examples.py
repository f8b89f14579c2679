"""The examples with augmentation, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("augmented")
    for name in ("reviews", "digits"):
        make = [sys.executable, EXAMPLES / f"make_{name}.py", root / "volumes/data" / name]
        subprocess.run(make, check=True)
    return root


def metrics_of(root: Path, job: dict, name: str) -> dict[str, float]:
    """Test metrics of a run of ``job``."""
    (root / f"{name}.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", root / f"{name}.yaml"]
    places = ["--volumes", root / "volumes", "--out", root / name, "--cache", root / "cache"]
    done = subprocess.run([*command, *places], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return yaml.safe_load((root / name / "status.yaml").read_text())["status"]["result"]["metrics"]


def test_synonyms_teach_words_that_no_training_text_has(root):
    """As many texts praise as blame: to guess is right half of the time."""
    job = yaml.safe_load((EXAMPLES / "reviews-augmented.yaml").read_text())
    augmented = metrics_of(root, job, "augmented")
    del job["spec"]["data"]["augmentation"]
    plain = metrics_of(root, job, "plain")
    assert plain["accuracy"] < 0.75
    assert augmented["accuracy"] > 0.95
    assert "Augmented texts" in (root / "augmented" / "report.html").read_text()


def test_changed_images_teach_what_digits_are(root):
    """A tenth of the digits are of the most frequent class."""
    job = yaml.safe_load((EXAMPLES / "digits-augmented.yaml").read_text())
    assert metrics_of(root, job, "digits")["accuracy"] > 0.9
    assert (root / "digits" / "pictures" / "augmented.png").stat().st_size > 10_000
