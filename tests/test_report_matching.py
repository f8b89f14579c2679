"""The example of chest images and their reports, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples"
CHANCE = 5 / 120
"""Recall at 5 of one who guesses among the 120 images of the test set."""
MOST = 354 / 1200
"""Share of the most frequent finding."""


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    root = tmp_path_factory.mktemp("reports")
    subprocess.run([sys.executable, EXAMPLES / "make_reports.py", root / "volumes/data/reports"], check=True)
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", EXAMPLES / "image-report-matching.yaml"]
    places = ["--volumes", root / "volumes", "--out", root / "run", "--cache", root / "cache"]
    done = subprocess.run([*command, *places], check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return yaml.safe_load((root / "run" / "status.yaml").read_text())["status"]["result"]["metrics"]


def test_images_find_their_reports_and_reports_their_images(metrics):
    print({name: round(value, 3) for name, value in metrics.items()})
    assert min(metrics["textRecallAt5"], metrics["imageRecallAt5"]) > 8 * CHANCE


def test_findings_are_named(metrics):
    assert metrics["accuracy"] > 1.5 * MOST
