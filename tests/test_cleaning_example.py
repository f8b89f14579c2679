"""The example of cleaning, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("cleaning")
    make = [sys.executable, EXAMPLES / "make_faulty_digits.py", root / "volumes/data/faulty-digits"]
    subprocess.run(make, check=True)
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", EXAMPLES / "cleaning.yaml"]
    places = ["--volumes", root / "volumes", "--out", root / "run", "--cache", root / "cache"]
    fewer = ["--set", "spec.training.epochs=2"]
    done = subprocess.run([*command, *places, *fewer], check=False, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "run"


@pytest.fixture(scope="module")
def findings(run):
    return [json.loads(line) for line in (run / "cleaning.jsonl").read_text().splitlines()]


def names(findings, kind):
    return {finding["origin"].rpartition("/")[2] for finding in findings if finding["kind"] == kind}


def test_torn_files_and_copies_are_all_found(findings):
    assert {name[:7] for name in names(findings, "empty")} == {"zz-torn"}
    assert len(names(findings, "empty")) == 5
    assert {name[:7] for name in names(findings, "duplicate")} == {"zz-copy"}
    assert len(names(findings, "duplicate")) == 30
    near = {name for name in names(findings, "nearDuplicate") if name.startswith("zz-near")}
    assert len(near) == 30
    assert len(names(findings, "nearDuplicate") - near) <= 0.01 * 1797


def test_wrong_labels_are_found(findings):
    found = names(findings, "label")
    right = {name for name in found if name.startswith("wrong-")}
    assert len(right) >= 0.7 * 179
    assert len(right) >= 0.8 * len(found)


def test_the_report_tells_of_it_and_the_model_learns_all_the_same(run):
    page = (run / "report.html").read_text()
    for text in ("Empty or broken", "Near duplicates", "Label likely to be wrong", "is damaged"):
        assert text in page
    metrics = yaml.safe_load((run / "status.yaml").read_text())["status"]["result"]["metrics"]
    assert metrics["accuracy"] >= 0.5  # a tenth of the digits are of the most frequent class
