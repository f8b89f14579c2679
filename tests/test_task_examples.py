"""The examples of tasks that see, answer, tag and rewrite: their data are made, and their jobs train and export."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

import tiny
from finetune_api import parse_job
from finetune_trainer.run import run

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    for name in ("scenes", "questions", "names", "dates"):
        subprocess.run([sys.executable, EXAMPLES / f"make_{name}.py", root / "data" / name], check=True)
    return root


NAMES = ("scenes-detection", "scenes-captioning", "questions-chat", "names-tagging", "dates-rewriting")


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(volumes, tmp_path, name):
    job = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text().replace("pvc://", f"file://{volumes}/"))
    job["spec"]["data"]["split"] = {"train": 98, "validation": 1, "test": 1}
    job["spec"]["training"] = {"maxSteps": 2, "batchSize": 4}
    job["spec"].pop("evaluation", None)
    job["spec"].pop("earlyStopping", None)
    process = tiny.process_of(parse_job(job), tmp_path / "run")
    AcceleratorState._reset_state(reset_partial_state=True)
    result = run(process)
    assert Path(result.model, "config.json").exists()
    record = json.loads(process.context.run.evaluation.read_text())
    assert record["worst" if job["spec"]["task"] == "token-classification" else "examples"]
