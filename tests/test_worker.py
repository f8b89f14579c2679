"""A worker as its cluster and its user see it: progress, trackers, and new interpreters instead of warm ones."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tiny
from cluster.ports import free_port
from finetune_api.status import TERMINATION_MESSAGE_BYTES, ProgressReport
from workers import history_of, last_step

KILLED, PREEMPTED = 137, 143
SERIES = {
    "finetune_step": set(),
    "finetune_total_steps": set(),
    "finetune_epoch": set(),
    "finetune_eta_seconds": set(),
    "finetune_samples_per_second": set(),
    "finetune_train_loss": set(),
    "finetune_learning_rate": set(),
    "finetune_grad_norm": set(),
    "finetune_last_checkpoint_step": set(),
    "finetune_stage": {"stage"},
    "finetune_metric": {"metric"},
}
"""Every metric of a worker, and its labels."""


def test_progress_of_a_live_run(workers, tmp_path):
    spec = {"training": {"epochs": 1000, "maxSteps": None}, "evaluation": {"every": {"steps": 5}}}
    worker = workers.start(tiny.job(tmp_path, "text-classification", spec), tmp_path / "run")
    worker.await_step(12)
    report = ProgressReport.model_validate_json(worker.get("/progress"))
    assert report.progress is not None
    assert report.progress.step >= 12
    assert report.progress.total_steps == 3000
    assert {"loss", "accuracy", "f1", "auroc", "trainLoss"} == set(report.metrics)
    families = {family.name: family for family in text_string_to_metric_families(worker.get("/metrics"))}
    assert {name: labels_of(family) for name, family in families.items()} == SERIES
    assert sum(len(family.samples) for family in families.values()) < 40
    assert families["finetune_total_steps"].samples[0].value == 3000
    worker.terminate()
    assert worker.wait() == PREEMPTED
    assert (worker.scratch / "termination.json").stat().st_size <= TERMINATION_MESSAGE_BYTES
    report = worker.message().report
    assert report is not None
    assert report.progress is not None
    assert report.progress.step == worker.message().step == last_step(worker.run)


def labels_of(family):
    return {label for sample in family.samples for label in sample.labels}


def test_termination_message_fits_whatever_was_found(workers, tmp_path):
    """The file system's longest path, with letters of three bytes each, in a message that holds it twice."""
    source = "/".join(["", *["ฟ" * 80] * 11])
    wanted = tiny.job(tmp_path, "text-classification", {"data": {"source": f"file://{source}"}})
    worker = workers.start(wanted, tmp_path / "run")
    assert worker.wait() == 66
    assert (worker.scratch / "termination.json").stat().st_size <= TERMINATION_MESSAGE_BYTES
    assert worker.message().message.startswith("spec.data.source: file:///ฟ")


TRACKED = {
    "training": {"maxSteps": 12},
    "evaluation": {"every": {"steps": 4}},
    "tracking": {"tensorboard": True, "wandb": {"project": "tests", "mode": "offline"}},
}


def test_trackers_hold_the_losses_of_all_attempts(workers, tmp_path):
    wanted = tiny.job(tmp_path, "text-classification", TRACKED)
    worker = workers.start(wanted, tmp_path / "run")
    worker.await_step(5)
    worker.terminate()
    stopped = worker.wait()
    if stopped == PREEMPTED:  # a machine that is quick enough has finished
        assert workers.start(wanted, tmp_path / "run", attempt=2).wait() == 0
    losses = {line["step"]: line["loss"] for line in history_of(tmp_path / "run") if line["kind"] == "step"}
    assert len(losses) == 12
    trackers = worker.run.trackers
    assert tensorboard_scalars(trackers, "train/loss") == pytest.approx(losses)
    assert set(tensorboard_scalars(trackers, "validation/accuracy")) == {4, 8, 12}
    assert wandb_scalars(trackers, "train/loss") == pytest.approx(losses)
    runs = {path.name.partition("-")[2].partition("-")[2][16:] for path in trackers.glob("wandb/offline-run-*")}
    assert runs == {"default-tiny"}, "attempts report to one and the same run"


def tensorboard_scalars(folder, name):
    """step → value, over all event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path))
        events.Reload()
        if name in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(name)}
    return found


def wandb_scalars(folder, name):
    """step → value, over all offline runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(folder.rglob("*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if name in values:
                found[int(json.loads(values["_step"]))] = json.loads(values[name])
    return found


def leveldb_records(log):
    """Records of a W&B transaction log: 7 bytes of its own, then the blocks of a LevelDB log.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    position, record = 7, b""
    while position + 7 <= len(log):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", log, position + 4)
        record += log[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def test_new_interpreters_are_killed_and_resume_as_well(workers, tmp_path):
    """What the other tests do with warm processes, once with the command that a cluster starts."""
    spec = {"checkpoint": {"every": {"steps": 2}}, "training": {"maxSteps": 200, "batchSize": 2}}
    wanted = tiny.job(tmp_path, "image-classification", spec)
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    worker = workers.start(wanted, run, cold=True)
    worker.await_step(5)
    (rank,) = worker.ranks(1)
    rank.kill()
    assert worker.wait(10) == KILLED
    assert workers.start(wanted, run, attempt=2, cold=True).wait() == 0
    assert workers.start(wanted, undisturbed).wait() == 0
    assert worker.run.history.read_bytes() == (undisturbed / "history.jsonl").read_bytes()


def test_torchrun_starts_it_as_well(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.json").write_text(json.dumps(tiny.job(tmp_path, "text-regression").to_wire()))
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(run),
        "FINETUNE_JOB": str(run / "job.json"),
        "FINETUNE_RUN": str(run),
        "FINETUNE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    address = ["--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *address, "-m", "finetune_trainer"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_step_of(run) == 5
    assert json.loads((run / "attempts.jsonl").read_text().splitlines()[0])["worldSize"] == 2
    assert re.search(r"step 5: loss=", done.stderr)


def last_step_of(run):
    return history_of(run)[-1]["step"]
