"""What the dashboard's list and page say of an object, of a cluster or of a folder."""

import json
import os
import shutil
from datetime import UTC, datetime

import pytest

from dashboards import (
    FOLDER,
    ago,
    entry,
    failed,
    pending,
    queued,
    raw_experiment,
    raw_job,
    restarted,
    restarting,
    running,
    starting,
    succeeded,
)
from experimenting import World, experiment
from finetune_api.status import ConditionType, JobStatus, Phase, Reason
from finetune_cli.dashboard import folder_source
from finetune_cli.dashboard.board import Board
from finetune_cli.dashboard.details import MOST_SPEC_CHARACTERS
from finetune_cli.dashboard.folder_source import follow_once, look
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.store import Store, locked
from finetune_operator.conditions import Situation, with_situation
from test_compare import job as finished_job
from test_experiment_report import by_strategy


def row(raw, *names):
    told = entry(raw).row
    return tuple(told[name] for name in names)


NEW = "the operator has not looked at it yet"
STANDINGS = {
    "not seen": (None, "Pending", "plain", NEW, "", None, ""),
    "no runtime": (pending(), "Pending", "bad", "there is no FineTuneRuntime h100", "", None, ""),
    "in a queue": (queued(), "Suspended", "plain", "Attempt 1 waits to be admitted by queue team-gpus", "", None, ""),
    "no node": (starting("no node takes it"), "Starting", "plain", "no node takes it", "", None, ""),
    "trains": (running(450), "Running", "good", "Training", "accuracy 0.8809", 50, "12:45 min left"),
    "starts again": (
        restarting(),
        "Restarting",
        "plain",
        "Attempt 1 ended (Infrastructure): a peer was lost; attempt 2 follows in 20 s",
        "accuracy 0.8417",
        100 / 3,
        "step 300",
    ),
    "is done": (
        succeeded(),
        "Succeeded",
        "good",
        "Trained 900 steps; stopped early, for the metric no longer improved",
        "accuracy 0.939",
        100,
        "step 900",
    ),
    "has failed": (
        failed(),
        "Failed",
        "bad",
        "Attempt 1 ended (Configuration): data.csv, line 31,204: the label is empty; 14 more lines are like it",
        "accuracy 0.6249",
        50 / 9,
        "step 50",
    ),
}


@pytest.mark.parametrize(
    ("status", "phase", "tone", "message", "best", "percent", "told"), STANDINGS.values(), ids=STANDINGS
)
def test_a_job_in_the_list(status, phase, tone, message, best, percent, told):
    found = row(raw_job("a", status=status), "phase", "tone", "message", "best", "percent", "told")
    assert found == (phase, tone, message, best, pytest.approx(percent) if percent is not None else None, told)


def test_what_a_row_is_known_by():
    raw = raw_job("a", created=datetime(2030, 1, 1, tzinfo=UTC), status=restarted())
    names = ("kind", "namespace", "name", "uid", "version", "created", "restarts", "experiment")
    version = raw["metadata"]["resourceVersion"]
    assert row(raw, *names) == (
        "FineTuneJob", "team-a", "a", "FineTuneJob-team-a-a", version, "2030-01-01T00:00:00+00:00", 2, None,
    )  # fmt: skip


def test_a_stalled_job_says_so():
    status = running()
    stalled = tuple(
        one.model_copy(update={"status": "True"}) if one.type is ConditionType.STALLED else one
        for one in status.conditions
    )
    (message,) = row(raw_job("a", status=status.model_copy(update={"conditions": stalled})), "message")
    assert message == "stalled, nothing has progressed within spec.recovery.stallTimeoutSeconds; Training"


def test_a_message_is_one_line_of_bounded_length_and_steers_nothing():
    status = with_situation(
        JobStatus(), Situation(Phase.STARTING, Reason.STARTING, "a\x1b[2J\n" + "b" * 900), ago(minutes=1), 1
    )
    (message,) = row(raw_job("a", status=status), "message")
    assert message.startswith("a [2J b")
    assert (len(message), message[-1]) == (300, "…")


def test_a_trial_names_its_experiment():
    (found,) = row(raw_job("a", labels={"finetune.dev/experiment": "schemes"}), "experiment")
    assert found == {"namespace": "team-a", "name": "schemes"}


def test_an_experiment_in_the_list():
    concluded, _ = raw_experiment()
    begun, _ = raw_experiment(ticks=9)
    names = ("kind", "phase", "tone", "best", "percent", "told")
    assert row(concluded, *names) == ("FineTuneExperiment", "Succeeded", "good", "full 0.9117", 100, "9 of 9 trials")
    assert row(begun, *names) == ("FineTuneExperiment", "Running", "good", "full 0.9042", 100 * 2 / 9, "2 of 9 trials")
    assert row(concluded, "message")[0].startswith("full is better than frozen by 0.0429 in accuracy (95 % interval ")


# --- an object in full


def test_a_job_with_a_story():
    raw = raw_job("a", status=restarted())
    found = entry(raw).detail()
    assert (found["headline"], found["next"], found["task"]) == (
        "Running: Training", "Nothing: it is under way.", "text-classification",
    )  # fmt: skip
    assert dict(found["facts"]) == {
        "best": "accuracy 0.9111 at step 550",
        "latest": "trainLoss 0.2321, accuracy 0.9068",
        "stopping": "0 of 3 evaluations without improvement",
        "restarts": "2 (OutOfMemory 1, Preempted 1), 50 steps trained again",
        "took": "1:09 h",
        "checkpoint": f"step 600, {FOLDER}/checkpoints/step-600",
        "logs": "kubectl finetune logs a -n team-a --follow",
    }
    assert found["progress"]["told"] == "step 620 of 900, epoch 2.07"
    assert (found["course"]["metric"], found["course"]["best"]) == ("accuracy", 550)
    assert found["course"]["points"] == [(point.step, point.value) for point in restarted().evaluations]
    assert [one["heading"].partition(",")[0] for one in found["attempts"]] == [
        "Attempt 1: OutOfMemory", "Attempt 2: Preempted", "Attempt 3: is under way",
    ]  # fmt: skip
    assert dict(found["attempts"][0]["facts"])["then"].startswith("attempt 2 went on 1:00 min later, from step 200")
    assert all(name != "when" for one in found["attempts"] for name, _ in one["facts"])
    assert found["budgets"] == [("OutOfMemory", "0 of 2 used, 1 in all"), ("Preempted", "free, 1 in all")]
    assert [one["type"] for one in found["conditions"]] == [kind.value for kind in ConditionType]
    assert "task: text-classification\n" in found["spec"]
    assert json.dumps(found), "it is sent as JSON"


def test_an_experiment_in_full():
    found = entry(raw_experiment()[0]).detail()
    assert [one["name"] for one in found["variants"]] == ["full", "lora", "frozen"]
    assert [one["verdict"] for one in found["variants"]] == [None, "unknown", "worse"]
    assert found["table"]["head"][:3] == ["variant", "n", "mean accuracy"]
    assert len(found["table"]["rows"]) == 3
    assert found["trials"][0] == {
        "namespace": "team-a", "name": "schemes-full-0", "variant": "full", "seed": 0, "phase": "Succeeded",
        "step": "4 of 4", "value": found["trials"][0]["value"], "took": "8:00 min",
    }  # fmt: skip
    assert dict(found["facts"])["trials"] == "9 (9 succeeded)"
    assert "variants:" in found["spec"]
    assert json.dumps(found)


def test_a_status_of_another_version_is_shown_as_it_is():
    raw = raw_job("a", status=running())
    raw["status"]["phase"] = "Levitating"
    made = entry(raw)
    assert (made.row["phase"], made.row["tone"]) == ("Unknown", "bad")
    assert "its status is of another version of the operator (status.phase: must be one of " in made.row["message"]
    found = made.detail()
    assert "phase: Levitating" in found["spec"]
    assert (found["name"], found["headline"]) == ("a", made.row["message"])


def test_fields_of_a_newer_operator_are_passed_by():
    raw = raw_job("a", status=running())
    raw["status"]["novelty"], raw["spec"]["novelty"] = {"a": 1}, 2
    assert (entry(raw).row["phase"], entry(raw).detail()["task"]) == ("Running", "text-classification")


def test_a_long_specification_is_cut():
    raw, _ = raw_experiment()
    raw["spec"]["template"]["note"] = "n" * MOST_SPEC_CHARACTERS
    assert entry(raw).detail()["spec"].rstrip().endswith("characters more")


# --- a folder of runs


@pytest.fixture
def runs(tmp_path):
    """A folder of two runs, one of which is under way, and an experiment."""
    root = tmp_path / "runs"
    write_run(root / "done", finished_job("done"))
    status = running(100)
    write_run(root / "going", finished_job("going").model_copy(update={"status": status}))
    world = World(experiment(), by_strategy).run()
    store = ExperimentStore(root / "schemes")
    store.root.mkdir()
    store.write(world.experiment)
    for name, job in world.jobs.items():
        write_run(store.trials / name, job)
    return root


def write_run(root, job):
    root.mkdir(parents=True, exist_ok=True)
    Store(root).write(job)


@pytest.fixture
def folder(runs):
    """Looks into the folder as often as it is called; returns the rows by place and name."""
    board, seen = Board(), {}

    def again():
        seen["last"] = follow_once(runs, seen.get("last", {}), lambda work: work(board))
        return {row["namespace"] + "/" + row["name"]: row for row in board.changes(0).rows}

    again.board = board
    return again


def test_what_lies_in_a_folder(folder):
    found = folder()
    assert {name: row["phase"] for name, row in found.items() if "trials" not in name} == {
        "runs/done": "Succeeded", "runs/going": "Running", "runs/schemes": "Succeeded",
    }  # fmt: skip
    trials = [row for name, row in found.items() if name.startswith("runs/schemes/trials/")]
    assert len(trials) == 6
    assert all(row["experiment"] == {"namespace": "runs", "name": "schemes"} for row in trials)


@pytest.mark.parametrize("inside", ["done", "schemes"])
def test_the_folder_may_be_that_of_one_run_or_experiment(runs, inside):
    found = look(runs / inside, {})
    names = {seen.entry.key[1:] for seen in found.values()}
    assert ("", inside) in names
    assert len(names) == {"done": 1, "schemes": 7}[inside]
    trials = [seen.entry.row["experiment"] for seen in found.values() if seen.entry.key[1]]
    assert all(one == {"namespace": "", "name": "schemes"} for one in trials)


def test_a_run_that_no_command_works_on_says_so(folder, runs):
    assert folder()["runs/going"]["message"] == "no command runs it now: Training"
    with locked(runs / "going" / ".lock", lambda _: None, lambda: None):
        assert folder()["runs/going"]["message"] == "Training"
    assert folder()["runs/going"]["message"] == "no command runs it now: Training"
    detail, _ = folder.board.find(("FineTuneJob", "runs", "going"))
    assert detail()["next"] == "The same finetune run goes on from the last checkpoint."


def test_what_changes_and_what_goes(folder, runs):
    folder()
    before = folder.board.sequence
    folder()
    assert folder.board.sequence == before, "nothing is told where nothing has changed"
    write_run(runs / "going", finished_job("going"))
    shutil.rmtree(runs / "done")
    found = folder()
    assert "runs/done" not in found
    assert found["runs/going"]["phase"] == "Succeeded"


def test_only_what_has_changed_is_read(runs, monkeypatch):
    first = look(runs, {})
    os.utime(runs / "done" / "status.yaml", (1, 1))
    read = []
    monkeypatch.setattr(folder_source, "kind_in", lambda path: read.append(path) or "")
    look(runs, first)
    assert read == [runs / "done" / "status.yaml"]


def test_a_damaged_file_is_told_of_until_it_is_whole(folder, runs):
    path = runs / "done" / "status.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("phase: Succeeded", "phase: Levitating"))
    assert "runs/done" not in folder()
    (problem,) = folder.board.changes(0).problems
    assert (problem.what, "status.phase" in problem.message) == (str(path), True)
    path.write_text(whole)
    assert "runs/done" in folder()
    assert folder.board.changes(0).problems == ()


def test_the_training_loss_of_a_run_is_that_of_its_history(folder, runs):
    lines = [{"kind": "step", "step": step, "epoch": 0.1, "loss": 1 / step} for step in range(1, 500)]
    lines[9]["loss"] = float("nan")
    history = runs / "done" / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "step": 500, "lo')
    folder()
    detail, _ = folder.board.find(("FineTuneJob", "runs", "done"))
    trail = detail()["trail"]
    assert (trail[0], len(trail) <= 128, trail[-1][0] > 480) == ((1, 1.0), True, True)
    assert detail()["facts"][-1] == ("logs", str(runs / "done" / "logs"))
    assert folder.board.find(("FineTuneJob", "runs", "going"))[0]()["trail"] == []
