"""What only a GPU shows: bf16 and fp16, attention's kernels, memory, NCCL. Run by ``pytest -m gpu``.

Two workers share one GPU here, each as a machine of its own to NCCL, so that they talk through sockets as pods do.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tiny
from cluster.ports import free_port
from finetune_trainer.estimate import GPU_RESERVE, estimate, longest_samples, subject_of
from finetune_trainer.memory import run_pass
from finetune_trainer.run import prepare
from test_capabilities import STAGES
from workers import history_of

pytestmark = [
    pytest.mark.gpu,
    # Of PyTorch's own imports, in versions that still have TorchScript.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PREEMPTED = 143
ON_GPU = {"auto": 0.02, "fp16": 0.02, "fp32": 1e-3}
"""How far losses may be from those of fp32 on a CPU."""
GPT = {**tiny.GPT2, "n_embd": 128, "n_head": 2}
BERT = {**tiny.BERT, "hidden_size": 128, "max_position_embeddings": 512}
SEVERAL_STEPS = {"training": {"maxSteps": 8}, "checkpoint": {"every": {"steps": 2}, "keepLast": 8}}


@pytest.fixture(autouse=True)
def on_gpu():
    assert torch.cuda.is_available(), "these tests need a GPU"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def losses(run: Path) -> list[float]:
    return [step["loss"] for step in tiny.steps_of(run)]


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ON_GPU)
@pytest.mark.parametrize("kind", tiny.TASKS)
def test_losses_are_those_of_the_cpu(kind, precision, tmp_path, monkeypatch):
    process = tiny.process_of(tiny.job(tmp_path, kind, {"training": {"precision": precision}}), tmp_path / "gpu")
    material = prepare(process)  # texts are padded otherwise for a GPU, so that their batches are others
    loop = tiny.trained(process, material)
    assert {value.device.type for value in loop.inner.parameters()} == {"cuda"}
    assert {value.dtype for value in loop.inner.parameters()} == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny.trained(tiny.process_of(tiny.job(tmp_path, kind), tmp_path / "cpu"), material)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=ON_GPU[precision])
    if precision == "auto":
        assert losses(tmp_path / "gpu") != losses(tmp_path / "cpu")


FUSED = ("flash", "fmha", "cudnn_generated", "sdpa")
"""Of the names of kernels that compute attention in one."""


@pytest.mark.parametrize(
    ("kind", "model"), [("causal-lm", GPT), ("text-classification", BERT)], ids=["causal", "padded"]
)
def test_attention_is_one_kernel(kind, model, tmp_path):
    """No matrix of all pairs of positions is made, with a mask or without."""
    job = tiny.job(tmp_path, kind, {"model": {"config": model}, "training": {"maxSteps": 2, "precision": "bf16"}})
    loop, state = tiny.assembled(tiny.process_of(job, tmp_path / "run"))
    assert loop.inner.config._attn_implementation == "sdpa"
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as seen:
        loop.run(state)
    loop.history.close()
    names = {event.key for event in seen.key_averages()}
    kernels = {name for name in names if any(word in name.lower() for word in FUSED)}
    print(*sorted(kernels), sep="\n")
    assert kernels
    assert not {name for name in names if name == "aten::_scaled_dot_product_attention_math"}


def test_compiled_training_has_the_same_losses(tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        job = tiny.job(tmp_path, "text-classification", {"training": {"compile": compiled, "precision": "bf16"}})
        tiny.trained(tiny.process_of(job, tmp_path / name))
    torch._dynamo.reset()
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

RESNET = {"model_type": "resnet", **STAGES}


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("causal-lm", {"training": {"precision": "bf16"}}),
        ("text-classification", {"training": {"precision": "fp16"}}),
        ("image-classification", {}),
    ],
    ids=["bf16", "fp16, with its scale", "batch norms"],
)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(kind, spec, tmp_path):
    """The state that is saved is that of one moment, though it is copied while the next passes run."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "image-classification":
            patch.setitem(tiny.TASKS, kind, tiny.TASKS[kind] | {"model": RESNET})
        job = tiny.job(tmp_path, kind, tiny.merged(spec, SEVERAL_STEPS))
    tiny.trained(tiny.process_of(job, tmp_path / "whole"))
    whole = losses(tmp_path / "whole")
    for step in (2, 4, 6):
        run = tmp_path / f"from-{step}"
        tiny.copy_up_to(step, tmp_path / "whole", run)
        tiny.trained(tiny.process_of(job, run))
        print(f"from {step}: {'equal' if losses(run) == whole else 'near'}")
        assert losses(run) == pytest.approx(whole, rel=1e-4), step


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────

LARGE_BERT = {**BERT, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
PADDED = {"padding": "maxLength", "maxLength": 256}


def test_the_estimate_is_what_the_gpu_gives(tmp_path):
    spec = {
        "model": {"config": LARGE_BERT, "dropout": 0.1},
        "data": PADDED,
        "training": {"batchSize": 48, "maxSteps": 3, "precision": "bf16"},
    }
    job = tiny.job(tmp_path, "text-classification", spec, samples=100)
    one = subject_of(tiny.process_of(job, tmp_path / "run"))
    found = estimate(one, gpu_memory=80 << 30)
    torch.cuda.reset_peak_memory_stats()
    model = one.model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = one.part.batch(0, longest_samples(one.part, 48), is_counted=True).to(torch.device("cuda"))
    for _ in range(2):  # the second with the state of the optimizer
        run_pass(model, one.objective, batch, torch.autocast("cuda", torch.bfloat16))
        optimizer.step()
        optimizer.zero_grad()
    seen = torch.cuda.max_memory_allocated()
    print(f"estimated {found.peak >> 20} MiB, seen {seen >> 20} MiB, reserved {torch.cuda.max_memory_reserved() >> 20}")
    assert found.peak == pytest.approx(seen, rel=0.15)
    assert torch.cuda.max_memory_reserved() < found.peak / 0.92 + GPU_RESERVE


def test_the_batch_is_cut_to_what_the_gpu_has_room_for(tmp_path):
    """With 3 GiB of it; and what is trained is the same."""
    spec = {
        "model": {"config": LARGE_BERT},
        "data": PADDED,
        "training": {"batchSize": 96, "maxSteps": 3, "precision": "fp32"},
    }
    fixed = tiny.job(tmp_path, "text-classification", spec, samples=300)
    tiny.trained(tiny.process_of(fixed, tmp_path / "fixed"))
    most = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * (1 << 30) / total)
    assert most > 3 << 30, "it would have fitted"
    auto = {"batchSize": "auto", "effectiveBatchSize": 96}
    job = tiny.job(tmp_path, "text-classification", tiny.merged(spec, {"training": auto}), samples=300)
    tiny.trained(tiny.process_of(job, tmp_path / "auto"))
    samples = json.loads((tmp_path / "auto" / "passes.json").read_text())["samples"]
    print(f"{most >> 20} MiB in one pass; {samples} samples a pass in 3 GiB")
    assert 1 <= samples < 96
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "fixed"), rel=1e-3)


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────


def start(workers: Any, job: Any, run: Path, *, attempt: int = 1) -> list[Any]:
    """The workers of an attempt, each a machine of its own to NCCL."""
    port = free_port()
    return [
        workers.start(
            job,
            run,
            attempt=attempt,
            worker=number,
            port=port,
            cold=True,
            more={"NCCL_HOSTID": f"machine-{number}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"},
        )
        for number in range(job.spec.distributed.workers)
    ]


@pytest.mark.parametrize(
    ("kind", "strategy", "precision", "tolerance"),
    [
        ("causal-lm", "fsdp", "bf16", 0.02),
        ("causal-lm", "fsdp", "fp32", 1e-3),
        ("text-classification", "ddp", "fp32", 1e-3),
    ],
    ids=["fsdp, bf16", "fsdp", "ddp"],
)
def test_two_workers_over_nccl_one_two_one(kind, strategy, precision, tolerance, workers, tmp_path):
    """As one; asked to leave they save; killed they are resumed, also by one alone."""

    def job(count: int) -> Any:
        return tiny.job(
            tmp_path,
            kind,
            {
                "training": {"batchSize": 6, "epochs": 4, "maxSteps": None, "precision": precision},
                "distributed": {"workers": count, "strategy": strategy},
                "evaluation": {"every": {"steps": 7}},
                "checkpoint": {"every": {"steps": 4}},
            },
            samples=60,
        )

    whole, run = tmp_path / "whole", tmp_path / "run"
    (alone,) = start(workers, job(1), whole)
    assert alone.wait() == 0, alone.log.read_text()[-3000:]
    expected = history_of(whole)
    together = start(workers, job(2), run)
    together[0].await_step(5)
    together[1].terminate()
    assert [one.wait() for one in together] == [PREEMPTED, PREEMPTED], together[0].log.read_text()[-3000:]
    together = start(workers, job(2), run, attempt=2)
    together[0].await_step(11)
    for one in together:
        one.kill()
    (last,) = start(workers, job(1), run, attempt=3)
    assert last.wait() == 0, last.log.read_text()[-3000:]
    told = history_of(run)
    assert [(line["kind"], line["step"]) for line in told] == [(line["kind"], line["step"]) for line in expected]
    for one, other in zip(told, expected, strict=True):
        near, wanted = (
            line["metrics"]["loss"] if line["kind"] == "evaluation" else line["loss"] for line in (one, other)
        )
        assert near == pytest.approx(wanted, rel=tolerance), one["step"]
