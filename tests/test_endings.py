"""How runs end: asked to leave, stalled, or a process lost, and that they go on afterwards; of several workers."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import tiny
from cluster.ports import free_port
from finetune_api import read_job
from finetune_api.outcomes import Cause
from finetune_api.status import Phase
from finetune_api.wiring import RunFolder
from finetune_trainer.checkpoint import name_of, steps_in, verify
from workers import DEADLINE_SECONDS, history_of, last_step, until

LEAVE_SECONDS = 25
"""All of a run is gone that soon after one of its processes was asked to leave."""
LOST_SECONDS = 10
PREEMPTED, KILLED, RETRY, INTERRUPTED = 143, 137, 75, 130
TOLERANCE = 1e-5

LONG = {"training": {"epochs": 2000, "maxSteps": None}}
"""Does not end by itself while a test looks on."""


def job(folder, processes=2, **spec):
    wanted = tiny.merged({"distributed": {"processesPerWorker": processes}}, spec)
    return tiny.job(folder, "text-classification", wanted, samples=60)


def exit_codes(worker, count=2):
    """What each of a worker's ranks says that it left with, in their order."""
    return [json.loads((worker.scratch / f"rank-{rank}.json").read_text())["exitCode"] for rank in range(count)]


def saved_step(worker):
    """The newest checkpoint's step; it is whole."""
    step = steps_in(worker.run.checkpoints)[0]
    assert verify(worker.run.checkpoints / name_of(step)).state["step"] == step
    return step


@pytest.mark.parametrize("asked", ["the launcher", "rank 0", "rank 1"])
def test_sigterm_saves_and_leaves(workers, tmp_path, asked):
    worker = workers.start(job(tmp_path, **LONG), tmp_path / "run")
    ranks = worker.ranks(2)
    worker.await_step(3)
    {"the launcher": worker, "rank 0": ranks[0], "rank 1": ranks[1]}[asked].terminate()
    assert worker.wait(LEAVE_SECONDS) == PREEMPTED
    step = last_step(worker.run)
    told = worker.message()
    assert (told.cause, told.step, told.message) == (Cause.PREEMPTED, step, f"asked to leave; step {step} is saved")
    assert exit_codes(worker) == [PREEMPTED, PREEMPTED]
    assert saved_step(worker) == step, "no step is lost"
    assert not worker.survivors()


def test_killed_before_it_could_leave(workers, tmp_path):
    worker = workers.start(job(tmp_path, 1, **LONG), tmp_path / "run")
    (rank,) = worker.ranks(1)
    worker.await_step(3)
    rank.send_signal(signal.SIGSTOP)
    worker.terminate()
    word = worker.scratch / "termination.json"
    until(lambda: word.exists() and word.stat().st_size, "its word")
    worker.kill()
    worker.wait()
    told = worker.message()
    assert (told.exit_code, told.cause) == (KILLED, Cause.PREEMPTED)
    assert told.message.startswith("was asked to leave and had to be killed")


def test_sigterm_during_an_evaluation(workers, tmp_path):
    spec = {"evaluation": {"every": {"steps": 5}, "batchSize": 1}, "data": {"split": {"train": 1, "validation": 9}}}
    wanted = tiny.job(
        tmp_path, "text-classification", {**LONG, **spec, "distributed": {"processesPerWorker": 2}}, samples=2000
    )
    worker = workers.start(wanted, tmp_path / "run")
    worker.await_stage("Evaluating")
    worker.ranks(2)[1].terminate()
    assert worker.wait(LEAVE_SECONDS) == PREEMPTED
    assert saved_step(worker) == 5
    assert [line["kind"] for line in history_of(worker.run.root)] == ["step"] * 5, "it did not finish its evaluation"
    again = workers.start(wanted, tmp_path / "run", attempt=2)
    again.await_step(6)
    kinds = [line["kind"] for line in history_of(again.run.root)]
    assert kinds[:6] == ["step"] * 5 + ["evaluation"], "it was made up for"


def test_sigterm_during_preparation(workers, tmp_path):
    wanted = tiny.job(tmp_path, "text-classification", {"distributed": {"processesPerWorker": 2}}, samples=8_000)
    worker = workers.start(wanted, tmp_path / "run")
    ranks = worker.ranks(2)
    until(lambda: any((tmp_path / "cache").glob(".tmp-*")), "that data is prepared", pause=0.001)
    ranks[1].terminate()
    assert worker.wait(LEAVE_SECONDS) == PREEMPTED
    told = worker.message()
    assert told.cause == Cause.PREEMPTED
    assert told.message in ("asked to leave before the first step", "rank 1 was ended by SIGTERM")
    assert workers.start(wanted, tmp_path / "run", attempt=2).wait() == 0


def test_sigterm_during_imports(workers, tmp_path):
    worker = workers.start(job(tmp_path, 1), tmp_path / "run", cold=True)
    (rank,) = worker.ranks(1)
    until(lambda: rank.cpu_times().user > 0.7, "that it imports", pause=0.01)
    rank.terminate()
    assert worker.wait(LEAVE_SECONDS) == PREEMPTED
    assert worker.message().cause == Cause.PREEMPTED
    assert last_step(worker.run) == 0


def test_stopped_rank_is_found_and_the_run_goes_on(workers, tmp_path):
    timeout = 5
    stalling = job(tmp_path, **LONG, recovery={"stallTimeoutSeconds": timeout}, checkpoint={"every": {"steps": 2}})
    worker = workers.start(stalling, tmp_path / "run")
    ranks = worker.ranks(2)
    worker.await_step(5)
    ranks[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert worker.wait(timeout + LEAVE_SECONDS) == RETRY
    seconds = time.monotonic() - stopped
    assert timeout - 1 < seconds < timeout + 15, seconds  # less than 1 above it, but on a busy machine
    told = worker.message()
    assert told.cause == Cause.STALLED
    assert re.match(
        r"rank (0|1|0, 1): nothing progressed for 5 s \(spec\.recovery\.stallTimeoutSeconds\); the stacks .*",
        told.message,
    )
    assert not worker.survivors()
    stacks = (worker.scratch / "stacks.txt").read_text().split("── rank ")
    assert [part[:1] for part in stacks[1:]] == ["0", "1"]
    for part in stacks[1:]:
        assert "(most recent call first)" in part
        assert "loop.py" in part
    finishing = job(tmp_path, training={"maxSteps": saved_step(worker) + 3})
    again = workers.start(finishing, tmp_path / "run", attempt=2)
    assert again.wait() == 0, again.log.read_text()
    print(f"found and ended {seconds:.1f} s after SIGSTOP, the time-out being {timeout} s")


def test_killed_rank_ends_the_others(workers, tmp_path):
    worker = workers.start(job(tmp_path, **LONG), tmp_path / "run", attempt=3)
    ranks = worker.ranks(2)
    worker.await_step(3)
    ranks[1].kill()
    started = time.monotonic()
    assert worker.wait(LOST_SECONDS) == KILLED
    seconds = time.monotonic() - started
    told = worker.message()
    step = last_step(worker.run)
    assert (told.cause, told.step, told.message) == (Cause.INFRASTRUCTURE, step, "rank 1 was ended by SIGKILL")
    assert json.loads((worker.scratch / "rank-0.json").read_text())["exitCode"] == RETRY, "rank 0 noticed by itself"
    assert not worker.survivors()
    end = json.loads(worker.run.attempts.read_text().splitlines()[-1])
    assert (end["event"], end["attempt"], end["exitCode"]) == ("end", 3, KILLED)
    print(f"all ended {seconds:.1f} s after a rank was lost")


def test_killed_worker_ends_the_other_worker(workers, tmp_path):
    port, wanted = free_port(), job(tmp_path, 1, **LONG, distributed={"workers": 2})
    first, second = (workers.start(wanted, tmp_path / "run", worker=index, port=port) for index in (0, 1))
    first.await_step(3)
    second.kill()
    assert first.wait(LOST_SECONDS) == RETRY
    assert first.message().cause == Cause.INFRASTRUCTURE
    assert not first.survivors()


def test_two_workers_of_two_processes_train_as_one_process_does(workers, tmp_path):
    steps, port = 3, free_port()
    several = job(tmp_path, 2, training={"maxSteps": steps}, distributed={"workers": 2})
    both = [workers.start(several, tmp_path / "several", worker=index, port=port) for index in (0, 1)]
    assert [worker.wait() for worker in both] == [0, 0], both[0].log.read_text()
    alone = workers.start(job(tmp_path, 1, training={"maxSteps": steps}), tmp_path / "alone")
    assert alone.wait() == 0, alone.log.read_text()
    start = json.loads(both[0].run.attempts.read_text().splitlines()[0])
    assert (start["event"], start["worldSize"]) == ("start", 4)
    losses, expected = ([step["loss"] for step in tiny.steps_of(worker.run.root)] for worker in (both[0], alone))
    assert len(losses) == steps
    assert losses == pytest.approx(expected, rel=TOLERANCE)


@pytest.fixture
def command(tmp_path):
    """Starts `finetune run` on a job, with the real trainer; none outlives the test."""
    started = []

    def start(wanted, run):
        file = tmp_path / "job.json"
        file.write_text(json.dumps(wanted.to_wire()))
        words = ["run", "-f", file, "--out", run, "--cache", tmp_path / "cache"]
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # its workers are in sessions of their own: it ends them
        process.communicate()


def test_ctrl_c_saves_and_the_same_command_goes_on(command, tmp_path):
    wanted, run = job(tmp_path, 1, training={"epochs": 100, "maxSteps": None}), RunFolder(tmp_path / "run")
    first = command(wanted, run.root)
    until(lambda: last_step(run) >= 3 or first.poll() is not None, "step 3")
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=LEAVE_SECONDS)[0]
    assert first.returncode == INTERRUPTED, output
    step = last_step(run)
    assert f"the same command goes on from the last checkpoint. Step {step} is saved." in output
    assert verify(run.checkpoints / name_of(steps_in(run.checkpoints)[0])).step == step
    second = command(wanted, run.root)
    output = second.communicate(timeout=DEADLINE_SECONDS)[0]
    assert second.returncode == 0, output
    status = read_job(run.status).status
    attempts = [(one.from_step, one.to_step, one.cause, one.exit_code) for one in status.attempts]
    last = last_step(run)
    assert attempts == [(0, step, Cause.PREEMPTED, PREEMPTED), (step, last, None, 0)]
    assert (status.phase, status.lost_steps, status.restarts) == (Phase.SUCCEEDED, 0, {})
    assert [line["step"] for line in tiny.steps_of(run.root)] == list(range(1, last + 1))


@pytest.mark.parametrize("index", [0, 1], ids=["worker 1 does not come", "worker 0 does not come"])
def test_peer_that_never_comes(workers, tmp_path, index):
    wanted = job(tmp_path, 1, distributed={"workers": 2})
    worker = workers.start(wanted, tmp_path / "run", worker=index, join_timeout_seconds=3)
    assert worker.wait(30) == RETRY
    told = worker.message()
    assert told.cause == Cause.INFRASTRUCTURE
    assert re.match(
        r"the 2 processes of the run did not all meet at 127\.0\.0\.1:\d+ within 0:00:03: .", told.message
    ), told.message


def test_sigterm_while_waiting_for_a_peer(workers, tmp_path):
    stall_seconds = 5
    wanted = job(tmp_path, 1, distributed={"workers": 2}, recovery={"stallTimeoutSeconds": stall_seconds})
    worker = workers.start(wanted, tmp_path / "run")
    (rank,) = worker.ranks(1)
    until(lambda: [at for at in rank.net_connections() if at.status == "LISTEN"][1:], "progress server and store")
    with pytest.raises(AssertionError, match="the end"):  # waiting for others is no stall
        until(lambda: worker.poll() is not None, "the end", seconds=stall_seconds + 2)
    worker.terminate()
    assert worker.wait(LOST_SECONDS) == PREEMPTED


def test_lost_launcher_has_its_ranks_save_and_leave(workers, tmp_path):
    worker = workers.start(job(tmp_path, **LONG), tmp_path / "run")
    worker.ranks(2)
    worker.await_step(3)
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not worker.survivors(), "the end of every rank", seconds=LEAVE_SECONDS)
    assert json.loads((worker.scratch / "rank-0.json").read_text())["exitCode"] == PREEMPTED
    assert saved_step(worker) == last_step(worker.run)


def test_lost_parent_has_the_launcher_leave(workers, tmp_path):
    worker = workers.start(job(tmp_path, 1, **LONG), tmp_path / "run", with_parent=True)
    worker.await_step(2)
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not worker.survivors(), "the end of the worker", seconds=LEAVE_SECONDS)
    assert worker.message().exit_code == PREEMPTED
    assert saved_step(worker) == last_step(worker.run)
