"""The command line, and what it shows."""

import io
import json
import resource
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from finetune_api import Cause, parse_job
from finetune_api.status import (
    Best,
    EarlyStoppingStatus,
    JobStatus,
    LastCheckpoint,
    Phase,
    Progress,
    ProgressReport,
    Reason,
    Stage,
)
from finetune_cli import words
from finetune_cli.live import LiveDisplay, render
from finetune_cli.local import View
from finetune_cli.main import main
from finetune_cli.plain import PlainDisplay
from finetune_cli.pull import MAX_BYTES, pull_report
from finetune_cli.store import Store, write_atomically
from finetune_cli.tail import EvaluationTail
from finetune_cli.workers import count_oom_kills, read_message
from finetune_operator.actions import Event
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.status import with_attempt, with_report, with_restart

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def job(status=None):
    return parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "demo"},
            "spec": {
                "task": "text-classification",
                "model": {"source": "file:///models/tiny"},
                "data": {"source": "file:///data.csv"},
                "earlyStopping": {"patience": 3},
            },
        }
    ).model_copy(update={"status": status})


def report(step=40, *, stage=Stage.TRAINING, saved=40, attempt=1):
    return ProgressReport(
        stage=stage,
        attempt=attempt,
        progress=Progress(
            step=step, total_steps=100, epoch=1.5, percent=step, eta_seconds=185, samples_per_second=310.4, time=T0
        ),
        metrics={"trainLoss": 0.25, "accuracy": 0.91},
        best=Best(metric="accuracy", value=0.912345, step=30),
        early_stopping=EarlyStoppingStatus(evaluations_without_improvement=1),
        last_checkpoint=LastCheckpoint(step=saved, path="c", time=T0),
    )


def view(seconds=0, told=None, events=(), status=None):
    if status is None:
        status = with_attempt(JobStatus(), 1, T0)
        status = with_report(status, told) if told else status
        status = with_situation(status, Situation(Phase.RUNNING, Reason.TRAINING, "Training"), T0, 0)
    return View(job(status), T0 + timedelta(seconds=seconds), told, events)


def test_help_is_quick_and_teaches():
    command = [sys.executable, "-m", "finetune_cli.main", "--help"]
    start = cpu_seconds_of_children()
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    took = cpu_seconds_of_children() - start
    assert "finetune run -f job.yaml" in made.stdout
    assert "exit codes" in made.stdout
    assert took < 0.3


def cpu_seconds_of_children():
    """Of those that ended; the clock on the wall would count what a busy machine adds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_the_command_line_imports_no_heavy_module():
    code = "import sys, finetune_cli.run; print([m for m in ('torch', 'rich', 'kopf') if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["run"], ["validate"], ["logs"], ["render"], ["walk"]], ids=" ".join)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: finetune" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out


def test_run_of_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["run", "-f", str(tmp_path / "none.yaml")]) == 66
    assert capsys.readouterr().err == f"{tmp_path}/none.yaml: is not there\n"


DURATIONS = {0: "0 s", 59.4: "59 s", 60: "1:00 min", 185: "3:05 min", 7380: "2:03 h", 100_800: "1 d 4 h"}


@pytest.mark.parametrize(("seconds", "text"), DURATIONS.items(), ids=DURATIONS.values())
def test_duration(seconds, text):
    assert words.duration(seconds) == text


def test_plain_lines(tmp_path):
    written, history = [], tmp_path / "history.jsonl"
    display = PlainDisplay(history, view(), written.append)
    display.show(view(0, events=(Event("Normal", Reason.STARTING, "Attempt 1 starts"),)))
    display.show(view(1, ProgressReport(stage=Stage.PREPARING, attempt=1)))
    display.show(view(2, ProgressReport(stage=Stage.PREPARING, attempt=1, stage_percent=50)))
    display.show(view(35, ProgressReport(stage=Stage.PREPARING, attempt=1, stage_percent=99.6)))
    display.show(view(40, report(), (Event("Normal", Reason.TRAINING, "Attempt 1 trains"),)))
    line = {
        "kind": "evaluation",
        "step": 41,
        "epoch": 1.5,
        "metrics": {"accuracy": 0.91, "auc": None},
        "improved": True,
    }
    history.write_text('{"kind": "step", "step": 41}\n' + json.dumps(line) + "\n")
    display.show(view(41, report(41, saved=41)))
    display.show(view(42, report(42, saved=42)))
    display.show(view(46, report(43, saved=43)))
    display.show(view(90, report(50, saved=43)))
    display.show(view(91, events=(Event("Warning", Reason.RESTARTING, "Attempt 1 ended"),)))
    display.close()
    assert [line[9:] for line in written] == [
        "Attempt 1 starts",
        "Attempt 1: preparing data and model",
        "preparing data and model (100 %)",
        "checkpoint of step 40 saved",
        "Attempt 1 trains",
        "step 41, epoch 1.50: accuracy 0.91 (best so far)",
        "checkpoint of step 43 saved",
        "step 50 of 100, epoch 1.50, training loss 0.25, 310.4 samples/s, 3:05 min left",
        "warning: Attempt 1 ended",
    ]


def test_plain_lines_of_the_end_are_in_order(tmp_path):
    written, history = [], tmp_path / "history.jsonl"
    display = PlainDisplay(history, view(), written.append)
    display.show(view(6, report(saved=40)))
    line = {"kind": "evaluation", "step": 100, "epoch": 3, "metrics": {"accuracy": 0.9}, "improved": False}
    history.write_text(json.dumps(line) + "\n")
    display.show(view(7, report(100, stage=Stage.EXPORTING, saved=100)))
    assert [line[9:] for line in written] == [
        "checkpoint of step 40 saved",
        "step 100, epoch 3.00: accuracy 0.9",
        "checkpoint of step 100 saved",
        "Attempt 1: exporting the model",
    ]


def test_the_checkpoint_that_a_run_resumed_from_was_not_saved_now(tmp_path):
    written = []
    display = PlainDisplay(tmp_path / "history.jsonl", view(), written.append)
    display.show(view(6, report(saved=40).model_copy(update={"resumed_from_step": 40})))
    display.show(view(12, report(saved=60).model_copy(update={"resumed_from_step": 40})))
    assert [line[9:] for line in written] == ["checkpoint of step 60 saved"]


def test_evaluations_are_told_once(tmp_path):
    path = tmp_path / "history.jsonl"

    def line(step):
        return json.dumps({"kind": "evaluation", "step": step, "epoch": 1, "metrics": {}, "improved": False}) + "\n"

    tail = EvaluationTail(path)
    assert tail.read() == []
    path.write_text(line(10) + line(20)[:30])
    assert [one.step for one in tail.read()] == [10]
    path.write_text(line(10) + line(20))
    assert [one.step for one in tail.read()] == [20]
    replacement = tmp_path / "new"
    replacement.write_text(line(10) + line(20) + "not json, but evaluation\n" + line(30))
    replacement.replace(path)
    assert [one.step for one in tail.read()] == [30]


def drawn(picture):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(picture)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_live_picture():
    status = with_restart(view(0, report()).status, Cause.INFRASTRUCTURE)
    assert drawn(render(view(0, report(), status=status))) == [
        "demo  text-classification  training",
        "━━━━━━━━━━━━━━━━                          40 %  step 40 of 100, epoch 1.50",
        "pace  310.4 samples/s, 3:05 min left",
        "metrics  trainLoss 0.25, accuracy 0.91",
        "best  accuracy 0.9123 at step 30",
        "stopping  1 of 3 evaluations without improvement",
        "checkpoint  step 40",
        "restarts  1 (Infrastructure 1), 0 steps trained again",
    ]


def test_live_picture_before_training():
    told = ProgressReport(stage=Stage.PREPARING, attempt=2, stage_percent=41)
    status = with_attempt(JobStatus(), 2, T0)
    assert drawn(render(view(0, told, status=status))) == [
        "demo  text-classification, attempt 2  preparing data and model 41 %"
    ]


@pytest.mark.parametrize("no_color", [True, False], ids=["NO_COLOR", "colour"])
def test_live_display_draws_and_leaves_the_events(monkeypatch, no_color):
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    display = LiveDisplay(view(), console)
    display.show(view(1, report(), (Event("Warning", Reason.RESTARTING, "Attempt 1 ended"),)))
    display.close()
    written = console.file.getvalue()
    assert "Attempt 1 ended" in written
    assert ("\x1b[33m" in written) is not no_color


def test_status_of_a_run_under_way(tmp_path, capsys):
    Store(tmp_path).write(view(0, report()).job)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "demo  text-classification",
        "Running: Training",
        "No command runs it now; the same finetune run goes on from the last checkpoint.",
        "  progress    step 40 of 100, epoch 1.50",
        "  metrics     trainLoss 0.25, accuracy 0.91",
        "  best        accuracy 0.9123 at step 30",
        "  stopping    1 of 3 evaluations without improvement",
        "  checkpoint  step 40",
        "",
        "Attempts:",
        "  1  steps 0 to 40, runs",
    ]


def test_status_of_nothing(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 66
    assert "holds no run" in capsys.readouterr().err


@pytest.fixture
def serve(tmp_path):
    """Serve one answer at the address in ``tmp_path``; the answer is a function of the handler."""
    servers = []

    def go(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append((server, threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})))
        servers[-1][1].start()
        (tmp_path / "progress.address").write_text("{}:{}".format(*server.server_address))

    yield go
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def body(handler, content, code=200):
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(600):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        return


GOOD = report().model_dump_json().encode()
ANSWERS = {
    "a report": (lambda handler: body(handler, GOOD), True),
    "not found": (lambda handler: body(handler, GOOD, 404), False),
    "too large": (lambda handler: body(handler, GOOD + b" " * MAX_BYTES), False),
    "not JSON": (lambda handler: body(handler, b"<html>"), False),
    "not a report": (lambda handler: body(handler, b"{}"), False),
    "nothing": (lambda handler: None, False),
    "drop by drop": (drip, False),
}


@pytest.mark.parametrize(("answer", "good"), ANSWERS.values(), ids=ANSWERS.keys())
def test_pull_is_bounded_in_time_and_size(serve, tmp_path, answer, good):
    serve(answer)
    start = time.monotonic()
    pulled = pull_report(tmp_path, timeout_seconds=10 if good else 0.3)
    assert pulled == (report() if good else None)
    assert time.monotonic() - start < 10, "drop by drop it takes 30 s"


def test_pull_without_an_address(tmp_path):
    assert pull_report(tmp_path) is None
    (tmp_path / "progress.address").write_text("127.0.0.1:1")
    assert pull_report(tmp_path) is None


MESSAGES = {
    "whole": (b'{"exitCode": 70}', 70),
    "torn": (b'{"exitCode"', None),
    "empty": (b"", None),
    "wrong": (b"[]", None),
}


@pytest.mark.parametrize(("content", "code"), MESSAGES.values(), ids=MESSAGES.keys())
def test_termination_message(tmp_path, content, code):
    path = tmp_path / "termination.json"
    path.write_bytes(content)
    message = read_message(path)
    assert (message.exit_code if message else None) == code


def test_oom_kills_are_counted_where_the_kernel_does(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    assert count_oom_kills(tmp_path / "vmstat") == 3
    assert count_oom_kills(tmp_path / "none") == 0


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "status.yaml"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
