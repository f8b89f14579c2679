"""`finetune run` with real processes: a trainer that is quick and obeys a script, everything else as it is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from finetune_api import cgroups, read_job
from finetune_cli.run import Options, run
from finetune_cli.store import Store
from finetune_cli.workers import threads_per_process

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
DRIVER = """
import sys
from pathlib import Path
from finetune_cli.run import Options, run
file, out, overrides, *command = sys.argv[1:]
sys.exit(run(Options(Path(file), tuple(overrides.split()), Path(out)), command=tuple(command)))
"""
DEADLINE_SECONDS = 30


@pytest.fixture
def job_file(tmp_path):
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "demo"},
        "spec": {
            "task": "text-classification",
            "model": {"source": "file:///models/tiny"},
            "data": {"source": "file:///data.csv"},
        },
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def scripts(monkeypatch):
    def put(*attempts):
        monkeypatch.setenv("FAKE_TRAINER", json.dumps(attempts))

    put()
    return put


@pytest.fixture
def start(job_file, out, scripts):
    """Start the command as a process of its own; none outlives the test."""
    started = []

    def go(*overrides):
        command = [sys.executable, "-c", DRIVER, str(job_file), str(out), " ".join(overrides), *FAKE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    for process in workers(out):
        process.kill()


@pytest.fixture
def finetune(job_file, out, scripts):
    """Run the command here; returns its exit code."""

    def go(*overrides):
        return run(Options(job_file, overrides, out), command=FAKE)

    return go


def status_of(out):
    return read_job(out / "status.yaml").status


def reasons(out):
    return [json.loads(line)["reason"] for line in (out / "events.jsonl").read_text().splitlines()]


def workers(out):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FINETUNE_RUN") == str(out) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def finish(process):
    """Wait for the command; returns (exit code, stdout, stderr)."""
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, output, errors


def held(out):
    wait_for((out / "held").exists, "the trainer to stand still")
    wait_for(lambda: (out / "status.yaml").exists() and status_of(out).progress, "a first report")
    (out / "held").unlink()


def short(status):
    return [
        (one.number, one.from_step, one.to_step, one.cause and one.cause.value, one.exit_code)
        for one in status.attempts
    ]


def test_success(finetune, out, capsys):
    assert finetune() == 0
    status = status_of(out)
    assert (status.phase, short(status)) == ("Succeeded", [(1, 0, 20, None, 0)])
    assert status.result.metrics == {"accuracy": 0.9}
    assert (status.progress.step, status.last_checkpoint.step, status.restarts) == (20, 20, {})
    assert (reasons(out)[0], reasons(out)[-1]) == ("Starting", "Completed")
    assert read_job(out / "job.json").status is None
    assert "step 20\n" in (out / "logs" / "attempt-1-worker-0.log").read_text()
    printed = capsys.readouterr().out
    assert "Attempt 1 starts" in printed
    assert "step 20, epoch 2.00: accuracy 0.5 (best so far)" in printed
    assert "Succeeded: Trained 20 steps" in printed
    assert f"report      {out}/report.html" in printed
    assert f"""pipeline("text-classification", model='{out}/model')""" in printed
    assert workers(out) == []


def test_a_finished_run_is_left_as_it_is(finetune, out, capsys):
    finetune()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert finetune() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("This run is finished")
    assert "model       " in printed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"} == before


def test_failed_once_then_resumed(finetune, scripts, out, capsys):
    scripts({"fail_at": 7, "message": "KeyError: 'x'"})
    assert finetune() == 0
    status = status_of(out)
    assert short(status) == [(1, 0, 7, "Application", 70), (2, 5, 20, None, 0)]
    assert (status.restarts, status.lost_steps, status.resumed_from_step) == ({"Application": 1}, 2, 5)
    assert reasons(out).count("Restarting") == 1
    printed = capsys.readouterr().out
    assert "warning: Attempt 1 ended (Application): KeyError: 'x'; restart at once (1 of 2 without progress)" in printed
    assert "restarts    1 (Application 1), 2 steps trained again" in printed


def test_stalled_once_then_resumed(finetune, scripts, out, capsys):
    scripts({"fail_at": 7, "exit_code": 75, "cause": "Stalled", "message": "rank 0: nothing progressed for 5 s"})
    assert finetune() == 0
    status = status_of(out)
    assert short(status) == [(1, 0, 7, "Stalled", 75), (2, 5, 20, None, 0)]
    assert (status.phase, status.restarts, status.lost_steps) == ("Succeeded", {"Stalled": 1}, 2)
    assert reasons(out).count("Restarting") == 1
    assert (
        "warning: Attempt 1 ended (Stalled): rank 0: nothing progressed for 5 s; restart at once (1 of 3 without"
        " progress)" in capsys.readouterr().out
    )


def test_budget_exhausted(finetune, scripts, out, capsys):
    scripts({"fail_at": 7}, {"fail_at": 8, "message": "KeyError: 'x'"})
    assert finetune("spec.recovery.maxRestarts.application=1") == 70
    status = status_of(out)
    assert (status.phase, short(status)) == ("Failed", [(1, 0, 7, "Application", 70), (2, 5, 8, "Application", 70)])
    printed = capsys.readouterr().out
    assert "Failed (BudgetExhausted, exit code 70): Attempt 2 ended (Application): KeyError: 'x'" in printed
    assert f"The last lines of {out}/logs/attempt-2-worker-0.log:\n" in printed
    assert "  leaves with 70: KeyError: 'x'\n" in printed
    assert "What to do: " in printed


@pytest.mark.parametrize("code", [64, 65, 66, 76, 77, 78])
def test_configuration_is_not_retried_and_its_code_is_the_commands(finetune, scripts, out, code):
    scripts({"fail_at": 1, "exit_code": code})
    assert finetune() == code
    assert short(status_of(out)) == [(1, 0, 1, "Configuration", code)]


def test_a_failed_run_is_tried_again(finetune, scripts, out, capsys):
    scripts({"fail_at": 1, "exit_code": 65})
    assert finetune() == 65
    assert finetune() == 0
    assert "This run failed before (Configuration); trying again." in capsys.readouterr().out
    assert short(status_of(out)) == [(1, 0, 1, "Configuration", 65), (2, 0, 20, None, 0)]


def test_a_worker_that_is_killed(finetune, scripts, out):
    scripts({"kill_at": 7})
    assert finetune() == 0
    first = status_of(out).attempts[0]
    assert (first.cause, first.exit_code) == ("Infrastructure", 137)


def test_of_two_workers_one_is_the_root_cause(finetune, scripts, out, capsys):
    scripts({"workers": {"0": {"fail_at": 6, "exit_code": 75}, "1": {"fail_at": 7, "exit_code": 65}}})
    assert finetune("spec.distributed.workers=2") == 65
    first = status_of(out).attempts[0]
    assert (first.cause, first.reason) == ("Configuration", "worker 1: as the script has it")
    assert f"The last lines of {out}/logs/attempt-1-worker-1.log:" in capsys.readouterr().out


def test_nothing_of_an_attempt_outlives_it(finetune, scripts, out):
    scripts({"leave_child": True})
    assert finetune() == 0
    child = int((out / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_deadline(finetune, scripts, out):
    scripts({"hold_at": 3})
    assert finetune("spec.activeDeadlineSeconds=1") == 124
    status = status_of(out)
    assert (status.phase, short(status)) == ("Failed", [(1, 0, 3, "Preempted", 143)])


def test_suspended_by_its_spec(finetune, out, capsys):
    assert finetune("spec.suspend=true") == 0
    assert (status_of(out).phase, status_of(out).attempts) == ("Suspended", ())
    assert "Suspended: Suspended by spec.suspend; it goes on once that is false." in capsys.readouterr().out
    assert finetune() == 0
    assert status_of(out).phase == "Succeeded"


def test_the_spec_of_a_run_is_immutable(finetune, out, capsys):
    finetune()
    before = (out / "status.yaml").read_text()
    assert finetune("spec.training.epochs=1", "spec.data.maxLength=64") == 64
    assert capsys.readouterr().err.splitlines() == [
        "spec.data: differs from the run's, and cannot change once it has begun",
        "spec.training: differs from the run's, and cannot change once it has begun",
        f"{out} holds a run of another spec: name another folder with --out, or remove this one",
    ]
    assert (out / "status.yaml").read_text() == before


CHANGES = ("spec.distributed={workers: 2, processesPerWorker: 3}", "spec.recovery.stallTimeoutSeconds=60")


def test_how_it_is_carried_out_may_change_until_it_is_finished(finetune, scripts, out, capsys):
    scripts({"fail_at": 7, "exit_code": 65})
    assert finetune() == 65
    assert finetune(*CHANGES, "spec.training.epochs=1") == 64
    assert capsys.readouterr().err.startswith("spec.training: differs from the run's")
    assert finetune(*CHANGES) == 0
    assert short(status_of(out)) == [(1, 0, 7, "Configuration", 65), (2, 5, 20, None, 0)]
    for path in (out / "status.yaml", out / "job.json"):
        spec = read_job(path).spec
        assert (spec.distributed.world_size, spec.recovery.stall_timeout_seconds) == (6, 60)
    assert len(list((out / "logs").glob("attempt-2-worker-*.log"))) == 2
    assert finetune() == 0, "a finished run is left as it is"
    assert read_job(out / "job.json").spec.distributed.workers == 2


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["fewer", "more"])
def test_the_command_is_killed_and_goes_on_with_another_number_of_workers(start, scripts, out, before, after):
    """What the killed attempt's workers left is read, however many the spec has now."""
    scripts({"hold_at": 7})
    first = start(f"spec.distributed.workers={before}")
    held(out)
    first.kill()
    first.wait()
    assert finish(start(f"spec.distributed.workers={after}"))[0] == 0
    status = status_of(out)
    assert short(status) == [(1, 0, 7, "Preempted", 143), (2, 7, 20, None, 0)]
    assert len(list((out / "attempts" / "2").iterdir())) == after


THREADS = {
    "one worker": ({}, 8),
    "workers share the machine": ({"workers": 2, "processesPerWorker": 2}, 2),
    "more processes than cores": ({"workers": 9}, 1),
}


@pytest.mark.parametrize(("distributed", "threads"), THREADS.values(), ids=THREADS)
def test_threads_of_a_process(job_file, monkeypatch, distributed, threads):
    monkeypatch.setattr(cgroups, "usable_cores", lambda: 8)
    job = read_job(job_file, tuple(f"spec.distributed.{name}={value}" for name, value in distributed.items()))
    assert threads_per_process(job) == threads


def test_a_spec_that_is_wrong(finetune, capsys):
    assert finetune("spec.training.batchSize=0", "spec.taks=text") == 64
    assert capsys.readouterr().err.splitlines() == [
        "spec.training.batchSize: must be ≥ 1, got 0",
        "spec.taks: is not a field; did you mean task?",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_saves_and_the_same_command_goes_on(start, scripts, out, number, code):
    scripts({"hold_at": 7})
    first = start()
    held(out)
    first.send_signal(number)
    left, output, _ = finish(first)
    assert left == code
    assert "Suspended: Interrupted; the same command goes on from the last checkpoint. Step 7 is saved." in output
    status = status_of(out)
    assert (status.phase, short(status), status.restarts) == ("Suspended", [(1, 0, 7, "Preempted", 143)], {})
    assert finish(start())[0] == 0
    status = status_of(out)
    assert (short(status)[1], status.lost_steps, status.restarts) == ((2, 7, 20, None, 0), 0, {})
    assert status.conditions[1].reason == "NotSuspended"


def test_a_second_interrupt_ends_it_at_once(start, scripts, out):
    scripts({"hold_at": 7, "deaf": True})
    process = start()
    held(out)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "Interrupted" in reasons(out), "the request to leave")
    assert len(workers(out)) == 1
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    status = status_of(out)
    assert (status.phase, status.restarts) == ("Suspended", {})
    assert [(one.cause, one.exit_code) for one in status.attempts] == [("Preempted", 137)]
    assert workers(out) == []


def test_the_command_is_killed_while_its_workers_run(start, scripts, out):
    """The next command waits until the orphans have left, and their attempt costs no budget."""
    scripts({"hold_at": 7, "linger": 5})
    first = start()
    held(out)
    assert status_of(out).phase == "Running"
    first.kill()
    first.wait()
    second = start()
    code, output, errors = finish(second)
    assert code == 0, output + errors
    assert errors == f"Waiting: workers of a command that was killed are in {out}\n"
    status = status_of(out)
    assert short(status) == [(1, 0, 7, "Preempted", 143), (2, 7, 20, None, 0)]
    assert (status.restarts, status.lost_steps) == ({"Preempted": 1}, 0)


def test_the_command_and_its_workers_are_killed(start, scripts, out):
    scripts({"hold_at": 7})
    first = start()
    held(out)
    os.kill(first.pid, signal.SIGSTOP)
    for worker in workers(out):
        worker.kill()
    first.kill()
    first.wait()
    assert finish(start())[0] == 0
    status = status_of(out)
    killed, last = status.attempts
    assert (killed.cause, killed.exit_code, killed.reason) == ("Preempted", None, "the command that ran it was killed")
    assert (last.from_step, last.to_step, last.exit_code) == (5, 20, 0)
    assert status.restarts == {"Preempted": 1}


def test_two_commands_do_not_run_the_same(start, scripts, out):
    scripts({"hold_at": 7})
    first = start()
    held(out)
    second = start()
    assert second.stderr.readline() == f"Waiting: another finetune run (process {first.pid}) works in {out}\n"
    second.send_signal(signal.SIGINT)
    assert finish(second)[0] == 130
    assert len(status_of(out).attempts) == 1
    first.send_signal(signal.SIGINT)
    assert finish(first)[0] == 130


def test_a_damaged_status_is_named(finetune, out, capsys):
    finetune()
    Store(out).folder.status.write_text("kind: [")
    capsys.readouterr()
    assert finetune() == 64
    assert str(out / "status.yaml") in capsys.readouterr().err


def test_a_status_that_cannot_be_written_does_not_stop_the_training(finetune, out, capsys):
    (out / ".status.yaml.tmp").mkdir(parents=True)
    assert finetune() == 0
    assert "warning: the run's status could not be written: " in capsys.readouterr().err


def test_a_reader_that_goes_away_does_not_stop_the_training(start, out):
    process = start()
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_SECONDS) == 0
    assert process.stderr.read() == ""
    assert status_of(out).phase == "Succeeded"


def test_an_error_of_our_own_leaves_nothing_behind(finetune, scripts, out, monkeypatch):
    scripts({"hold_at": 3})

    def fail(*_):
        wait_for((out / "held").exists, "the trainer to stand still")
        raise RuntimeError

    monkeypatch.setattr("finetune_cli.plain.PlainDisplay.show", fail)
    with pytest.raises(RuntimeError):
        finetune()
    assert workers(out) == []
