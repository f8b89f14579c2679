"""docs/reference.md tells of everything in the models, in the models' words."""

import re
from enum import Enum, StrEnum

import pytest

from finetune_api.errors import FORMATS
from finetune_api.job import FineTuneJob
from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_api.reference import member_docs, reference
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import children, json_schema, models_in
from finetune_api.status import ConditionType, Phase, Reason, Stage
from finetune_api.wiring import Variable

PAGE = reference("notice")


def sections() -> dict[str, str]:
    """The text below each heading; the same heading of the second kind is prefixed with its name."""
    found: dict[str, str] = {}
    part = ""
    for chunk in re.split(r"^(?=##+ )", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = chunk.partition("\n")
        part = heading.removeprefix("## ") if heading.startswith("## ") else part
        name = heading.lstrip("# ").strip("`")
        found[name if name == part else f"{part} {name}"] = body
    return found


SECTIONS = sections()


def fields(kind):
    """Section, name and schema of every field of a kind."""

    def walk(path, schema):
        for suffix, child in children(schema):
            if "properties" in schema:
                yield f"{kind.__name__} {path}", suffix[1:], child
            yield from walk(path + suffix, child)

    return [
        row
        for name in ("metadata", "spec", "status")
        for row in walk(name, json_schema(kind)["properties"].get(name, {}))
    ]


FIELDS = [*fields(FineTuneJob), *fields(FineTuneRuntime)]


def cells(section: str, name: str) -> list[str]:
    rows = [line for line in SECTIONS[section].splitlines() if re.match(rf"\| \[?`{re.escape(name)}`", line)]
    assert len(rows) == 1, f"{section} has {len(rows)} rows of {name}"
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", rows[0])[1:-1]]


@pytest.mark.parametrize(("section", "name", "schema"), FIELDS, ids=[f"{one}.{name}" for one, name, _ in FIELDS])
def test_every_field_has_a_row(section, name, schema):
    assert len(cells(section, name)) == 5
    assert cells(section, name)[4] == schema["description"].replace("|", "\\|")
    assert schema["description"]


ROWS = {
    "required": ("FineTuneJob spec", "task", {2: "**required**"}),
    "unset": ("FineTuneJob spec", "queue", {1: "name", 2: "unset", 3: "1 to 63 characters"}),
    "values": ("FineTuneJob spec.training", "scheduler", {1: "`linear`, `cosine`, `constant`", 2: '`"linear"`', 3: ""}),
    "open bound": ("FineTuneJob spec.training", "epochs", {1: "number", 3: "> 0, ≤ 10,000"}),
    "closed bounds": ("FineTuneJob spec.training", "gradientAccumulation", {1: "integer", 2: "`1`", 3: "1 to 65,536"}),
    "half-open": ("FineTuneJob spec.data.split", "train", {2: "`7`", 3: "> 0"}),
    "object with its fields' defaults": ("FineTuneJob spec", "strategy", {1: "object", 2: "its fields' defaults"}),
    "object with a default of its own": ("FineTuneJob spec.training", "warmup", {2: '`{"ratio": 0.06}`'}),
    "object that is linked": ("FineTuneJob spec.strategy", "lora", {0: "[`lora`](#specstrategylora)", 2: "unset"}),
    "list of words": (
        "FineTuneJob spec.evaluation",
        "metrics",
        {1: "list of string", 3: "1 to 16 items; items: 1 to 256 characters"},
    ),
    "list of objects": (
        "FineTuneJob status",
        "attempts",
        {0: "[`attempts`](#statusattempts)", 1: "list of object", 2: "`[]`", 3: "≤ 20 items"},
    ),
    "free map": ("FineTuneJob spec.model", "config", {1: "free map", 3: "≤ 64 keys"}),
    "map": ("FineTuneJob status", "metrics", {1: "map of number", 3: "≤ 64 keys; keys: 1 to 256 characters"}),
    "time": ("FineTuneJob status", "startTime", {1: "time"}),
    "source": ("FineTuneJob spec.data", "source", {1: "source", 3: "6 to 1,024 characters"}),
    "pattern": (
        "FineTuneRuntime spec.env[]",
        "name",
        {1: "string", 3: "1 to 256 characters; `^[A-Za-z_][A-Za-z0-9_]*$`"},
    ),
    "a bar in a cell": ("FineTuneJob spec.data", "labelSeparator", {2: '`"\\|"`'}),
}


@pytest.mark.parametrize(("section", "name", "expected"), ROWS.values(), ids=ROWS.keys())
def test_a_row_says(section, name, expected):
    found = cells(section, name)
    assert {position: found[position] for position in expected} == expected


def test_every_link_has_its_heading():
    headings = re.findall(r"^#+ (.*)$", PAGE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", heading.lower()) for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", PAGE))
    assert links
    assert links <= anchors


def test_every_rule_is_told():
    for kind in (FineTuneJob, FineTuneRuntime):
        for model in models_in(kind).values():
            for rule in model.rules:
                assert f"- {f'`{rule.field}` ' if rule.field else ''}{rule.message}\n" in PAGE


TABLES: dict[str, type[Enum]] = {
    "Phases": Phase,
    "Conditions": ConditionType,
    "Conditions Reasons": Reason,
    "Causes": Cause,
    "Variables of a worker": Variable,
}


@pytest.mark.parametrize(("section", "enumeration"), TABLES.items(), ids=TABLES.keys())
def test_every_member_has_a_row(section, enumeration):
    rows = [line for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    docs = member_docs(enumeration)
    assert rows == [f"| `{member.value}` | {docs[member.name]} |" for member in enumeration]


def test_every_exit_code_has_its_cause():
    for code in ExitCode:
        cause = f"`{cause_of(code)}`" if code else ""
        assert f"| `{code.value}` | {cause} | {member_docs(ExitCode)[code.name]} |" in SECTIONS["Exit codes"]


@pytest.mark.parametrize("enumeration", [*TABLES.values(), ExitCode, Stage], ids=lambda one: one.__name__)
def test_every_member_is_documented(enumeration):
    documented = {name for name, text in member_docs(enumeration).items() if text.endswith(".")}
    assert documented == set(enumeration.__members__)


class Example(StrEnum):
    """Three members, of which the first has a text."""

    ONE = "1"
    """The first
    of them."""
    TWO = "2"
    THREE = "3"


def test_member_docs_reads_what_stands_below_a_member():
    assert member_docs(Example) == {"ONE": "The first of them."}


@pytest.mark.parametrize("kind", [FineTuneJob, FineTuneRuntime], ids=lambda kind: kind.__name__)
def test_every_model_and_field_is_documented(kind):
    for model in models_in(kind).values():
        assert model.__doc__, model
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"


def test_forms_of_strings_are_told():
    for words in FORMATS.values():
        assert f"| {words.removeprefix('must be ')} |" in PAGE


def test_the_page_names_its_generator():
    assert PAGE.startswith("<!-- notice -->\n")
