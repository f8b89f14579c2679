"""What the pages about clusters say is so: runtimes and values are valid, tables whole, the health check right."""

import datetime as dt
import json
import re
import subprocess

import pytest
import yaml

from charts import ROOT, rendered
from cluster.cache import cache_folder
from cluster.debian import unpacked
from finetune_api.experiment import ExperimentConditionType, ExperimentReason
from finetune_api.experiment_checks import parse_experiment
from finetune_api.load import parse_job, parse_runtime
from finetune_api.outcomes import Cause
from finetune_api.status import ConditionType, JobStatus, Phase, Progress, Reason
from finetune_api.strict_yaml import parse_yaml
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.serve import assemble
from finetune_operator.settings import parse_settings
from finetune_trainer.progress import Reporter
from test_docs import BLOCKS, JOBS, SNIPPETS, YAML, fields_in, is_field, names_in, table_after

PAGES = {name: ROOT / f"docs/{name}.md" for name in ("cluster", "operations", "tenancy")}
RUNTIMES = [block for block in YAML if "kind: FineTuneRuntime" in block.text]
EXPERIMENTS = [block for block in YAML if "kind: FineTuneExperiment" in block.text]
SEARCHES = [block for block in YAML if block.text.startswith("search:")]
VALUES = [block for block in YAML if block.text.startswith("# values.yaml")]
OTHERS = [
    block
    for block in YAML
    if not any(block in known for known in (JOBS, SNIPPETS, RUNTIMES, EXPERIMENTS, SEARCHES, VALUES))
]
(LUA,) = (block for block in BLOCKS if block.language == "lua")
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("block", RUNTIMES, ids=str)
def test_a_runtime_is_valid(block):
    parse_runtime(parse_yaml(block.text))


@pytest.mark.parametrize("block", EXPERIMENTS, ids=str)
def test_an_experiment_is_valid(block):
    parse_experiment(parse_yaml(block.text))


@pytest.mark.parametrize("block", SEARCHES, ids=str)
def test_a_search_is_one_of_an_experiment(block):
    document = parse_yaml(EXPERIMENTS[0].text)
    del document["spec"]["variants"]
    parse_experiment({**document, "spec": {**document["spec"], **parse_yaml(block.text)}})


@pytest.mark.parametrize("block", VALUES, ids=str)
def test_values_are_accepted_by_the_chart(block):
    assert rendered(yaml.safe_load(block.text))


def test_no_other_yaml_goes_unchecked():
    assert [yaml.safe_load(block.text)["kind"] for block in OTHERS] == ["Kustomization"]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_named_fields_are_in_the_api(page):
    of_manifests = {"spec.image", "status.conditions.exists", "status.progress.percent"}
    text = page.read_text(encoding="utf-8")
    assert [path for path in fields_in(text) if not is_field(path) and path not in of_manifests] == []


# --- tables


def column(page, header, number=0):
    return [name for cells in table_after(PAGES[page], header) for name in names_in(cells[number])]


def test_every_condition_reason_and_cause_is_explained_once():
    assert column("operations", "| Condition |") == [kind.value for kind in ConditionType]
    assert sorted(column("operations", "| Reason |")) == sorted(reason.value for reason in Reason)
    assert column("operations", "| Cause |") == [cause.value for cause in Cause]


def test_every_reason_of_an_experiment_is_explained_once():
    told = column("operations", "| Reason of an experiment |")
    assert sorted(told) == sorted(reason.value for reason in ExperimentReason)


KINDS = {"| Reason |": ConditionType, "| Reason of an experiment |": ExperimentConditionType}


@pytest.mark.parametrize(("header", "kinds"), KINDS.items(), ids=["job", "experiment"])
def test_reasons_are_of_conditions_that_can_have_them(header, kinds):
    told = {kind for cells in table_after(PAGES["operations"], header) for kind in cells[1].split(", ")}
    assert told <= {kind.value for kind in kinds}


def test_the_budgets_are_the_defaults():
    spec = {"task": "causal-lm", "model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}}
    job = parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}, "spec": spec}
    )
    budgets = job.spec.recovery.max_restarts
    told = {names_in(cells[0])[0]: cells[2] for cells in table_after(PAGES["operations"], "| Cause |")}
    assert told == {
        "Preempted": "free",
        "Infrastructure": str(budgets.infrastructure),
        "OutOfMemory": str(budgets.out_of_memory),
        "Application": str(budgets.application),
        "Configuration": "none",
        "Stalled": str(budgets.stalled),
    }


def series_of(registry):
    """Name as it is asked for → labels."""
    table = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        table[name] = labels
    return table


def test_the_table_of_the_operators_metrics_is_that_of_its_registry():
    replica = assemble(parse_settings(["--no-leader-election"]), None, None, None)
    told = {
        names_in(name)[0]: set(names_in(labels))
        for name, labels, _ in table_after(PAGES["operations"], "| Metric of the op")
    }
    replica.metrics.requests.labels("GET", "200")
    replica.metrics.transitions.labels("Failed")
    replica.metrics.restarts.labels("Stalled")
    replica.metrics.reconcile_seconds.labels("done")
    replica.store.phases["team-a", "Running"] = replica.store.experiments.phases["team-a", "Running"] = 1
    assert told == series_of(replica.metrics.registry)


def test_expressions_name_metrics_that_there_are():
    known = set(column("operations", "| Metric of the operator"))
    asked = {
        name
        for cells in table_after(PAGES["operations"], "| Expression |")
        for name in re.findall(r"finetune_operator_\w+", cells[0])
    }
    assert {name.removesuffix("_count") for name in asked} <= known


def test_the_table_of_the_trainers_metrics_is_whole():
    source = (ROOT / "trainer/finetune_trainer/progress.py").read_text()
    assert Reporter.metrics_text
    gauges = {f"finetune_{name}" for name in re.findall(r'gauge\("(\w+)"', source)}
    assert gauges | {"finetune_stage", "finetune_metric"} == set(column("operations", "| Metric of a trainer"))


# --- the health check for Argo CD, by real Lua

SITUATIONS = {
    "waits": (Situation(Phase.PENDING, Reason.STARTING), "Progressing", "Pending"),
    "refused": (Situation(Phase.PENDING, Reason.FORBIDDEN, "too much"), "Degraded", "too much"),
    "queued": (Situation(Phase.SUSPENDED, Reason.QUEUED, "waits for gpus"), "Suspended", "waits for gpus"),
    "trains": (Situation(Phase.RUNNING, Reason.TRAINING), "Progressing", "Running, 41 %"),
    "restarts": (Situation(Phase.RESTARTING, Reason.RESTARTING, "node lost"), "Progressing", "Restarting, 41 %"),
    "succeeded": (Situation(Phase.SUCCEEDED, Reason.EARLY_STOPPED, "done"), "Healthy", "done"),
    "failed": (Situation(Phase.FAILED, Reason.CONFIGURATION, "no data"), "Degraded", "no data"),
}
PROGRESS = Progress(step=41, total_steps=100, epoch=0.4, percent=41.2, time=NOW)


def lua_value(value):
    """A JSON value as a Lua expression."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{json.dumps(name)}] = {lua_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(lua_value(item) for item in value) + "}"
    return json.dumps(value)


def health(obj):
    """(status, message) that the page's script gives."""
    lua = unpacked("lua5.4", cache_folder() / "debian") / "usr/bin/lua5.4"
    call = f"local h = check({lua_value(obj)})\nprint(h.status); print(h.message)"
    script = f"local function check(obj)\n{LUA.text}\nend\n{call}"
    done = subprocess.run([lua, "-"], input=script, capture_output=True, text=True, check=True)
    return tuple(done.stdout.splitlines())


@pytest.mark.parametrize(("situation", "status", "message"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_argo_cd_tells_how_a_job_fares(situation, status, message):
    ran = situation.phase in (Phase.RUNNING, Phase.RESTARTING)
    job_status = with_situation(JobStatus(progress=PROGRESS if ran else None), situation, NOW, 1)
    assert health({"metadata": {"generation": 1}, "status": job_status.to_wire()}) == (status, message)


OUTDATED = {
    "no status": {"metadata": {"generation": 1}},
    "of an older spec": {"metadata": {"generation": 2}, "status": {"observedGeneration": 1, "conditions": []}},
}


@pytest.mark.parametrize("obj", OUTDATED.values(), ids=OUTDATED.keys())
def test_argo_cd_waits_for_the_operator(obj):
    assert health(obj) == ("Progressing", "Waiting for the operator")
