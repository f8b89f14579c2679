"""What a user or a platform can get wrong: input → exit code and message; no good checkpoint is ever harmed."""

import errno
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from finetune_api.outcomes import Cause, ExitCode
from finetune_trainer import checkpoint, launch
from finetune_trainer.__main__ import explain
from finetune_trainer.errors import Diverged


def nothing(_folder: Path) -> None:
    """The data as it is."""


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "text-classification").read_text().splitlines()]


def with_row(number: int, row: str) -> Callable[[Path], None]:
    """Replace one line (counted from 1) of the text data."""

    def damage(folder: Path) -> None:
        path = folder / "text-classification"
        lines = path.read_text().splitlines()
        lines[number - 1] = row
        path.write_text("\n".join(lines))

    return damage


def relabel(**labels: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        rows = [{**row, "label": labels.get(row["label"], row["label"])} for row in lines_of(folder)]
        (folder / "text-classification").write_text("\n".join(map(json.dumps, rows)))

    return damage


def empty(folder: Path) -> None:
    (folder / "text-classification").write_text("")


def remove(folder: Path) -> None:
    (folder / "text-classification").unlink()


def forbid(folder: Path) -> None:
    (folder / "text-classification").chmod(0)


def spoil_image(folder: Path) -> None:
    path = folder / "image-classification" / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:60])


def make_weightless_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "tokenizer.json").write_text("{}")


@dataclass(frozen=True)
class Case:
    """One thing that is wrong."""

    code: ExitCode
    message: str
    """Pattern of the whole message; FOLDER stands for the test's folder."""
    spec: dict[str, Any] = field(default_factory=dict)
    damage: Callable[[Path], None] = nothing
    kind: str = "text-classification"
    wishes: dict[str, Any] = field(default_factory=dict)


def model(source: str) -> dict[str, Any]:
    return {"model": {"source": source, "config": None, "tokenizer": None}}


CASES = {
    "missing model": Case(
        ExitCode.NOT_FOUND,
        r"spec\.model\.source: file:///nowhere/model: /nowhere/model is not there.*",
        model("file:///nowhere/model"),
    ),
    "model without config.json": Case(
        ExitCode.NOT_FOUND,
        r"spec\.model\.source: file://FOLDER/model has no config\.json; it must be a folder that transformers saved",
        model("file://FOLDER/model"),
        make_weightless_model,
    ),
    "model in a claim that is not mounted": Case(
        ExitCode.NOT_FOUND,
        r"spec\.model\.source: pvc://models/x: claim models is not mounted at .*",
        model("pvc://models/x"),
    ),
    "missing data": Case(
        ExitCode.NOT_FOUND,
        r"spec\.data\.source: file://FOLDER/text-classification: FOLDER/text-classification is not there.*",
        damage=remove,
    ),
    "empty data": Case(
        ExitCode.BAD_DATA,
        r"spec\.data\.source: FOLDER/text-classification has no samples; the data set is empty",
        damage=empty,
    ),
    "a broken row": Case(
        ExitCode.BAD_DATA,
        r"text-classification:7: column 19: .*; each line must be one JSON object",
        damage=with_row(7, '{"text": "torn off'),
    ),
    "a row without text": Case(
        ExitCode.BAD_DATA,
        r"text-classification:9: spec\.data\.columns\.text: is empty; fill it in or remove the row",
        damage=with_row(9, '{"text": " ", "label": "a"}'),
    ),
    "one class only": Case(
        ExitCode.BAD_DATA,
        r'spec\.data\.columns\.label: all \d+ labels of the training samples are "a"; there must be two classes .*',
        damage=relabel(b="a", c="a"),
    ),
    "a label outside the list": Case(
        ExitCode.BAD_DATA,
        r'text-classification:3: spec\.data\.columns\.label: "c" is not in spec\.data\.labels \("a", "b"\)',
        {"data": {"labels": ["a", "b"]}},
    ),
    "an image that does not decode": Case(
        ExitCode.BAD_DATA,
        r"FOLDER/image-classification/b/001\.png: is damaged: .*",
        damage=spoil_image,
        kind="image-classification",
    ),
    "a strategy deeper than the model": Case(
        ExitCode.BAD_SPEC,
        r"spec\.strategy\.lastLayers: must be at most 2 \(the layers in bert\.encoder\.layer\), got 3",
        {"strategy": {"trainable": "lastLayers", "lastLayers": 3}},
    ),
    "a metric that the task lacks": Case(
        ExitCode.BAD_SPEC,
        r"spec\.evaluation\.metrics: text-classification has the metrics loss, accuracy, .*, got perplexity",
        {"evaluation": {"metrics": ["perplexity"]}},
    ),
    "an early stopping metric that the task lacks": Case(
        ExitCode.BAD_SPEC,
        r"spec\.earlyStopping\.metric: text-classification has the metrics .*, got mse",
        {"earlyStopping": {"metric": "mse"}},
    ),
    "a module that the model lacks": Case(
        ExitCode.BAD_SPEC,
        r"spec\.strategy\.lora\.targetModules: no module that can be adapted is named 'q_proj'; there are .*query.*",
        {"strategy": {"lora": {"targetModules": ["q_proj"]}}},
    ),
    "more positions than the model has": Case(
        ExitCode.BAD_SPEC,
        r"spec\.data\.maxLength: must be at most 64 \(the positions of the model\), got 100",
        {"data": {"maxLength": 100}},
    ),
    "an architecture that does not exist": Case(
        ExitCode.BAD_SPEC,
        r"spec\.model\.config\.model_type: must be an architecture of transformers, got 'brt'",
        {"model": {"config": {"model_type": "brt"}}},
    ),
    "fp16 without a GPU": Case(
        ExitCode.PLATFORM,
        r"spec\.training\.precision: fp16 needs a GPU, and there is none; use bf16, fp32 or auto",
        {"training": {"precision": "fp16"}},
    ),
    "data that may not be read": Case(
        ExitCode.DENIED,
        r"spec\.data\.source: file://FOLDER/text-classification: FOLDER/text-classification may not be read; .*",
        damage=forbid,
        wishes={"without_privileges": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_ends_with_its_code_and_message(workers, tmp_path, name):
    case = CASES[name]
    spec = json.loads(json.dumps(case.spec).replace("FOLDER", str(tmp_path)))
    wanted = tiny.job(tmp_path, case.kind, spec)
    case.damage(tmp_path)
    worker = workers.start(wanted, tmp_path / "run", **case.wishes)
    code, told = worker.wait(), worker.message()
    assert (ExitCode(code), told.exit_code, told.cause) == (case.code, case.code, Cause.CONFIGURATION), told
    assert re.fullmatch(case.message.replace("FOLDER", re.escape(str(tmp_path))), told.message), told.message
    assert "Traceback" not in worker.log.read_text()


SPEC_FAULTS = {
    "unknown field": ({"training": {"epocs": 1}}, "spec.training.epocs: is not a field; did you mean epochs?"),
    "wrong type": (
        {"training": {"batchSize": "many"}},
        "spec.training.batchSize: must be a whole number, got 'many'",
    ),
    "out of range": ({"strategy": {"lora": {"r": 0}}}, "spec.strategy.lora.r: must be ≥ 1, got 0"),
}


@pytest.mark.parametrize("name", SPEC_FAULTS)
def test_spec_fault_ends_before_anything_starts(workers, tmp_path, name):
    spec, message = SPEC_FAULTS[name]
    document = tiny.merged(tiny.job(tmp_path, "text-classification").to_wire(), {"spec": spec})
    worker = workers.start(document, tmp_path / "run")
    assert worker.wait() == ExitCode.BAD_SPEC
    told = worker.message()
    assert (told.message, told.cause) == (message, Cause.CONFIGURATION)


def newest(run: Path) -> int:
    """Step of the newest checkpoint, which is whole."""
    folder = run / "checkpoints"
    step = checkpoint.steps_in(folder)[0]
    assert checkpoint.verify(folder / checkpoint.name_of(step)).step == step
    return step


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FAULTS = {
    name: CASES[name]
    for name in (
        "missing model",
        "missing data",
        "a broken row",
        "a label outside the list",
        "an image that does not decode",
        "a strategy deeper than the model",
        "fp16 without a GPU",
    )
} | {
    "unknown field": Case(
        ExitCode.BAD_SPEC, re.escape(SPEC_FAULTS["unknown field"][1]), SPEC_FAULTS["unknown field"][0]
    )
}
"""One of each place where a run can find that something is wrong."""


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_a_run_that_has_a_checkpoint_leaves_it_as_it_is(workers, tmp_path, name):
    case = FAULTS[name]
    saving = {"checkpoint": {"every": {"steps": 3}}, "training": {"maxSteps": 3}}
    good = tiny.job(tmp_path, case.kind, saving)
    assert workers.start(good, tmp_path / "run").wait() == 0
    assert newest(tmp_path / "run") == 3
    before = contents(tmp_path / "run" / "checkpoints")
    case.damage(tmp_path)
    faulty = tiny.merged(good.to_wire(), {"spec": tiny.merged({"training": {"maxSteps": 6}}, case.spec)})
    worker = workers.start(faulty, tmp_path / "run", attempt=2)
    assert worker.wait() == case.code, worker.log.read_text()
    told = worker.message().message
    assert re.fullmatch(case.message.replace("FOLDER", re.escape(str(tmp_path))), told), told
    assert newest(tmp_path / "run") == 3
    assert contents(tmp_path / "run" / "checkpoints") == before


@pytest.mark.parametrize("processes", [1, 2])
def test_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(workers, tmp_path, processes):
    tiny.write_texts(tmp_path / "validation", 6, number=True)
    wanted = tiny.job(
        tmp_path,
        "text-regression",
        {
            "data": {"validationSource": f"file://{tmp_path}/validation"},
            "training": {"batchSize": 2, "maxSteps": 40},
            "checkpoint": {"every": {"steps": 1}},
            "distributed": {"processesPerWorker": processes},
        },
        samples=40,
    )
    path = tmp_path / "text-regression"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[11]["label"] = 1e30
    path.write_text("\n".join(map(json.dumps, rows)))
    worker = workers.start(wanted, tmp_path / "run")
    assert worker.wait() == ExitCode.DIVERGED, worker.log.read_text()
    found = re.match(
        r"loss inf with gradient norm \w+ at step (\d+); the checkpoint of step (\d+) is intact\. Lower .*",
        worker.message().message,
    )
    assert found, worker.message().message
    assert int(found[1]) - 1 == int(found[2]) == newest(tmp_path / "run") > 1


def test_weights_without_bound_end_the_run_and_keep_the_checkpoint(workers, tmp_path):
    """Each step multiplies the weights by -99; on some CPUs the gradient is no longer a number before the loss."""
    wanted = tiny.job(
        tmp_path,
        "text-classification",
        {
            "strategy": {"learningRate": {"value": 10}},
            "training": {"weightDecay": 10, "maxSteps": 40},
            "checkpoint": {"every": {"steps": 1}},
        },
    )
    worker = workers.start(wanted, tmp_path / "run")
    assert worker.wait() == ExitCode.DIVERGED, worker.log.read_text()
    found = re.match(
        r"loss \S+ with gradient norm nan at step (\d+); the checkpoint of step (\d+) is intact\. Lower .*",
        worker.message().message,
    )
    assert found, worker.message().message
    assert int(found[1]) - 1 == int(found[2]) == newest(tmp_path / "run") > 1


@pytest.fixture
def small_volume(request, tmp_path):
    """Mounts a tmpfs of some kilobytes on a folder; unmounts it afterwards."""
    mounted = []

    def mount(folder: Path, kilobytes: int, change: str = "rw") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{change},size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"a small volume cannot be mounted: {done.stderr.strip()}"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        if folder not in mounted:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


SAVING = {"checkpoint": {"every": {"steps": 1}}, "training": {"maxSteps": 20}}


@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk_while_saving_keeps_the_checkpoint(workers, tmp_path, small_volume, processes):
    wanted = tiny.job(tmp_path, "image-classification", {**SAVING, "distributed": {"processesPerWorker": processes}})
    small_volume(tmp_path / "run" / "checkpoints", kilobytes=260)
    worker = workers.start(wanted, tmp_path / "run")
    assert worker.wait() == ExitCode.PLATFORM, worker.log.read_text()
    kept = newest(tmp_path / "run")
    assert re.fullmatch(
        rf"spec\.checkpoint\.volume: a checkpoint could not be written to .*/checkpoints: .*No space left on device.*;"
        rf" the checkpoint of step {kept} is intact\. Make room .* and start the job again: it resumes",
        worker.message().message,
    ), worker.message().message
    assert kept >= 1
    small_volume(tmp_path / "run" / "checkpoints", kilobytes=4096, change="remount")
    assert workers.start(wanted, tmp_path / "run", attempt=2).wait() == 0
    start = json.loads((tmp_path / "run" / "attempts.jsonl").read_text().splitlines()[2])
    assert (start["event"], start["fromStep"]) == ("start", kept)


def test_full_disk_everywhere(workers, tmp_path, small_volume):
    """The run's whole volume is full: not even the last words can be written, the exit code can."""
    wanted = tiny.job(tmp_path, "image-classification", SAVING)
    small_volume(tmp_path / "run", kilobytes=400)
    filler = tmp_path / "run" / "filler"
    worker = workers.start(wanted, tmp_path / "run", scratch=tmp_path / "scratch")
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(512), 1000))
    assert worker.wait() == ExitCode.PLATFORM, worker.log.read_text()
    assert re.fullmatch(
        r"spec\.checkpoint\.volume: .*No space left on device.*; (free it, .*|there is no earlier .*)",
        worker.message().message,
    ), worker.message().message


def real_out_of_memory() -> BaseException:
    try:
        torch.empty(2**50, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("a petabyte was to be had")


EXPLAINED = {
    "CPU memory": (real_out_of_memory, ExitCode.KILLED, Cause.OUT_OF_MEMORY),
    "GPU memory": (
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        ExitCode.KILLED,
        Cause.OUT_OF_MEMORY,
    ),
    "Python's memory": (MemoryError, ExitCode.KILLED, Cause.OUT_OF_MEMORY),
    "fork without memory": (
        lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
        ExitCode.KILLED,
        Cause.OUT_OF_MEMORY,
    ),
    "full disk": (
        lambda: OSError(errno.ENOSPC, "No space left on device", "/run/history.jsonl"),
        ExitCode.PLATFORM,
        Cause.CONFIGURATION,
    ),
    "quota": (lambda: OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.PLATFORM, Cause.CONFIGURATION),
    "read-only disk": (lambda: OSError(errno.EROFS, "Read-only file system"), ExitCode.PLATFORM, Cause.CONFIGURATION),
    "permission": (lambda: PermissionError(errno.EACCES, "Permission denied"), ExitCode.DENIED, Cause.CONFIGURATION),
    "gloo peer": (
        lambda: RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:23"),
        ExitCode.RETRY,
        Cause.INFRASTRUCTURE,
    ),
    "nccl peer": (
        lambda: torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
        ExitCode.RETRY,
        Cause.INFRASTRUCTURE,
    ),
    "store": (
        lambda: torch.distributed.DistNetworkError("failed to connect"),
        ExitCode.RETRY,
        Cause.INFRASTRUCTURE,
    ),
    "reset": (ConnectionResetError, ExitCode.RETRY, Cause.INFRASTRUCTURE),
    "divergence": (lambda: Diverged("loss nan"), ExitCode.DIVERGED, Cause.CONFIGURATION),
    "anything else": (lambda: ZeroDivisionError("division by zero"), ExitCode.BUG, Cause.APPLICATION),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_errors_are_mapped_to_codes(name):
    make, code, cause = EXPLAINED[name]
    told = explain(make())
    assert (told.exit_code, told.cause) == (code, cause)
    assert told.message


WORDLESS = {
    "killed": (137, False, Cause.INFRASTRUCTURE, "rank 3 was ended by SIGKILL"),
    "killed for memory": (137, True, Cause.OUT_OF_MEMORY, "rank 3 was killed for memory; raise .*"),
    "crashed": (139, False, Cause.APPLICATION, "rank 3 was ended by SIGSEGV"),
    "asked to leave": (143, False, Cause.PREEMPTED, "rank 3 was ended by SIGTERM"),
    "left": (1, False, Cause.APPLICATION, "rank 3 left with exit code 1"),
}


@pytest.mark.parametrize("name", WORDLESS)
def test_processes_that_could_say_nothing(name):
    code, is_oom, cause, message = WORDLESS[name]
    told = launch._wordless(3, code, is_oom=is_oom)
    assert (told.exit_code, told.cause) == (code, cause)
    assert re.fullmatch(message, told.message)
