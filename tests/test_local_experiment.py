"""`finetune run` of experiments: real processes, quick trainers; interrupted, killed, resumed, ended early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from finetune_api.experiment import ExperimentPhase, TrialCounts
from finetune_api.status import Phase
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.main import main
from finetune_cli.run import Options, run

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trial.py")))
DRIVER = """
import sys
from pathlib import Path
from finetune_cli.run import Options, run
file, out, *command = sys.argv[1:]
sys.exit(run(Options(Path(file), (), Path(out)), command=tuple(command)))
"""
DEADLINE_SECONDS = 60
TEMPLATE = {
    "task": "text-classification",
    "model": {"source": "file:///models/tiny"},
    "data": {"source": "file:///data.csv"},
}
VARIANTS = [{"name": "plain"}, {"name": "dropped", "set": {"model.dropout": 0.5}}]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def write(tmp_path):
    def put(**fields):
        spec = {"template": TEMPLATE, "variants": VARIANTS, "seeds": [0, 1], "objective": {"metric": "accuracy"}}
        document = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneExperiment",
            "metadata": {"name": "demo"},
            "spec": {name: value for name, value in (spec | fields).items() if value is not None},
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return put


def go(path, out, *overrides):
    return run(Options(path, overrides, out), command=FAKE)


def status(out):
    return ExperimentStore(out).read().status


def attempts(out):
    return {name: len(job.status.attempts) for name, job in ExperimentStore(out).read_trials().items()}


def test_an_experiment_runs_to_its_answer(write, out, capsys):
    assert go(write(parallelism=2), out) == 0
    told = status(out)
    assert told.phase is ExperimentPhase.SUCCEEDED
    assert told.trials == TrialCounts(total=4, succeeded=4)
    assert [(one.name, round(one.mean, 6)) for one in told.variants] == [("plain", 0.905), ("dropped", 0.405)]
    assert told.best.trial == "demo-plain-1"
    assert Path(told.best.model) == out / "trials/demo-plain-1/model"
    assert set(attempts(out)) == {"demo-plain-0", "demo-plain-1", "demo-dropped-0", "demo-dropped-1"}
    printed = capsys.readouterr().out
    # Equal seeds differ by the very same amount here, so there is no spread to judge by.
    assert "Succeeded: No difference in accuracy between plain and dropped can be told at n = 2" in printed
    assert "dropped  2  0.405" in printed
    assert main(["status", str(out)]) == 0
    assert "demo-plain-1 with 0.91" in capsys.readouterr().out


def test_the_same_command_again_does_nothing(write, out, capsys):
    path = write()
    assert go(path, out) == 0
    before = status(out)
    assert go(path, out) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert status(out) == before
    assert set(attempts(out).values()) == {1}


def test_another_spec_is_refused_and_another_parallelism_is_not(write, out, capsys):
    assert go(write(), out) == 0
    assert go(write(seeds=[0, 1, 2]), out) == 64
    assert "spec.seeds: differs from the experiment's" in capsys.readouterr().err
    assert go(write(), out, "spec.parallelism=3") == 0


@pytest.fixture
def start(out):
    started = []

    def begin(path):
        process = subprocess.Popen([sys.executable, "-c", DRIVER, str(path), str(out), *FAKE])
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, *, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def saved(out, name):
    return any((out / "trials" / name / "checkpoints").glob("step-*"))


def test_interrupted_it_saves_and_the_same_command_goes_on(write, out, start):
    path = write(parallelism=2)
    process = start(path)
    wait_for(lambda: saved(out, "demo-plain-0") and saved(out, "demo-dropped-0"), what="two trials have saved")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 130
    assert status(out).phase is ExperimentPhase.SUSPENDED
    assert {job.spec.suspend for job in ExperimentStore(out).read_trials().values()} == {False}
    assert go(path, out) == 0
    assert status(out).trials == TrialCounts(total=4, succeeded=4)
    jobs = ExperimentStore(out).read_trials()
    assert {attempts(out)["demo-plain-1"], attempts(out)["demo-dropped-1"]} == {1}
    assert all(jobs[name].status.lost_steps == 0 for name in jobs)


def test_killed_it_goes_on_and_nothing_runs_twice(write, out, start):
    path = write(parallelism=2)
    process = start(path)
    wait_for(lambda: saved(out, "demo-plain-0"), what="a trial has saved")
    process.kill()
    process.wait()
    assert go(path, out) == 0
    assert status(out).trials == TrialCounts(total=4, succeeded=4)
    assert not [one for one in psutil.process_iter(["environ"]) if ran_in(one, out)]


def ran_in(process, out):
    return str((process.info["environ"] or {}).get("FINETUNE_RUN", "")).startswith(str(out))


def test_suspended_by_its_spec_it_rests(write, out):
    assert go(write(), out, "spec.suspend=true") == 0
    assert status(out).phase is ExperimentPhase.SUSPENDED
    assert go(write(), out) == 0
    assert status(out).phase is ExperimentPhase.SUCCEEDED


def test_a_search_ends_what_has_no_hope(write, out, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_HOPELESS", "1")
    search = {
        "parameters": [{"field": "model.dropout", "categorical": {"choices": [0.1, 0.6, 0.7]}}],
        "sampler": "random",
        "proposals": 5,
        "pruner": {"startupTrials": 2},
        "seed": 28,
    }
    assert go(write(variants=None, search=search, seeds=[0]), out) == 0
    told = status(out)
    assert [row.set["model.dropout"] for row in told.variants] == [0.1, 0.1, 0.6, 0.6, 0.1]
    assert told.trials == TrialCounts(total=5, succeeded=3, pruned=2)
    jobs = ExperimentStore(out).read_trials()
    lost = next(row for row in told.trial_table if row.pruned)
    job = jobs[lost.name]
    assert (job.status.phase, job.spec.stop, job.status.result) == (Phase.SUCCEEDED, True, None)
    assert job.status.attempts[-1].exit_code == 143
    assert saved(out, lost.name)
    assert jobs[told.best.trial].spec.model.dropout == 0.1
    assert "ended early at step 15 of 20" in capsys.readouterr().out


def test_only_the_best_model_is_kept_if_so_asked(write, out):
    assert go(write(promote="keepBest"), out) == 0
    kept = [path.parent.name for path in (out / "trials").glob("*/checkpoints")]
    assert kept == [status(out).best.trial] == ["demo-plain-1"]
    assert len(attempts(out)) == 4


def test_trials_that_fail_end_the_experiment_and_are_tried_again(write, out, monkeypatch, capsys):
    path = write(maxFailedTrials=0)
    monkeypatch.setenv("FAKE_TRAINER", '[{"fail_at": 3, "exit_code": 65, "message": "spec.data: broken"}]')
    assert go(path, out) == 65
    assert status(out).phase is ExperimentPhase.FAILED
    assert "1 trials have failed" in capsys.readouterr().out
    monkeypatch.setenv("FAKE_TRAINER", "[]")
    assert go(path, out) == 0
    assert status(out).trials == TrialCounts(total=4, succeeded=4)


def test_faults_name_their_field(write, out, capsys):
    path = write(variants=[{"name": "a"}, {"name": "b", "set": {"strategy.lora": {"r": 0}}}])
    assert go(path, out) == 64
    assert capsys.readouterr().err == "spec.variants[1].set.strategy.lora.r: must be ≥ 1, got 0\n"
    assert main(["validate", "-f", str(path)]) == 64
    assert capsys.readouterr().err == f"{path}: spec.variants[1].set.strategy.lora.r: must be ≥ 1, got 0\n"
    assert not out.exists()


def test_trials_at_a_time_share_the_cores(write, out, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    from finetune_cli.experiments.trials import LocalTrials
    from finetune_cli.interrupts import Interrupts

    trials = LocalTrials(ExperimentStore(out), Interrupts(), command=FAKE, environment={}, parallelism=10_000)
    job = ExperimentStore(out).read_trials()
    assert job == {}
    assert go(write(), out) == 0
    one = next(iter(ExperimentStore(out).read_trials().values()))
    assert trials._environment_of(one) == {"OMP_NUM_THREADS": "1"}
    assert os.environ.get("OMP_NUM_THREADS") is None
