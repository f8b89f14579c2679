"""MLflow: what reaches the server, in what order, and what happens when there is none; with a real server too."""

import json
import time
from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState

import tiny
from finetune_trainer import mlflow_tracker
from finetune_trainer.distributed import make_accelerator
from finetune_trainer.errors import Denied, PlatformError
from finetune_trainer.mlflow_tracker import Server, flat
from finetune_trainer.tracking import last_words, start_trackers
from mlflow_server import Recorded, recording, serving


@pytest.fixture
def server() -> Iterator[Recorded]:
    with recording() as recorded:
        yield recorded


def job(folder, address: str, steps: int = 3):
    tracking = {"mlflow": {"trackingUri": address, "experiment": "trials"}}
    spec = {"tracking": tracking, "training": {"maxSteps": steps}, "checkpoint": {"every": {"steps": 1}}}
    return tiny.job(folder, "text-classification", spec)


def test_a_run_is_told_step_by_step_and_goes_on_after_a_restart(tmp_path, server):
    process = tiny.process_of(job(tmp_path, server.address), tmp_path / "run")
    loop = tiny.trained(process)
    loop.accelerator.end_training()
    steps = [(line["step"], line["loss"]) for line in tiny.steps_of(tmp_path / "run")]
    assert [(step, value) for name, step, value in server.metrics() if name == "train/loss"] == steps
    assert {name for name, *_ in server.metrics()} >= {"train/learningRate", "train/gradNorm", "validation/accuracy"}
    link = f"{server.address}/#/experiments/7/runs/abc"
    assert process.reporter.report().tracking_urls == {"mlflow": link}
    assert server.calls[-1][:2] == ("runs/update", server.calls[-1][1] | {"run_id": "abc", "status": "FINISHED"})
    created = next(body for path, body, _ in server.calls if path == "runs/create")
    assert (created["experiment_id"], created["run_name"]) == ("7", "tiny")
    parameters = next(body["params"] for path, body, _ in server.calls if path == "runs/log-batch")
    assert {"key": "training.maxSteps", "value": "3"} in parameters
    server.calls.clear()
    again, _ = tiny.assembled(tiny.process_of(job(tmp_path, server.address), tmp_path / "run"))
    again.accelerator.end_training()
    again.history.close()
    assert [(path, body["status"]) for path, body, _ in server.calls] == [
        ("runs/update", "RUNNING"),
        ("runs/update", "FINISHED"),
    ]


def test_a_run_that_fails_is_told_as_failed(tmp_path, server):
    loop, _ = tiny.assembled(tiny.process_of(job(tmp_path, server.address), tmp_path / "run"))
    loop.accelerator.log({"train/loss": 1.5, "bad": float("nan")}, step=1)
    loop.history.close()
    with pytest.raises(RuntimeError), last_words(loop.accelerator):
        raise RuntimeError
    assert server.metrics() == [("train/loss", 1, 1.5)]
    assert server.calls[-1][1]["status"] == "FAILED"


def test_what_a_server_that_is_away_did_not_take_is_sent_later(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_tracker, "SEND_EVERY_SECONDS", 0.01)
    loop, _ = tiny.assembled(tiny.process_of(job(tmp_path, server.address), tmp_path / "run"))
    server.refuse = 503
    loop.accelerator.log({"a": 1.0}, step=1)
    while "MLflow takes nothing at present" not in caplog.text:
        time.sleep(0.01)
    server.refuse = 0
    server.calls.clear()
    loop.accelerator.log({"a": 2.0}, step=2)
    loop.accelerator.end_training()
    loop.history.close()
    assert server.metrics() == [("a", 1, 1.0), ("a", 2, 2.0)]


REFUSALS = {
    "unreachable": (
        "http://127.0.0.1:9",
        0,
        PlatformError,
        "spec.tracking.mlflow.trackingUri: http://127.0.0.1:9 cannot",
    ),
    "no MLflow": (None, 418, PlatformError, "spec.tracking.mlflow.trackingUri: http://127.0.0.1:{} answers 418 "),
    "no access": (None, 403, Denied, "spec.tracking.mlflow.secretRef: http://127.0.0.1:{} refuses access (403)"),
}


@pytest.mark.parametrize(("address", "code", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_server_that_cannot_be_used_is_said_before_the_first_step(tmp_path, server, address, code, kind, message):
    server.refuse = code
    context = tiny.process_of(job(tmp_path, address or server.address), tmp_path / "run").context
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(context.job.spec, context)
    with pytest.raises(kind) as fault:
        start_trackers(accelerator, context)
    assert str(fault.value).startswith(message.format(server.address.rpartition(":")[2]))


CREDENTIALS = {
    "none": ({}, None),
    "token": ({"MLFLOW_TRACKING_TOKEN": "t0ken", "MLFLOW_TRACKING_USERNAME": "x"}, "Bearer t0ken"),
    "password": ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}, "Basic YW5uOnNlY3JldA=="),
}


@pytest.mark.parametrize(("environment", "header"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_credentials_come_from_the_environment(server, environment, header):
    one = Server(server.address, environment)
    one.post("runs/update", {})
    assert server.calls == [("runs/update", {}, header)]
    assert "secret" not in repr(one)


def test_parameters_are_flat():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": "1", "a.c.d": "None", "e": "[1]"}


@pytest.mark.campaign
def test_a_real_server(tmp_path):
    """Every step's loss is read back from MLflow itself, over a restart, in one run that is finished."""
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as address:
        for steps in (2, 5):
            process = tiny.process_of(job(tmp_path, address, steps), tmp_path / "run")
            tiny.trained(process).accelerator.end_training()
        found = Server(address, {})
        run = json.loads((tmp_path / "run/trackers/mlflow.json").read_text())
        told = found.get("metrics/get-history", run_id=run["run_id"], metric_key="train/loss")["metrics"]
        info = found.get("runs/get", run_id=run["run_id"])["run"]["info"]
        experiment = found.get("experiments/get-by-name", experiment_name="trials")["experiment"]
    steps = {line["step"]: line["loss"] for line in tiny.steps_of(tmp_path / "run")}
    assert {one["step"]: one["value"] for one in told} == pytest.approx(steps, rel=1e-12)
    assert len(told) == 5
    assert (info["status"], info["run_name"]) == ("FINISHED", "tiny")
    assert experiment["experiment_id"] == run["experiment_id"] == info["experiment_id"]
    link = f"{address}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
    assert process.reporter.report().tracking_urls == {"mlflow": link}
