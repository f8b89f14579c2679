"""What the pages for people say is so: jobs are valid, links lead somewhere, fields, flags and tables are real."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.errors import field_model, field_names
from finetune_api.experiment import FineTuneExperiment
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_job
from finetune_api.outcomes import ExitCode
from finetune_api.strict_yaml import parse_yaml
from finetune_api.wiring import RunFolder
from finetune_cli.main import build_parser
from finetune_trainer.metrics import METRICS
from finetune_trainer.tasks import TASKS, task_of
from tiny import merged

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE, DESIGN = ROOT / "docs" / "guide.md", ROOT / "docs" / "design.md"
BASE = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "base"},
    "spec": {
        "task": "text-classification",
        "model": {"source": "hf://owner/model"},
        "data": {"source": "pvc://data/texts.csv"},
    },
}
"""What a snippet that begins with ``spec:`` is laid over."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    """The page's fenced blocks, in order."""
    found, lines, start = [], page.read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            text = "\n".join(lines[start : number - 1])
            found.append(Block(page, start, lines[start - 1].removeprefix("```"), text))
            start = None
    assert start is None, f"{page}:{start} is not closed"
    return found


def prose_of(page):
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
YAML = [block for block in BLOCKS if block.language == "yaml"]
JOBS = [block for block in YAML if re.search("^kind: FineTuneJob$", block.text, flags=re.MULTILINE)]
SNIPPETS = [block for block in YAML if re.match("spec:", block.text)]
COMMANDS = [
    (f"{block}: {line}", shlex.split(line.removeprefix("$ "), comments=True))
    for block in BLOCKS
    if block.language == "console"
    for line in block.text.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize("block", JOBS, ids=str)
def test_a_job_is_valid(block):
    assert isinstance(parse_job(parse_yaml(block.text)), FineTuneJob)


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_a_snippet_laid_over_a_job_is_valid(block):
    given = parse_yaml(block.text)
    assert list(given) == ["spec"]
    parse_job(merged(without_a_source(given), given))


def without_a_source(given):
    """The base; a snippet that makes a new model is not given a source to start from."""
    model = given["spec"].get("model", {})
    spec = {**BASE["spec"], "model": {} if "model_type" in model.get("config", {}) else BASE["spec"]["model"]}
    return {**BASE, "spec": spec}


def test_the_first_job_has_ten_lines():
    assert len(next(block for block in JOBS if block.page == GUIDE).text.splitlines()) == 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = prose_of(page)
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{page.name} links to {target}"


def anchors_of(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def fields_in(text):
    """Paths of fields such as ``spec.training.seed`` that a text names."""
    return sorted(set(re.findall(r"\b(?:spec|status)(?:\.[a-z][A-Za-z]*)+", text)))


def is_field(path):
    return any(is_field_of(kind, path) for kind in (FineTuneJob, FineTuneExperiment))


def is_field_of(model, path):
    for name in path.split("."):
        if model is None or name not in field_names(model, ()):
            return False
        model = field_model(model, name)
    return True


@pytest.mark.parametrize("page", [ROOT / "README.md", GUIDE, DESIGN], ids=lambda page: page.name)
def test_named_fields_are_in_the_api(page):
    unknown = [path for path in fields_in(page.read_text(encoding="utf-8")) if not is_field(path)]
    assert [path for path in unknown if path not in ("status.yaml", "spec.field")] == []


def test_a_field_that_is_not_there_is_found():
    assert fields_in("`spec.model.config`, spec.training.epoch=1; status.phase.") == [
        "spec.model.config",
        "spec.training.epoch",
        "status.phase",
    ]
    assert [is_field(path) for path in ("spec.model.config", "spec.training.epoch", "status.phase")] == [
        True,
        False,
        True,
    ]


FINETUNE = [(name, words[1:]) for name, words in COMMANDS if words[0] == "finetune"]


@pytest.mark.parametrize(("name", "arguments"), FINETUNE, ids=[name for name, _ in FINETUNE])
def test_a_finetune_command_is_understood(name, arguments):
    if arguments == ["--help"]:
        return
    options = build_parser().parse_args(arguments)
    for change in getattr(options, "set", ()):
        assert is_field(change.partition("=")[0]), name


@pytest.mark.parametrize("page", [ROOT / "README.md", GUIDE, DESIGN], ids=lambda page: page.name)
def test_flags_exist(page):
    known = {option for parser in parsers() for action in parser._actions for option in action.option_strings}
    named = set(re.findall(r"`(--?[a-z][a-z-]*)[^`]*`", prose_of(page)))
    assert named <= known
    commands = {words[1] for words in re.findall(r"`(finetune) ([a-z]+)", prose_of(page))}
    assert commands <= {"run", "validate", "estimate", "status", "compare"}


def parsers():
    """The command's parser and its subcommands'."""
    parser = build_parser()
    choices = next(action.choices for action in parser._actions if action.dest == "command")
    return [parser, *choices.values()]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {words[1] for _, words in COMMANDS if words[0] == "make"}
    named |= {
        target for page in PAGES for target in re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= targets


def table_after(page, header):
    """Rows of the table whose header line is ``header``, as lists of cells."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header)) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names_in(cell):
    return tuple(re.findall(r"`([^`]+)`", cell))


def test_the_table_of_metrics_is_that_of_the_trainer():
    rows = {cells[0].strip("`"): cells[1:] for cells in table_after(GUIDE, "| Task | Metrics")}
    assert set(rows) == set(TASKS)
    for name, (default, others, watched) in rows.items():
        task = task_of(parse_job(merged(BASE, {"spec": {"task": name}})).spec)
        defined = {metric for metric, one in METRICS.items() if task.target in one.targets}
        assert names_in(default) == task.metrics
        assert {*names_in(default), *names_in(others), "loss"} == defined
        assert names_in(watched)[0] == task.monitor


def test_every_exit_code_is_told():
    told = {int(code) for cells in table_after(GUIDE, "| Code |") for code in cells[0].split(",")}
    assert {int(code) for code in ExitCode} <= told


def test_the_table_of_files_is_that_of_the_run_folder():
    told = {name.rstrip("/") for cells in table_after(GUIDE, "| Path |") for name in names_in(cells[0])}
    root = Path("run")
    folder = {path.name for path in vars(RunFolder(root)).values() if path != root}
    assert folder <= told
    assert told - folder == {"attempts", "job.json", ".lock"}
