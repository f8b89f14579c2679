"""The examples, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """`make demo`, in a folder of its own."""
    root = tmp_path_factory.mktemp("demo")
    make = [sys.executable, ROOT / "examples/make_digits.py", root / "volumes/data/digits"]
    subprocess.run(make, check=True)
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", ROOT / "examples/digits.yaml"]
    places = ["--volumes", root / "volumes", "--out", root / "run", "--cache", root / "cache"]
    done = subprocess.run([*command, *places], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "run", done.stdout


def test_demo_learns_and_stops_early(digits):
    run, _ = digits
    status = yaml.safe_load((run / "status.yaml").read_text())["status"]
    assert status["phase"] == "Succeeded"
    assert status["result"]["reason"] == "EarlyStopped"
    assert status["result"]["metrics"]["accuracy"] >= 0.95
    succeeded = next(entry for entry in status["conditions"] if entry["type"] == "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("True", "EarlyStopped")


def test_demo_says_where_everything_is(digits):
    run, output = digits
    last_screen = output[output.index("Succeeded") :]
    for name in ("model", "report.html", "checkpoints", "logs", "status.yaml"):
        assert str(run / name) in last_screen
        assert (run / name).exists()


def test_demo_model_gives_the_predictions_that_were_counted(digits):
    from transformers import pipeline

    run, _ = digits
    model = pipeline("image-classification", model=str(run / "model"))
    wrong = [
        row for row in json.loads((run / "evaluation.json").read_text())["worst"] if row["expected"] != row["predicted"]
    ]
    assert wrong
    images = [next(run.parent.glob(f"volumes/data/digits/{row['origin']}")) for row in wrong]
    predicted = [model(str(image), top_k=1)[0]["label"] for image in images]
    assert predicted == [row["predicted"] for row in wrong]
