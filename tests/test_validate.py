"""finetune validate: what it prints, what it returns, and how little it takes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cli.validate import validate

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: demo}
spec:
  task: text-classification
  model: {source: hf://owner/model}
  data: {source: "hf://owner/data"}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the current folder; returns its relative path, as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="job.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path.relative_to(tmp_path)

    return write


def outcome(capsys, paths, overrides=()):
    code = validate(paths, overrides)
    said = capsys.readouterr()
    return int(code), said.out.splitlines(), said.err.splitlines()


def test_a_valid_job_is_summed_up_in_a_line(write, capsys):
    line = "job.yaml: valid: text-classification of hf://owner/model on hf://owner/data"
    assert outcome(capsys, [write(JOB)]) == (0, [line], [])


def test_a_file_that_is_not_there(write, capsys):
    write(JOB)
    line = "job.yaml: valid: text-classification of hf://owner/model on hf://owner/data"
    assert outcome(capsys, [Path("none.yaml"), Path("job.yaml")]) == (66, [line], ["none.yaml: is not there"])


def test_a_new_model_is_told_by_its_type(write, capsys):
    overrides = ("spec.model={config: {model_type: bert}}",)
    line = "job.yaml: valid: text-classification of a new bert on hf://owner/data"
    assert outcome(capsys, [write(JOB)], overrides) == (0, [line], [])


def test_every_fault_is_a_line_that_names_file_and_field(write, capsys):
    overrides = ("spec.training.batchSize=0", "spec.trainin={}")
    assert outcome(capsys, [write(JOB)], overrides) == (
        64,
        [],
        [
            "job.yaml: spec.training.batchSize: must be ≥ 1, got 0",
            "job.yaml: spec.trainin: is not a field; did you mean training?",
        ],
    )


def test_a_fault_of_the_whole_file_names_the_file_once(write, capsys):
    assert outcome(capsys, [write("")]) == (64, [], ["job.yaml: is empty; it must hold one FineTuneJob"])


@pytest.mark.parametrize(
    "field", ["model.source", "model.tokenizer", "data.source", "data.validationSource", "data.testSource"]
)
def test_a_local_source_must_be_there(write, capsys, tmp_path, field):
    path, source = write(JOB), tmp_path / "a folder"
    overrides = (f"spec.{field}=file://{str(source).replace(' ', '%20')}",)
    fault = f"job.yaml: spec.{field}: {source} is not there; put it there, or name where it is"
    assert outcome(capsys, [path], overrides) == (66, [], [fault])
    source.mkdir()
    assert outcome(capsys, [path], overrides)[0] == 0


def test_a_bad_spec_counts_more_than_an_absent_source(write, capsys, tmp_path):
    absent = write(JOB.replace("hf://owner/data", f"file://{tmp_path}/none"), "absent.yaml")
    bad, good = write(JOB.replace("demo", "De mo"), "bad.yaml"), write(JOB, "good.yaml")
    code, out, err = outcome(capsys, [absent, bad, good])
    assert (code, len(out), [line.partition(":")[0] for line in err]) == (64, 1, ["absent.yaml", "bad.yaml"])
    assert outcome(capsys, [good, absent])[0] == 66


def test_it_takes_little_and_no_torch(write):
    program = (
        "import sys, pathlib; from finetune_cli.validate import validate\n"
        "code = validate([pathlib.Path('job.yaml')], ())\n"
        "heavy = {'torch', 'transformers', 'kopf', 'kubernetes', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    write(JOB)
    start = cpu_seconds_of_children()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert cpu_seconds_of_children() - start < 2, "0.4 s where nothing else runs"


def cpu_seconds_of_children():
    """Of those that ended; the clock on the wall would count what a busy machine adds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
