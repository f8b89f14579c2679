"""batchSize: auto: what fits is found, and what is trained does not depend on it."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pairs
import tiny
from finetune_trainer import batch_finder
from finetune_trainer.batch_finder import Search, available_memory, check_auto, within_memory
from finetune_trainer.data.passes import CPU_COST, PassCost
from finetune_trainer.errors import PlatformError, SpecFault
from finetune_trainer.estimate import subject_of
from finetune_trainer.kernels import make_fast
from finetune_trainer.memory import held_memory

AUTO = {"training": {"batchSize": "auto", "effectiveBatchSize": 6}}


def search(folder: Path, kind: str = "image-classification", spec=None) -> Search:
    """What a run on this machine would try."""
    process = tiny.process_of(pairs.tiny_or_pairs(folder, kind, AUTO | (spec or {})), folder / "run")
    subject = subject_of(process)
    make_fast(subject.model, torch.device("cpu"))
    return Search(
        spec=process.spec,
        model=subject.model,
        objective=subject.objective,
        part=subject.part,
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        group=tiny.group_of(process),
        local_processes=1,
        beat=lambda: None,
    )


def room_for(one: Search, samples: float) -> int:
    """Bytes in which passes of so many samples fit, and not of one more."""
    from finetune_trainer.memory import measure_passes

    held = held_memory(one.model)
    passes = measure_passes(one.model, one.run)
    room = held.gradients + held.optimizer + passes.fixed + (samples + 0.5) * passes.per_sample
    return int(room / batch_finder.USABLE)


@pytest.mark.parametrize("kind", ["image-classification", "causal-lm", "sequence-to-sequence", "clip"])
def test_the_same_is_trained_however_little_memory_there_is(kind, tmp_path, monkeypatch):
    fixed = tiny.trained(tiny.process_of(pairs.tiny_or_pairs(tmp_path, kind), tmp_path / "fixed"))
    room = room_for(search(tmp_path, kind), 2)
    monkeypatch.setattr(batch_finder, "available_memory", lambda: room)
    found = tiny.trained(tiny.process_of(pairs.tiny_or_pairs(tmp_path, kind, AUTO), tmp_path / "auto"))
    assert json.loads((tmp_path / "auto" / "passes.json").read_text())["samples"] == 2
    assert found.batch_size == fixed.batch_size
    batches = found._batches(tiny.RunState())
    assert max(len(passes) for passes, *_ in (next(batches) for _ in range(3))) >= (
        3 if kind == "image-classification" else 2
    )
    wanted, got = (tiny.steps_of(tmp_path / name) for name in ("fixed", "auto"))
    assert [step["samples"] for step in got] == [step["samples"] for step in wanted]
    assert [step["loss"] for step in got] == pytest.approx([step["loss"] for step in wanted], rel=1e-5)


def test_no_more_than_the_batch_and_no_more_than_fits(tmp_path, monkeypatch):
    one = search(tmp_path)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    found = {}
    for samples in (100, 3):
        room = room_for(one, samples)
        monkeypatch.setattr(batch_finder, "available_memory", lambda room=room: room)
        cost = within_memory(CPU_COST, one, tmp_path / f"{samples}.json", tmp_path / "attempts")
        found[samples] = (cost.most_samples, cost.most_tokens)
    assert found == {100: (6, 1024), 3: (3, 1024)}
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert all(value.grad is None for value in one.model.parameters())


def test_no_room_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_finder, "available_memory", lambda: 1 << 10)
    with pytest.raises(PlatformError) as fault:
        within_memory(CPU_COST, search(tmp_path), tmp_path / "passes.json", tmp_path / "attempts")
    assert str(fault.value).startswith("spec.training.batchSize: 0 MiB are left for a pass; ask for more memory")


def limited(one: Search, most: int, others: int = 1 << 20) -> Search:
    """The same on a GPU that runs out of memory above ``most`` samples, beside one that does above ``others``."""
    sizes = []

    def forward(model, batch):
        sizes.append(len(batch.indices))
        if len(batch.indices) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one.objective.forward(model, batch)

    group = SimpleNamespace(
        rank=0, size=2, sum=lambda failed: [failed[0] + (sizes[-1] > others)], broadcast=lambda value: value
    )
    return replace(one, objective=replace(one.objective, forward=forward), group=group)


TRIALS = {"all fit": (6, 100, 3), "half of it": (2, 100, 2), "one": (1, 100, 1), "the other GPU is full": (6, 1, 1)}


@pytest.mark.parametrize(("most", "others", "found"), TRIALS.values(), ids=TRIALS)
def test_on_a_gpu_passes_are_tried(tmp_path, most, others, found):
    assert batch_finder._by_trial(limited(search(tmp_path), most, others), 3) == found


def test_a_gpu_that_takes_nothing(tmp_path):
    with pytest.raises(
        PlatformError, match=r"^spec.training.batchSize: the GPU has no room for a pass of one sample; "
    ):
        batch_finder._by_trial(limited(search(tmp_path), 0), 6)


KEPT = {"samples": 8, "tokens": 800, "world_size": 1}
RECALLED = {
    "as it was": (KEPT, [], (None, 800)),
    "after another failure": (KEPT, [{"event": "end", "cause": "Infrastructure"}], (None, 800)),
    "half after memory ran out": (KEPT, [{"event": "start"}, {"event": "end", "cause": "OutOfMemory"}], (None, 400)),
    "images": (KEPT | {"tokens": None}, [{"event": "end", "cause": "OutOfMemory"}], (4, None)),
}


@pytest.mark.parametrize(("kept", "attempts", "found"), RECALLED.values(), ids=RECALLED)
def test_a_resumed_run_cuts_as_the_run_before(tmp_path, kept, attempts, found):
    (tmp_path / "passes.json").write_text(json.dumps(kept))
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    group = SimpleNamespace(rank=0, size=1, broadcast=lambda value: value)
    cost = within_memory(
        PassCost(64), SimpleNamespace(group=group), tmp_path / "passes.json", tmp_path / "attempts.jsonl"
    )
    assert (cost.most_samples, cost.most_tokens) == found


def test_auto_does_not_go_with_sharding(tmp_path):
    spec = tiny.job(tmp_path, "causal-lm", AUTO | {"distributed": {"strategy": "fsdp", "workers": 2}}).spec
    with pytest.raises(SpecFault) as fault:
        check_auto(spec, 2)
    assert str(fault.value) == (
        "spec.training.batchSize: auto goes with spec.distributed.strategy ddp; with fsdp, `finetune estimate` tells"
    )
    check_auto(spec, 1)


GIB = 1 << 30
MACHINE = {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n"}
ROOMS = {
    "no cgroup": ({}, 8 * GIB),
    "a container's": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
        },
        3 * GIB,
    ),
    "page cache gives way": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
        },
        3 * GIB,
    ),
    "a parent is tighter": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "5\n",
            "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": "0\n",
        },
        2 * GIB,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "7:memory:/docker/x\n6:cpu,cpuacct:/docker/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        },
        GIB,
    ),
    "used up": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "100\n",
            "sys/fs/cgroup/memory.current": "200\n",
        },
        0,
    ),
}


@pytest.mark.parametrize(("files", "room"), ROOMS.values(), ids=ROOMS)
def test_memory_that_is_left(tmp_path, files, room):
    for name, text in (MACHINE | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_memory(tmp_path) == room
