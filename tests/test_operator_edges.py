"""What the operator shows of itself and asks of others: progress, health, metrics, flags, the API server's refusals."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import aiohttp
import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetune_api import Cause, JobStatus, ProgressReport
from finetune_api.status import Attempt, LastCheckpoint, Phase, Progress, Stage
from finetune_operator import progress
from finetune_operator.api import Api
from finetune_operator.errors import ApiError, NotLeading
from finetune_operator.health import STALE_SECONDS, Heart, serve_health
from finetune_operator.invalid import parse_stored, plan_invalid
from finetune_operator.kinds import JOB
from finetune_operator.metrics import Metrics
from finetune_operator.settings import parse_settings
from test_operator_schedule import Clock

T0 = datetime(2030, 1, 1, tzinfo=UTC)


@contextmanager
def server(answer):
    """A server on loopback: ``answer(handler)`` is called for each request; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def reply(status=200, body=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drip(handler):
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


REPORT = ProgressReport(stage=Stage.PREPARING, attempt=2)
GOOD = REPORT.model_dump_json(exclude_none=True, by_alias=True).encode()
PULLS = {
    "a report": (reply(body=GOOD), REPORT),
    "not ready": (reply(503), None),
    "elsewhere": (reply(302, Location="http://169.254.169.254/latest/meta-data"), None),
    "no JSON": (reply(body=b"<html>"), None),
    "no report": (reply(body=b'{"stage": "Dancing"}'), None),
    "too long": (reply(body=b" " * (progress.MAX_BYTES + 1) + GOOD), None),
    "too slow": (drip, None),
}


@pytest.mark.parametrize(("answer", "report"), PULLS.values(), ids=PULLS.keys())
def test_progress_is_pulled_within_bounds(answer, report, monkeypatch):
    monkeypatch.setattr(progress, "TIMEOUT_SECONDS", 0.5)

    async def pull(port):
        async with aiohttp.ClientSession() as session:
            return await progress.pull_report(session, "127.0.0.1", port)

    with server(answer) as port:
        assert asyncio.run(pull(port)) == report


def test_nobody_there_is_no_report():
    async def pull():
        async with aiohttp.ClientSession() as session:
            return await progress.pull_report(session, "::1", 1)

    assert asyncio.run(pull()) is None


# --- the API server


def status(code, reason, message):
    return json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message}).encode()


REFUSALS = {
    "taken": (reply(409, status(409, "AlreadyExists", "exists")), (409, "exists", "AlreadyExists", 0.0, False)),
    "changed": (reply(409, status(409, "Conflict", "changed")), (409, "changed", "Conflict", 0.0, False)),
    "later": (reply(429, b"slow down", Retry_After="7"), (429, "slow down", "", 7.0, False)),
    "broken": (reply(500), (500, "no reason given", "", 0.0, False)),
    "denied": (reply(403, status(403, "Forbidden", "quota")), (403, "quota", "Forbidden", 0.0, True)),
    "wrong": (reply(422, status(422, "Invalid", "spec.x")), (422, "spec.x", "Invalid", 0.0, True)),
}


def ask(port, may_write=lambda: True):
    told = []

    async def scenario():
        configuration = Configuration(host=f"http://127.0.0.1:{port}")
        async with ApiClient(configuration) as client:
            api = Api(client, may_write=may_write, told=lambda verb, code: told.append((verb, code)))
            return await api.create(JOB, "team", {"metadata": {"name": "x"}})

    try:
        return asyncio.run(scenario()), told
    except ApiError as error:
        return error, told


@pytest.mark.parametrize(("answer", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_told_as_it_is(answer, expected):
    with server(answer) as port:
        error, told = ask(port)
    found = (error.status, error.message, error.reason, error.retry_after_seconds, error.is_refusal)
    assert (found, told) == (expected, [("POST", expected[0])])


def test_no_answer_is_an_error_as_well():
    with server(reply()) as port:
        pass
    error, told = ask(port)
    assert (error.status, error.is_refusal, told) == (0, False, [("POST", 0)])


def test_who_does_not_lead_writes_nothing():
    with pytest.raises(NotLeading):
        ask(1, may_write=lambda: False)


# --- health, flags


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_tells_what_is_wrong():
    clock = Clock()
    heart = Heart(clock)
    made = serve_health("127.0.0.1", 0, {"/healthz": lambda: "it hangs" if heart.is_stale() else None})
    port = made.server_address[1]
    try:
        assert fetch(port, "/healthz") == (200, "ok")
        clock.seconds += STALE_SECONDS + 1
        assert fetch(port, "/healthz") == (503, "it hangs")
        heart.beat()
        assert [fetch(port, path)[0] for path in ("/healthz", "/other")] == [200, 404]
    finally:
        made.shutdown()
        made.server_close()


def test_flags():
    flags = [
        "--namespaces=a,b",
        "--namespaces",
        "c",
        "--lease-namespace=ops",
        "--identity=me",
        "--progress-readers=x, y",
    ]
    settings = parse_settings(flags)
    assert (settings.namespaces, settings.progress_readers) == (("a", "b", "c"), ("x", "y"))
    assert (settings.lease_namespace, settings.lease_name, settings.leader_election) == (
        "ops",
        "finetune-operator",
        True,
    )
    alone = parse_settings(["--no-leader-election", "--log-format=json"])
    assert (alone.namespaces, alone.leader_election, alone.health_port, alone.metrics_port) == (None, False, 8081, 8080)


WRONG_FLAGS = {"no lease": [], "both": ["--no-leader-election", "--namespaces=a", "--all-namespaces"]}


@pytest.mark.parametrize("flags", WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_wrong_flags(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_settings(flags)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err


# --- jobs that do not parse


def test_a_stored_job_that_is_not_valid_is_told_its_faults_once():
    stored = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "demo", "namespace": "team", "generation": 3},
        "spec": {"task": "text-classification", "model": {"source": "hf://a/b"}, "data": {"sauce": "hf://a/c"}},
    }
    with pytest.raises(ValueError, match="sauce") as error:
        parse_stored(json.dumps(stored).encode())
    made = plan_invalid(json.dumps(stored).encode(), error.value.faults, T0)
    accepted = made.status.conditions[0]
    assert (accepted.status, accepted.reason, accepted.observed_generation) == ("False", "Invalid", 3)
    assert "spec.data.sauce" in accepted.message
    assert [event.reason for event in made.events] == ["Invalid"]
    again = {**stored, "status": made.status.to_wire()}
    assert plan_invalid(json.dumps(again).encode(), error.value.faults, T0 + timedelta(hours=1)).is_empty
    broken = {**stored, "status": {"phase": "Dancing"}}
    assert plan_invalid(json.dumps(broken).encode(), error.value.faults, T0).status == made.status


# --- metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"finetune_operator_{name}", labels)


def attempt(number=1, **fields):
    return Attempt(number=number, start=T0, **fields)


def test_a_failed_attempt_that_had_saved_half_of_its_steps():
    metrics = Metrics()
    before = JobStatus(phase=Phase.RUNNING, attempts=(attempt(),))
    ended = attempt(from_step=0, to_step=20, end=T0 + timedelta(seconds=60), cause=Cause.APPLICATION)
    after = JobStatus(
        phase=Phase.RESTARTING,
        attempts=(ended, attempt(2)),
        running_seconds=60,
        last_checkpoint=LastCheckpoint(step=10, path="x", time=T0),
        restarts={"Application": 1},
    )
    metrics.count_change(before, after, T0)
    assert value(metrics, "transitions_total", phase="Restarting") == 1
    assert value(metrics, "restarts_total", cause="Application") == 1
    assert (value(metrics, "running_seconds_total"), value(metrics, "kept_seconds_total")) == (60, 30)
    step = Progress(step=11, total_steps=30, epoch=1, percent=3, time=T0)
    trains = after.model_copy(update={"progress": step, "resumed_from_step": 10, "lost_steps": 10})
    metrics.count_change(after, trains, T0 + timedelta(seconds=25))
    assert (value(metrics, "lost_steps_total"), value(metrics, "first_step_seconds_sum")) == (10, 25)
    metrics.count_change(trains, trains.model_copy(update={"metrics": {"loss": 1.0}}), T0)
    assert value(metrics, "first_step_seconds_count") == 1


def test_a_job_that_succeeded_kept_all():
    metrics = Metrics()
    before = JobStatus(phase=Phase.RUNNING, attempts=(attempt(),))
    done = attempt(to_step=30, end=T0 + timedelta(seconds=60))
    after = JobStatus(phase=Phase.SUCCEEDED, attempts=(done,), running_seconds=60)
    metrics.count_change(before, after, T0)
    assert (value(metrics, "running_seconds_total"), value(metrics, "kept_seconds_total")) == (60, 60)


def test_a_jobs_series_go_with_it():
    metrics, phases = Metrics(), {("team", "Running"): 2}
    metrics.watch_phases("jobs", "Jobs by phase.", lambda: phases)
    assert value(metrics, "jobs", namespace="team", phase="Running") == 2
    phases.clear()
    assert value(metrics, "jobs", namespace="team", phase="Running") is None
