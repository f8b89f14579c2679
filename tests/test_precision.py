"""Training in bf16 and with torch.compile: the losses of fp32, as near as each comes to them."""

import shutil

import pytest
import torch
from torch import _dynamo as dynamo

import tiny
from finetune_trainer import checkpoint
from finetune_trainer.compiling import compile_model
from finetune_trainer.errors import PlatformError

KINDS = ["text-classification", "image-classification"]
STEPS = 5
BF16_TOLERANCE = 0.02
"""bf16 has 8 bits, an operation's error is 1/256 at most; several add up, at random."""
COMPILED_TOLERANCE = 1e-4
SAVED = 2


def run(folder, kind, name, more=None, **training):
    """The loop of a run of five steps in ``folder / name``, and their losses."""
    spec = {"training": training, "checkpoint": {"every": {"steps": SAVED}, "keepLast": STEPS}}
    loop = tiny.trained(tiny.process_of(tiny.job(folder, kind, tiny.merged(spec, more or {})), folder / name))
    return loop, losses_of(folder / name)


def losses_of(folder):
    losses = [step["loss"] for step in tiny.steps_of(folder)]
    assert len(losses) == STEPS
    return losses


def weights_of(loop):
    return loop.inner.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_nearly_fp32(kind, tmp_path):
    exact, expected = run(tmp_path, kind, "fp32", precision="fp32")
    loop, losses = run(tmp_path, kind, "bf16", precision="bf16")
    assert losses == pytest.approx(expected, rel=BF16_TOLERANCE)
    assert all(one != other for one, other in zip(losses, expected, strict=True)), "it was computed in fp32"
    dtypes = {value.dtype for value in weights_of(loop).values() if value.is_floating_point()}
    moments = {value.dtype for state in loop.optimizer.state.values() for value in state.values()}
    assert dtypes | moments == {torch.float32}
    assert any(not torch.equal(value, weights_of(exact)[name]) for name, value in weights_of(loop).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_in_bf16_equals_the_uninterrupted_one(kind, tmp_path):
    uninterrupted, expected = run(tmp_path, kind, "uninterrupted", precision="bf16")
    tiny.copy_up_to(SAVED, tmp_path / "uninterrupted", tmp_path / "resumed")
    assert checkpoint.steps_in(tmp_path / "resumed" / "checkpoints") == [SAVED]
    loop, losses = run(tmp_path, kind, "resumed", precision="bf16")
    assert losses == expected
    assert all(torch.equal(value, weights_of(uninterrupted)[name]) for name, value in weights_of(loop).items())


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """torch's compiler, which has compiled nothing yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # or it starts processes that stay
    yield dynamo.utils.counters["stats"]
    dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch.compile needs a C++ compiler")
def test_compiled_training_has_the_same_losses(compiler, tmp_path):
    # Adam's steps are of the rate's size, also where a gradient is nothing but rounding: the rate is low.
    small = {
        "model": {"config": {"num_hidden_layers": 1}},
        "data": {"split": {"train": 12, "validation": 6}},
        "strategy": {"learningRate": {"value": 1e-5}},
    }
    run(tmp_path, "image-classification", "plain", small)
    assert not compiler["unique_graphs"]
    run(tmp_path, "image-classification", "compiled", small, compile=True)
    assert compiler["unique_graphs"]
    plain, compiled = (tiny.steps_of(tmp_path / name) for name in ("plain", "compiled"))
    for name in ("loss", "gradNorm"):
        expected = [step[name] for step in plain]
        assert [step[name] for step in compiled] == pytest.approx(expected, rel=COMPILED_TOLERANCE)


@pytest.mark.parametrize(
    ("device", "variable", "value", "needed"),
    [("cpu", "CXX", None, "g++"), ("cpu", "CXX", "icpx -O3", "icpx"), ("cuda", "CC", None, "gcc or clang")],
)
def test_without_a_compiler_it_is_refused_by_its_field(device, variable, value, needed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    if value:
        monkeypatch.setenv(variable, value)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(PlatformError) as refused:
        compile_model(model, torch.device(device))
    assert str(refused.value) == (
        f"spec.training.compile: compiling for {device} needs {needed}, which this image has not; "
        f"take an image that has it, name another in {variable}, or leave spec.training.compile out"
    )
    (tmp_path / needed.partition(" ")[0]).touch(mode=0o755)
    compile_model(model, torch.device(device))
