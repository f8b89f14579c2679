"""Memory: what an estimate says is what training takes, measured; and the largest batch that fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pairs
import tiny
from finetune_api.estimate import Activations, Estimate, Fit, Memory, Parameters
from finetune_cli.estimate import Options, lines_of
from finetune_cli.estimate import estimate as command
from finetune_trainer.estimate import Subject, estimate, subject_of

TOLERANCE = 0.15
"""An estimate is within this share of the memory that a process was seen to take."""


def subject(folder: Path, kind: str, spec=None) -> Subject:
    return subject_of(tiny.process_of(pairs.tiny_or_pairs(folder, kind, spec), folder / "run"))


@pytest.mark.parametrize("kind", [*tiny.TASKS, *pairs.MODELS])
def test_every_task_has_an_estimate(kind, tmp_path):
    one = subject(tmp_path, kind)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    found = estimate(one, gpu_memory=80 << 30)
    total = sum(value.numel() for value in one.model.parameters())
    assert (found.parameters.total, found.parameters.trained, found.precision) == (total, total, "fp32")
    assert found.memory.gradients == 4 * total
    assert found.memory.optimizer == 8 * total
    assert found.memory.weights >= 4 * total, "buffers count too"
    assert found.activations.per_sample > 0
    assert found.fit is not None
    assert found.fit.batch_size > 1000
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert all(value.grad is None for value in one.model.parameters())


def test_an_adapter_trains_little_and_so_holds_little(tmp_path):
    one = subject(tmp_path, "text-classification", {"strategy": {"lora": {"r": 2}}})
    found = estimate(one, gpu_memory=None)
    trained = sum(value.numel() for value in one.model.parameters() if value.requires_grad)
    assert 0 < found.parameters.trained == trained < found.parameters.total / 10
    assert (found.memory.gradients, found.memory.optimizer, found.fit) == (4 * trained, 8 * trained, None)


LARGE = {
    "model_type": "bert",
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}
PROGRAM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny
from test_estimate import LARGE, subject
from finetune_trainer.estimate import estimate, longest_samples
from finetune_trainer.memory import run_pass

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])

SPEC = {{"model": {{"config": LARGE, "dropout": 0.1}}, "data": {{"padding": "maxLength", "maxLength": 128}},
         "training": {{"batchSize": 24, "maxSteps": 2, "precision": "fp32"}}}}
one = subject(Path({folder!r}), "text-classification", SPEC)
found = estimate(one, gpu_memory=None)
one.model.train()
optimizer = torch.optim.AdamW(one.model.parameters(), fused=True)
batch = one.part.batch(0, longest_samples(one.part, 24), is_counted=True)
base = resident("VmRSS") - found.memory.weights
for _ in range(2):  # the second with the state of the optimizer
    Path("/proc/self/clear_refs").write_text("5")
    run_pass(one.model, one.objective, batch, torch.autocast("cpu", enabled=False))
    run_pass(one.model, one.objective, batch, torch.autocast("cpu", enabled=False))
    optimizer.step()
    optimizer.zero_grad()
print(found.peak, resident("VmHWM") - base)
"""


def test_the_estimate_is_what_a_process_takes(tmp_path):
    """The peak of a process of its own, two passes a step, from the kernel's count of its resident memory."""
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    # Freed memory goes back at once, so that what is resident is what is used.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | frugal
    )
    assert done.returncode == 0, done.stderr
    told, seen = map(int, done.stdout.split()[-2:])
    print(f"estimated {told >> 20} MiB, seen {seen >> 20} MiB")
    assert told == pytest.approx(seen, rel=TOLERANCE)


def test_the_command_says_it(tmp_path, capfd):
    job = tiny.job(tmp_path, "text-classification", {"training": {"batchSize": 4096}})
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job.to_wire()))
    options = Options(path, ("spec.strategy.lora.r=2",), "1200Mi", "json", tmp_path / "cache")
    assert command(options) == 0
    found = Estimate.model_validate_json(capfd.readouterr().out)
    assert found.fit is not None
    assert found.fit.gpu_memory == 1200 << 20
    assert found.precision == "fp32"
    lines = lines_of(found)
    assert [line.split("  ")[0] for line in lines] == [
        "parameters",
        "held",
        "activations",
        "this job",
        "on 1.17 GiB",
        "",
    ]


REFUSED = {
    "no such file": (Options(Path("absent.yaml")), 66, "absent.yaml: is not there"),
    "a wrong quantity": (Options(Path(__file__), gpu_memory="much"), 2, "--gpu-memory: 'much' is not a quantity"),
}


@pytest.mark.parametrize(("options", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_command_refuses(options, code, message, capsys):
    assert command(options) == code
    assert capsys.readouterr().err.startswith(message)


def test_an_error_of_the_job_is_said_with_its_code(tmp_path, capfd):
    path = tmp_path / "job.json"
    job = tiny.job(tmp_path, "text-classification", {"strategy": {"lora": {"baseBits": 4}}})
    path.write_text(json.dumps(job.to_wire()))
    assert command(Options(path, cache=tmp_path / "cache")) == 64
    assert capfd.readouterr().err.startswith("spec.strategy.lora.baseBits: needs spec.model.source")


NOTHING_FITS = Estimate(
    parameters=Parameters(total=7_000_000_000, trained=7_000_000_000),
    processes=2,
    precision="bf16",
    memory=Memory(weights=28 << 30, gradients=28 << 30, optimizer=56 << 30),
    activations=Activations(per_sample=640 << 10, fixed=12),
    samples_per_pass=16,
    peak=112 << 30,
    fit=Fit(gpu_memory=80 << 30, samples_per_pass=0, batch_size=0),
)


def test_words_where_nothing_fits():
    assert lines_of(NOTHING_FITS) == [
        "parameters    7,000,000,000, of which 7,000,000,000 are trained (100 %)",
        "held          weights 28 GiB, gradients 28 GiB, optimizer 56 GiB",
        "activations   640 KiB for each sample, 12 B beside, in bf16",
        "this job      16 samples a pass at most: 112 GiB at the peak of each of 2 processes",
        "on 80 GiB     nothing fits; try spec.strategy.lora, gradientCheckpointing, a shorter spec.data.maxLength",
    ]
