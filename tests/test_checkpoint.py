"""Checkpoints: there whole or not at all, proved whole before use, and of one moment."""

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ranks
import tiny
from finetune_api.outcomes import ExitCode
from finetune_trainer import checkpoint, snapshot
from finetune_trainer.__main__ import explain
from finetune_trainer.checkpoint import Rows, Saved, name_of, newest_verified, prune, publish, verify, write_shard
from finetune_trainer.errors import PlatformError
from finetune_trainer.snapshot import Checkpointer, load_tensors, state_tensors


def rows_of(values: np.ndarray, *, offset: int = 0, whole: tuple[int, ...] | None = None) -> Rows:
    """One process's rows of a float32 tensor."""
    flat = np.ascontiguousarray(values, np.float32)
    shape = values.shape if whole is None else whole
    return Rows(flat.reshape(-1).view(np.uint8), "F32", shape, offset, len(values) if values.ndim else 1)


def write(folder: Path, step: int, *, world_size: int = 2, rows: int = 40) -> Path:
    """A checkpoint of ``world_size`` shards, its content a function of the step."""
    values = np.random.default_rng(step).random((rows, 8), np.float32)
    for rank, part in enumerate(np.array_split(np.arange(rows), world_size)):
        tensors = {"model/w": rows_of(values[part], offset=int(part[0]), whole=values.shape)}
        tensors["optimizer/step/w"] = rows_of(np.array(float(step)))
        write_shard(folder, step, rank, tensors)
    return publish(folder, step, world_size=world_size, state={"step": step})


def content(folder: Path) -> dict[str, bytes]:
    """Every file under ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────


def damage(folder: Path, chosen: random.Random) -> str:
    """Do one thing to one file of a checkpoint; says what."""
    path = chosen.choice(sorted(folder.iterdir()))
    before = path.read_bytes()
    kind = chosen.choice(["truncated", "bit flipped", "missing"])
    if kind == "truncated":
        path.write_bytes(before[: chosen.randrange(len(before))])
    elif kind == "bit flipped":
        bit = chosen.randrange(8 * len(before))
        changed = bytearray(before)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
    else:
        path.unlink()
    return f"{path.name} {kind}"


def test_300_damaged_checkpoints_are_detected(tmp_path, caplog):
    sound = tmp_path / "sound"
    for step in (1, 2):
        write(sound, step)
    chosen, done = random.Random(0), set()
    for number in range(300):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        what = damage(folder / name_of(2), chosen)
        done.add(what)
        caplog.clear()
        saved = newest_verified(folder)
        assert saved is not None, what
        assert saved.step == 1, what
        said = f"checkpoint {name_of(2)} is damaged ({what.split()[0]}: "
        assert [record.getMessage()[: len(said)] for record in caplog.records] == [said], what
        assert sorted(path.name for path in folder.iterdir()) == ["damaged-2", name_of(1)], what
        shutil.rmtree(folder)
    assert len(done) == 9, "three files, three ways"


SAID = {
    "missing manifest": ("manifest.json", None, "manifest.json: No such file or directory"),
    "manifest cut": ("manifest.json", b'{"files"', "manifest.json: is not what was written"),
    "manifest is a list": ("manifest.json", b"[]", "manifest.json: is not what was written"),
    "manifest edited": ("manifest.json", b'{"step":9}', "manifest.json: SHA-256 differs"),
    "missing shard": ("shard-00001.safetensors", None, "shard-00001.safetensors: No such file or directory"),
    "shard cut": ("shard-00001.safetensors", b"xy", "shard-00001.safetensors: has 2 bytes, 788 were written"),
    "shard of the same size": ("shard-00001.safetensors", bytes(788), "shard-00001.safetensors: SHA-256 differs"),
}


@pytest.mark.parametrize(("name", "found", "message"), SAID.values(), ids=SAID)
def test_what_is_said_of_a_damaged_one(tmp_path, name, found, message):
    path = write(tmp_path, 1) / name
    path.unlink()
    if found is not None:
        path.write_bytes(found)
    with pytest.raises(checkpoint.Damaged) as damaged:
        verify(tmp_path / name_of(1))
    assert str(damaged.value) == message


def test_another_format_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    folder = write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(checkpoint.Damaged, match=r"format 2 is unknown to this version, which reads 1$"):
        verify(folder)


def test_the_newest_of_many_damaged_ones(tmp_path, caplog):
    for step in range(1, 6):
        write(tmp_path, step)
    for step in (3, 4, 5):
        (tmp_path / name_of(step) / "manifest.json").write_text("")
    saved = newest_verified(tmp_path)
    assert (saved.step, len(caplog.records)) == (2, 3)
    assert write(tmp_path, 5), "its step can be saved again"
    prune(tmp_path, keep_last=2, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name_of(2), name_of(5)]


def test_nothing_that_verifies(tmp_path):
    assert newest_verified(tmp_path / "not there") is None
    (write(tmp_path, 1) / "manifest.json").unlink()
    assert newest_verified(tmp_path) is None


# ── pruning ──────────────────────────────────────────────────────────────────────────────────────────────────────

PRUNED = {
    "two newest": (2, None, {4, 5}),
    "best is old": (2, 1, {1, 4, 5}),
    "best is among them": (2, 4, {4, 5}),
    "three": (3, 2, {2, 3, 4, 5}),
    "more than there are": (9, None, {1, 2, 3, 4, 5}),
    "best was never saved": (2, 99, {4, 5}),
}


@pytest.mark.parametrize(("keep_last", "best", "kept"), PRUNED.values(), ids=PRUNED)
def test_pruning(tmp_path, keep_last, best, kept):
    for step in range(1, 6):
        write(tmp_path, step, rows=2)
    prune(tmp_path, keep_last=keep_last, best_step=best)
    assert set(checkpoint.steps_in(tmp_path)) == kept
    assert all(verify(tmp_path / name_of(step)).step == step for step in kept)


def test_pruning_sweeps_what_failed_but_not_what_is_under_way(tmp_path):
    for name in (".tmp-3", "damaged-2", ".tmp-9", "damaged-9"):
        (tmp_path / name).mkdir()
    write(tmp_path, 5)
    prune(tmp_path, keep_last=2, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-9", "damaged-9", name_of(5)]


# ── a writer that is killed ──────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors runs."""


@contextmanager
def fault_at(monkeypatch, number: int, failure: BaseException):
    """The ``number``-th call that reaches the disk fails, half done: what was not synced is cut.

    Yields a list of the calls that were made.
    """
    calls: list[str] = []

    def wrap(name, half):
        real = getattr(os, name)

        def wrapped(*arguments, **options):
            calls.append(name)
            if len(calls) == number:
                half(real, *arguments)
                raise failure
            return real(*arguments, **options)

        patched.setattr(os, name, wrapped)

    def cut(_real, descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.truncate(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size // 2)

    def partly(real, descriptor, view):
        real(descriptor, view[: len(view) // 2])

    with monkeypatch.context() as patched:
        wrap("fsync", cut)
        wrap("write", partly)
        wrap("rename", lambda *_: None)
        wrap("mkdir", lambda *_: None)
        wrap("unlink", lambda *_: None)
        yield calls


def test_killed_at_any_call_leaves_the_old_or_the_new_whole(tmp_path, monkeypatch):
    outcomes, number = [], 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        write(folder, 1)
        write(folder, 2)
        try:
            with fault_at(monkeypatch, number, Killed()) as calls:
                write(folder, 3)
                prune(folder, keep_last=2, best_step=None)
        except Killed:
            pass
        checkpoint.clear_leftovers(folder)
        saved = newest_verified(folder)
        assert saved.state == {"step": saved.step}
        outcomes.append(saved.step)
        write(folder, 4)
        prune(folder, keep_last=2, best_step=None)
        assert not list(folder.glob(".tmp-*"))
        assert newest_verified(folder).step == 4
        if len(calls) < number:
            break
    first_new = outcomes.index(3)
    assert outcomes == [2] * first_new + [3] * (len(outcomes) - first_new)
    assert first_new > 12
    assert len(outcomes) - first_new > 3, "killed after the rename as well"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_an_error_at_any_call_is_told_and_leaves_the_old_or_the_new_whole(tmp_path, monkeypatch, code):
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        write(folder, 1, world_size=1)
        saver = checkpointer(folder)
        told = None
        with fault_at(monkeypatch, number, OSError(code, os.strerror(code))) as calls:
            saver.save({"step": 2}, {"model/w": torch.ones(4)}, best_step=None)
            try:
                saver.wait()
            except PlatformError as error:
                told = error
        saved = newest_verified(folder)
        if told is None:
            assert saved.step == 2
        else:
            assert f"the checkpoint of step {saved.step} is intact" in str(told)
        assert not list(folder.glob(".tmp-*")), "what failed takes no room"
        if len(calls) < number:
            break
    assert number > 9
    assert told is None


def test_all_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """fsync of every file after its last byte, of the folder after its last entry, then rename, then of the parent."""
    log: list[tuple[str, str]] = []

    def name_of_descriptor(descriptor: int) -> str:
        return os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path)

    def spy(name, tell):
        real = getattr(os, name)

        def spied(*arguments, **options):
            log.append((name, tell(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, spied)

    spy("fsync", name_of_descriptor)
    spy("write", lambda descriptor, _view: name_of_descriptor(descriptor))
    spy("rename", lambda old, new: f"{os.path.relpath(old, tmp_path)} {os.path.relpath(new, tmp_path)}")
    spy("unlink", lambda path, **_: os.path.relpath(path, tmp_path))
    write(tmp_path, 7, world_size=1)
    final = log.index(("rename", f".tmp-7 {name_of(7)}"))
    assert log[final + 1 :] == [("fsync", ".")]
    assert log[final - 1] == ("fsync", ".tmp-7")
    for path in (tmp_path / name_of(7)).iterdir():
        touched = [entry for entry in log[:final] if entry[1] == f".tmp-7/{path.name}"]
        assert touched[-1][0] == "fsync", path.name


def test_a_stale_note_of_a_killed_attempt_is_not_taken(tmp_path):
    """Rank 1 of an attempt that was killed had written; rank 0 of the next must wait for its own rank 1."""
    old = {"model/w": rows_of(np.zeros((2, 2)), offset=2, whole=(4, 2))}
    write_shard(tmp_path, 5, 1, old)
    checkpoint.clear_leftovers(tmp_path)
    write_shard(tmp_path, 5, 0, {"model/w": rows_of(np.ones((2, 2)), whole=(4, 2))})
    asked = iter([True, True, False])
    with pytest.raises(TimeoutError, match=r"note-00001\.json was not written"):
        publish(tmp_path, 5, world_size=2, state={"step": 5}, is_wanted=lambda: next(asked))
    assert checkpoint.steps_in(tmp_path) == []


def test_resuming_clears_leftovers(tmp_path):
    """The stale note is gone once a run is assembled again (see above)."""
    run = tmp_path / "run"
    write_shard(run / "checkpoints", 5, 1, {"model/w": rows_of(np.zeros((2, 2)))})
    tiny.assembled(tiny.process_of(tiny.job(tmp_path, "image-classification"), run))[0].history.close()
    assert list((run / "checkpoints").iterdir()) == []


def test_a_note_that_is_seen_before_its_content(tmp_path):
    """As a network file system may show it."""
    tensors = {"model/w": rows_of(np.ones((2, 2)))}
    write_shard(tmp_path, 1, 0, tensors)
    note = tmp_path / ".tmp-1/note-00000.json"
    content = note.read_bytes()
    note.write_bytes(b"")
    later = threading.Timer(0.1, lambda: note.write_bytes(content))
    later.start()
    assert verify(publish(tmp_path, 1, world_size=1, state={"step": 1})).step == 1
    later.join()


# ── content ──────────────────────────────────────────────────────────────────────────────────────────────────────


def checkpointer(folder: Path, **changes) -> Checkpointer:
    """A checkpointer of one process."""
    settings = {
        "rank": 0,
        "world_size": 1,
        "is_sharded": False,
        "keep_last": 2,
        "before_publish": lambda: None,
        "on_saved": lambda _step, _path: None,
    }
    return Checkpointer(folder, **(settings | changes))


def save(folder: Path, tensors: dict[str, torch.Tensor], step: int = 1) -> Saved:
    saver = checkpointer(folder)
    saver.save({"step": step}, tensors, best_step=None)
    saver.wait()
    return verify(folder / name_of(step))


KINDS = {
    "matrix": torch.randn(5, 3),
    "0 dimensions": torch.tensor(3.5),
    "one row": torch.randn(1, 4),
    "bfloat16": torch.randn(4, 2).bfloat16(),
    "float16": torch.randn(3).half(),
    "float64": torch.randn(2, 2, dtype=torch.float64),
    "int64": torch.arange(7),
    "int32": torch.arange(4, dtype=torch.int32),
    "int16": torch.arange(4, dtype=torch.int16),
    "int8": torch.arange(-2, 2, dtype=torch.int8),
    "uint8": torch.arange(4, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "transposed": torch.randn(4, 6).t(),
    "four dimensions": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "NaN and infinity": torch.tensor([float("nan"), float("inf"), -0.0]),
}


def bits(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_the_safetensors_library_reads_a_shard(tmp_path):
    saved = save(tmp_path, {f"model/{name}": tensor for name, tensor in KINDS.items()})
    read = load_file(saved.folder / "shard-00000.safetensors")
    assert {name: bits(tensor) for name, tensor in read.items()} == {
        f"model/{name}": bits(tensor) for name, tensor in KINDS.items()
    }


class Odd(nn.Module):
    """Parameters and buffers of every shape that models have."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(7, 3))
        self.vector = nn.Parameter(torch.randn(5))
        self.scale = nn.Parameter(torch.randn(()))
        self.bfloat = nn.Parameter(torch.randn(3, 2).bfloat16())
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.tied = self.vector
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("positions", torch.arange(3), persistent=False)

    def forward(self) -> torch.Tensor:
        normed = self.norm(self.matrix)
        return normed.sum() * self.scale + self.tied.square().sum() + self.bfloat.float().sum() + self.empty.sum()


def stepped(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    """An optimizer that has taken some steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(steps):
        model().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_state_of_a_run_comes_back_to_the_bit(tmp_path):
    model = Odd(1)
    optimizer = stepped(model)
    tensors = state_tensors(model, optimizer, whole=True)
    assert {name for name in tensors if name.startswith("model/")} == {
        f"model/{name}"
        for name in (
            *("matrix", "vector", "scale", "bfloat", "empty", "frozen", "norm.weight", "norm.bias"),
            *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
        )
    }
    saved = save(tmp_path, tensors)
    other = Odd(2)
    again = stepped(other, 1)
    load_tensors(saved, other, again)
    for mine, its in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert bits(mine) == bits(its)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        state, loaded = optimizer.state.get(mine, {}), again.state.get(its, {})
        if mine.numel():
            assert {name: bits(value) for name, value in state.items()} == {
                name: bits(value) for name, value in loaded.items()
            }


def test_frozen_parameters_are_left_to_their_source(tmp_path):
    model = Odd(1)
    tensors = state_tensors(model, stepped(model), whole=False)
    assert "model/frozen" not in tensors
    assert "model/norm.running_mean" in tensors
    other = Odd(2)
    before = other.frozen.clone()
    load_tensors(save(tmp_path, tensors), other, None)
    assert (bits(other.frozen), bits(other.matrix)) == (bits(before), bits(model.matrix))


def test_a_snapshot_is_of_one_moment(tmp_path, monkeypatch):
    """Weights change after ``before_update``, and buffers at any time after ``save``."""
    weights, statistics = nn.Parameter(torch.ones(1000, 100)), torch.ones(10)
    finish = snapshot._Copy.finish

    def slowly(copy):
        time.sleep(0.2)
        finish(copy)

    monkeypatch.setattr(snapshot._Copy, "finish", slowly)
    saver = checkpointer(tmp_path)
    tensors = {"model/w": weights, "model/running_mean": statistics, "optimizer/exp_avg/w": torch.ones(3)}
    saver.save({"step": 1}, tensors, best_step=None)
    statistics.fill_(2)
    saver.before_update()
    with torch.no_grad():
        weights.fill_(2)
        tensors["optimizer/exp_avg/w"].fill_(2)
    saver.wait()
    read = load_file(verify(tmp_path / name_of(1)).folder / "shard-00000.safetensors")
    assert {name: set(tensor.flatten().tolist()) for name, tensor in read.items()} == {name: {1.0} for name in tensors}


def test_saves_follow_each_other_and_each_is_told(tmp_path):
    """The copy's memory is used again; the history is on the disk before the checkpoint has its name."""
    told = []
    saver = checkpointer(
        tmp_path,
        before_publish=lambda: told.append(("history", tuple(checkpoint.steps_in(tmp_path)))),
        on_saved=lambda step, path: told.append((step, path)),
    )
    weights = torch.zeros(100)
    for step in (1, 2, 3):
        saver.save({"step": step}, {"model/w": weights}, best_step=1)
        saver.before_update()
        weights += 1
    saver.wait()
    assert told == [
        ("history", ()),
        (1, tmp_path / name_of(1)),
        ("history", (1,)),
        (2, tmp_path / name_of(2)),
        ("history", (2, 1)),
        (3, tmp_path / name_of(3)),
    ]
    values = [
        load_file(tmp_path / name_of(step) / "shard-00000.safetensors")["model/w"][0].item() for step in (1, 2, 3)
    ]
    assert values == [0, 1, 2]


def test_a_rank_that_holds_nothing_of_its_own_writes_nothing(tmp_path):
    saver = checkpointer(tmp_path, rank=1, world_size=2)
    saver.save({"step": 1}, {"model/w": torch.ones(3)}, best_step=None)
    saver.before_update()
    saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_the_writing_thread_is_not_lost(tmp_path):
    """A state that JSON cannot hold: neither silence nor the volume's fault."""
    saver = checkpointer(tmp_path)
    saver.save({"step": 1, "metrics": {1, 2}}, {"model/w": torch.ones(3)}, best_step=None)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.wait()
    assert checkpoint.steps_in(tmp_path) == []


# ── full volume ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_volume(tmp_path):
    """A file system of 220 KiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs; an error at every call is tested above")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_volume(small_volume):
    saver = checkpointer(small_volume)
    tensors = {"model/w": torch.ones(100, 100), "optimizer/exp_avg/w": torch.ones(100, 100)}
    for step in (1, 2):
        saver.save({"step": step}, tensors, best_step=None)
        saver.wait()
    before = content(small_volume)
    saver.save({"step": 3}, tensors, best_step=None)
    with pytest.raises(PlatformError) as full:
        saver.wait()
    told = explain(full.value)
    assert told.exit_code == ExitCode.PLATFORM
    assert told.message == (
        f"spec.checkpoint.volume: a checkpoint could not be written to {small_volume}: [Errno 28] No space left on"
        " device; the checkpoint of step 2 is intact. Make room (a larger volume, a smaller spec.checkpoint.keepLast)"
        " and start the job again: it resumes"
    )
    assert content(small_volume) == before
    assert newest_verified(small_volume).step == 2


# ── other numbers of processes ───────────────────────────────────────────────────────────────────────────────────

RESHARDED = {"2 to 1": (2, 1), "2 to 3": (2, 3), "3 to 2": (3, 2), "1 to 3": (1, 3), "3 to 1": (3, 1)}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, group):
    """World size → a checkpoint that so many processes wrote of a sharded model, and what it holds."""
    folder = tmp_path_factory.mktemp("sharded")
    return {
        size: (folder / str(size), group.run(ranks.write_sharded, size, folder / str(size))[0]) for size in (1, 2, 3)
    }


@pytest.mark.parametrize(("written_by", "read_by"), RESHARDED.values(), ids=RESHARDED)
def test_shards_load_on_another_number_of_processes(sharded, group, written_by, read_by):
    folder, wanted = sharded[written_by]
    manifest = json.loads((folder / name_of(3) / "manifest.json").read_text())
    assert len(manifest["files"]) == manifest["worldSize"] == written_by
    for found in group.run(ranks.read_sharded, read_by, folder):
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
