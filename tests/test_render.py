"""finetune render: what it prints, what it returns, and how little it takes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from finetune_api import read_job, read_runtime
from finetune_cli.main import main
from finetune_cli.render import default_runtime
from finetune_operator.build.children import build_children
from finetune_operator.resolve import resolve

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: demo}
spec:
  task: text-classification
  model: {source: hf://owner/model}
  data: {source: "hf://owner/data"}
  distributed: {workers: 2}
"""
RUNTIME = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneRuntime
metadata: {name: default}
spec:
  image: trainer:1
  ceilings: {workers: 4}
  namespaces: {matchLabels: {tier: gpu}}
"""
READERS = ("finetune-operator", "monitoring")


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A job and a runtime in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "runtime.yaml").write_text(RUNTIME)
    return tmp_path


def outcome(capsys, *arguments):
    """Exit code, lines of the head, documents, lines on stderr."""
    code = main(["render", "-f", "job.yaml", *arguments])
    said = capsys.readouterr()
    head = [line for line in said.out.splitlines() if line.startswith("#")]
    return int(code), head, list(yaml.safe_load_all(said.out)), said.err.splitlines()


def expected(runtime, attempt=1, namespace_labels=(), path="job.yaml"):
    resolved = resolve(read_job(Path(path)), runtime, dict(namespace_labels))
    return list(build_children(resolved, attempt, READERS))


def test_a_job_alone(capsys, files):
    code, head, documents, err = outcome(capsys)
    assert (code, err) == (0, [])
    assert documents == expected(default_runtime("default"))
    assert head == [
        "# What the operator makes for attempt 1 of FineTuneJob demo in namespace default, in this order.",
        "# No --runtime given: FineTuneRuntime default of defaults, image finetune-trainer:0.1.0.",
        "# Namespaces that may read progress depend on the installation; here finetune-operator and monitoring.",
        "# Only a cluster knows the job's uid, which owns these objects and ends the run's folder's name (subPath).",
    ]


def test_with_a_runtime(capsys, files):
    code, head, documents, err = outcome(capsys, "--runtime", "runtime.yaml", "--attempt", "3")
    assert (code, err) == (0, [])
    assert documents == expected(read_runtime(files / "runtime.yaml"), 3, {"tier": "gpu"})
    assert head[:3] == [
        "# What the operator makes for attempt 3 of FineTuneJob demo in namespace default, in this order.",
        "# FineTuneRuntime default from runtime.yaml, image trainer:1.",
        "# Taken for granted: the namespace has the label tier=gpu.",
    ]


def test_in_another_namespace(capsys):
    _, head, documents, _ = outcome(capsys, "-n", "team-a")
    assert "in namespace team-a," in head[0]
    assert {document["metadata"]["namespace"] for document in documents} == {"team-a"}


def test_a_field_is_set(capsys):
    _, _, documents, _ = outcome(capsys, "--set", "spec.distributed.workers=1")
    assert [document["kind"] for document in documents] == ["PersistentVolumeClaim", "NetworkPolicy", "Job"]


def test_a_job_as_a_cluster_stores_it(capsys, files):
    (files / "job.yaml").write_text(JOB.replace("{name: demo}", "{name: demo, uid: 0123abcd-0000}"))
    _, head, documents, _ = outcome(capsys)
    assert len(head) == 3
    assert [document["kind"] for document in documents if "ownerReferences" not in document["metadata"]] == ["Service"]


# changed files, arguments → exit code, stderr
FAULTS = {
    "a spec that is wrong": (
        {},
        ["--set", "spec.trainin={}"],
        64,
        "job.yaml: spec.trainin: is not a field; did you mean training?",
    ),
    "a namespace that cannot be": (
        {},
        ["-n", "Team"],
        64,
        (
            "job.yaml: metadata.namespace: must be lower-case letters, digits and dashes, starting and ending with a"
            " letter or digit, got 'Team'"
        ),
    ),
    "a job that its runtime refuses": (
        {},
        ["--runtime", "runtime.yaml", "--set", "spec.distributed.workers=5"],
        64,
        "job.yaml: spec.distributed.workers: must be ≤ 4 in FineTuneRuntime default, got 5",
    ),
    "a runtime that is wrong": (
        {"runtime.yaml": RUNTIME.replace("image:", "imag:")},
        ["--runtime", "runtime.yaml"],
        78,
        (
            "runtime.yaml: spec.image: is required and missing\n"
            "runtime.yaml: spec.imag: is not a field; did you mean image?"
        ),
    ),
    "a runtime that is not there": (
        {},
        ["--runtime", "none.yaml"],
        78,
        "none.yaml: cannot be read: No such file or directory",
    ),
    "a job for a runtime": (
        {},
        ["--runtime", "job.yaml"],
        78,
        "job.yaml: kind: must be FineTuneRuntime, got 'FineTuneJob'",
    ),
    "an empty runtime": (
        {"runtime.yaml": ""},
        ["--runtime", "runtime.yaml"],
        78,
        "runtime.yaml: is empty; it must hold one FineTuneRuntime",
    ),
    "another runtime than the job names": (
        {},
        ["--runtime", "runtime.yaml", "--set", "spec.runtime=gpu"],
        78,
        "runtime.yaml: metadata.name: is default, but spec.runtime of the job is gpu",
    ),
}


@pytest.mark.parametrize(("changed", "arguments", "code", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_told_and_nothing_is_printed(capsys, files, changed, arguments, code, message):
    for name, text in changed.items():
        (files / name).write_text(text)
    assert outcome(capsys, *arguments) == (code, [], [], message.splitlines())


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_an_attempt_that_cannot_be(capsys, number):
    with pytest.raises(SystemExit) as left:
        main(["render", "-f", "job.yaml", "--attempt", number])
    assert left.value.code == 2
    assert f"argument --attempt: must be a whole number ≥ 1, got {number}" in capsys.readouterr().err


def test_it_takes_less_than_a_second_and_neither_torch_nor_kubernetes():
    program = (
        "import sys; from finetune_cli.main import main\n"
        "code = main(['render', '-f', 'job.yaml'])\n"
        "heavy = {'torch', 'transformers', 'kopf', 'kubernetes', 'numpy', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 5, "0.3 s of CPU; the rest is what a busy machine may add"
