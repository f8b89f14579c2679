"""What a runtime gives a job and what it refuses, and how amounts are read."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.utils import parse_quantity as reference_parse

from finetune_api import FineTuneJob, FineTuneRuntime, parse_job, parse_runtime
from finetune_api.execution import Resources, Volume
from finetune_api.status import Reason
from finetune_operator.observed import Refusal
from finetune_operator.quantity import canonical_quantity, parse_quantity
from finetune_operator.resolve import resolve
from finetune_operator.resolved import Resolved
from finetune_operator.trainer_spec import MAX_BYTES, trainer_spec

API_VERSION = "finetune.dev/v1alpha1"


def job(metadata=(), **spec) -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": API_VERSION,
            "kind": "FineTuneJob",
            "metadata": {"name": "demo", "namespace": "team-a", **dict(metadata)},
            "spec": {
                "task": "text-classification",
                "model": {"source": "hf://owner/model"},
                "data": {"source": "pvc://reviews/train.csv"},
                **spec,
            },
        }
    )


def runtime(**spec) -> FineTuneRuntime:
    document = {"apiVersion": API_VERSION, "kind": "FineTuneRuntime", "metadata": {"name": "default"}}
    return parse_runtime({**document, "spec": {"image": "trainer:1", **spec}})


def resolved(made: FineTuneJob, by: FineTuneRuntime) -> Resolved:
    result = resolve(made, by, {})
    assert isinstance(result, Resolved)
    return result


# --- what is filled in


def of_worker(**resources):
    return {"distributed": {"resources": resources}}


# job's spec, runtime's spec → resources of a worker
RESOURCES = {
    "the runtime's own defaults": ({}, {}, Resources(cpu="2", memory="4Gi", gpus=0)),
    "the runtime's default": (
        {},
        {"resources": {"cpu": "8", "memory": "32Gi", "gpus": 1}},
        Resources(cpu="8", memory="32Gi", gpus=1),
    ),
    "each by itself": (
        of_worker(memory="1Gi"),
        {"resources": {"cpu": "8", "gpus": 1}},
        Resources(cpu="8", memory="1Gi", gpus=1),
    ),
    "no GPU, said": (of_worker(gpus=0), {"resources": {"gpus": 1}}, Resources(gpus=0)),
    "no default": ({}, {"resources": {}}, Resources(gpus=0)),
    "no default but a ceiling": (
        {},
        {"resources": {}, "ceilings": {"resources": {"cpu": "4", "memory": "1Gi", "gpus": 2}}},
        Resources(cpu="4", memory="1Gi", gpus=0),
    ),
    "a default above the ceiling": (
        {},
        {
            "resources": {"cpu": "8", "memory": "8Gi", "gpus": 8},
            "ceilings": {"resources": {"cpu": "500m", "memory": "1G", "gpus": 2}},
        },
        Resources(cpu="500m", memory="1G", gpus=2),
    ),
    "at the ceiling": (
        of_worker(cpu="1000m", memory="1024Mi", gpus=2),
        {"ceilings": {"resources": {"cpu": "1", "memory": "1Gi", "gpus": 2}}},
        Resources(cpu="1000m", memory="1024Mi", gpus=2),
    ),
    "a ceiling of memory says nothing of GPUs": (
        of_worker(gpus=8),
        {"ceilings": {"resources": {"memory": "64Gi"}}},
        Resources(cpu="2", memory="4Gi", gpus=8),
    ),
}


@pytest.mark.parametrize(("spec", "by", "expected"), RESOURCES.values(), ids=RESOURCES.keys())
def test_resources_of_a_worker(spec, by, expected):
    assert resolved(job(**spec), runtime(**by)).spec.distributed.resources == expected


def test_volume_and_queue_are_the_jobs_or_else_the_runtimes():
    by = runtime(volume={"claimName": "shared"}, queue="team")
    defaults = resolved(job(), by)
    assert (defaults.volume, defaults.spec.queue) == (Volume(claim_name="shared"), "team")
    own = resolved(job(checkpoint={"volume": {"size": "5Gi"}}, queue="mine"), by)
    assert (own.volume, own.spec.queue) == (Volume(size="5Gi"), "mine")
    assert (defaults.run_claim, own.run_claim) == ("shared", "demo-checkpoints")


def test_nothing_else_of_the_job_changes():
    made = job(training={"seed": 7}, suspend=True, tracking={"tensorboard": True})
    before, after = made.to_wire(), resolved(made, runtime(queue="q")).job.to_wire()
    assert after.pop("spec") == before.pop("spec") | {
        "queue": "q",
        "checkpoint": before_checkpoint(made) | {"volume": {"size": "20Gi"}},
        "distributed": made.spec.distributed.to_wire() | {"resources": {"cpu": "2", "memory": "4Gi", "gpus": 0}},
    }
    assert after == before


def before_checkpoint(made):
    return made.spec.checkpoint.to_wire()


def test_resolving_again_changes_nothing():
    by = runtime(resources={"cpu": "1", "gpus": 1}, volume={"claimName": "shared"}, queue="team")
    once = resolved(job(), by)
    assert resolved(once.job, by) == once


def test_a_job_that_is_made_again_has_a_folder_of_its_own():
    first = job(metadata={"uid": "11111111-aaaa-bbbb-cccc-000000000000"})
    second = job(metadata={"uid": "22222222-aaaa-bbbb-cccc-000000000000"})
    folders = [resolved(one, runtime()).run_folder for one in (job(), first, second)]
    assert folders == ["demo", "demo-11111111", "demo-22222222"]


def test_each_claim_of_the_sources_counts_once():
    made = job(
        model={"source": "pvc://models/bert", "tokenizer": "pvc://reviews/tokenizer"},
        data={"source": "pvc://reviews/a", "validationSource": "pvc://more.data/b", "testSource": "hf://c/d"},
    )
    assert resolved(made, runtime()).source_claims == ("models", "reviews", "more.data")


# --- what is refused

FORBIDDEN, INVALID = Reason.FORBIDDEN, Reason.INVALID
# job's spec, runtime's spec, labels of the namespace → reason and message
REFUSALS = {
    "workers": (
        {"distributed": {"workers": 8}},
        {"ceilings": {"workers": 4}},
        {},
        FORBIDDEN,
        "spec.distributed.workers: must be ≤ 4 in FineTuneRuntime default, got 8",
    ),
    "memory": (
        of_worker(memory="65Gi"),
        {"ceilings": {"resources": {"memory": "64Gi"}}},
        {},
        FORBIDDEN,
        "spec.distributed.resources.memory: must be ≤ 64Gi in FineTuneRuntime default, got 65Gi",
    ),
    "cpu in other units": (
        of_worker(cpu="4001m"),
        {"ceilings": {"resources": {"cpu": "4"}}},
        {},
        FORBIDDEN,
        "spec.distributed.resources.cpu: must be ≤ 4 in FineTuneRuntime default, got 4001m",
    ),
    "GPUs": (
        of_worker(gpus=2),
        {"ceilings": {"resources": {"gpus": 1}}},
        {},
        FORBIDDEN,
        "spec.distributed.resources.gpus: must be ≤ 1 in FineTuneRuntime default, got 2",
    ),
    "any GPU": (
        of_worker(gpus=1),
        {"ceilings": {"resources": {"gpus": 0}}},
        {},
        FORBIDDEN,
        "spec.distributed.resources.gpus: must be ≤ 0 in FineTuneRuntime default, got 1",
    ),
    "a large claim": (
        {"checkpoint": {"volume": {"size": "1Ti"}}},
        {"ceilings": {"volumeSize": "500Gi"}},
        {},
        FORBIDDEN,
        "spec.checkpoint.volume.size: must be ≤ 500Gi in FineTuneRuntime default, got 1Ti",
    ),
    "the cluster's own priority": (
        {"priorityClass": "system-cluster-critical"},
        {},
        {},
        FORBIDDEN,
        "spec.priorityClass: must be none of the cluster's own in FineTuneRuntime default, got system-cluster-critical",
    ),
    "a priority of others": (
        {"priorityClass": "urgent"},
        {"ceilings": {"priorityClasses": ["low", "normal"]}},
        {},
        FORBIDDEN,
        "spec.priorityClass: must be one of low, normal in FineTuneRuntime default, got urgent",
    ),
    "any priority": (
        {"priorityClass": "low"},
        {"ceilings": {"priorityClasses": []}},
        {},
        FORBIDDEN,
        "spec.priorityClass: must be unset in FineTuneRuntime default, got low",
    ),
    "remote code": (
        {"model": {"source": "hf://a/b", "trustRemoteCode": True}},
        {},
        {},
        FORBIDDEN,
        "spec.model.trustRemoteCode: must be false in FineTuneRuntime default, got true",
    ),
    "a namespace by name, and no word of the others": (
        {},
        {"namespaces": {"names": ["team-b", "team-c"]}},
        {},
        FORBIDDEN,
        "spec.runtime: FineTuneRuntime default is not for namespace team-a; name another, or ask the platform team",
    ),
    "a namespace by label": (
        {},
        {"namespaces": {"matchLabels": {"tier": "gpu", "cost": "42"}}},
        {"tier": "gpu"},
        FORBIDDEN,
        (
            "spec.runtime: FineTuneRuntime default is not for namespace team-a; it serves those with the labels"
            " cost=42, tier=gpu"
        ),
    ),
    "workers that could not meet": (
        {"distributed": {"workers": 2}},
        {"egress": "none"},
        {},
        FORBIDDEN,
        (
            "spec.distributed.workers: must be 1 in FineTuneRuntime default, got 2; workers find each other by DNS,"
            " which its egress (none) does not let them reach"
        ),
    ),
    "all at once": (
        {"distributed": {"workers": 3, "resources": {"cpu": "9", "gpus": 9}}},
        {"ceilings": {"workers": 1, "resources": {"cpu": "1", "gpus": 0}}},
        {},
        FORBIDDEN,
        (
            "spec.distributed.workers: must be ≤ 1 in FineTuneRuntime default, got 3;"
            " spec.distributed.resources.cpu: must be ≤ 1 in FineTuneRuntime default, got 9;"
            " spec.distributed.resources.gpus: must be ≤ 0 in FineTuneRuntime default, got 9"
        ),
    ),
    "processes without a GPU each": (
        {"distributed": {"processesPerWorker": 2}},
        {"resources": {"gpus": 1}},
        {},
        INVALID,
        (
            "spec.distributed.processesPerWorker: must equal resources.gpus (1 in FineTuneRuntime default if not said),"
            " got 2: one process drives one GPU"
        ),
    ),
    "zero, which Kubernetes takes for no limit": (
        {"distributed": {"resources": {"cpu": "0", "memory": "0.0Gi"}}, "checkpoint": {"volume": {"size": "0"}}},
        {"ceilings": {"resources": {"cpu": "1", "memory": "1Gi"}}},
        {},
        INVALID,
        (
            "spec.distributed.resources.cpu: must be more than 0, got 0;"
            " spec.distributed.resources.memory: must be more than 0, got 0.0Gi;"
            " spec.checkpoint.volume.size: must be more than 0, got 0"
        ),
    ),
    "a claim that cannot be": (
        {"data": {"source": "pvc://a-/b"}},
        {},
        {},
        INVALID,
        "spec.data.source: a- is not the name of a claim; got pvc://a-/b",
    ),
    "a spec that is too long to travel": (
        {"data": {"source": "hf://a/b", "labels": [f"{number:0100}" for number in range(2000)]}},
        {},
        {},
        INVALID,
        "spec: must be at most 196,608 bytes as JSON, got 206,327; shorten its longest lists",
    ),
    "what is forbidden comes first": (
        {"data": {"source": "pvc://a-/b"}, "distributed": {"workers": 2}},
        {"ceilings": {"workers": 1}},
        {},
        FORBIDDEN,
        "spec.distributed.workers: must be ≤ 1 in FineTuneRuntime default, got 2",
    ),
}


@pytest.mark.parametrize(("spec", "by", "labels", "reason", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal(spec, by, labels, reason, message):
    assert resolve(job(**spec), runtime(**by), labels) == Refusal(reason, message)


def test_a_runtime_that_is_not_there():
    message = "spec.runtime: there is no FineTuneRuntime gpu; name one that exists"
    assert resolve(job(runtime="gpu"), None, {}) == Refusal(Reason.RUNTIME_NOT_FOUND, message)


ALLOWED = {
    "at the ceiling of workers": ({"distributed": {"workers": 4}}, {"ceilings": {"workers": 4}}, {}),
    "a claim at the ceiling": (
        {"checkpoint": {"volume": {"size": "0.5Ti"}}},
        {"ceilings": {"volumeSize": "512Gi"}},
        {},
    ),
    "the runtime's own claim": ({}, {"volume": {"size": "2Ti"}, "ceilings": {"volumeSize": "1Ti"}}, {}),
    "a priority": ({"priorityClass": "urgent"}, {}, {}),
    "a priority that is listed": (
        {"priorityClass": "system-node-critical"},
        {"ceilings": {"priorityClasses": ["system-node-critical"]}},
        {},
    ),
    "remote code with consent": (
        {"model": {"source": "hf://a/b", "trustRemoteCode": True}},
        {"allowTrustRemoteCode": True},
        {},
    ),
    "a namespace by name": ({}, {"namespaces": {"names": ["team-a"]}}, {}),
    "a namespace by label": ({}, {"namespaces": {"matchLabels": {"tier": "gpu"}}}, {"tier": "gpu", "other": "label"}),
    "one worker without DNS": ({}, {"egress": "none"}, {}),
    "several workers with DNS": ({"distributed": {"workers": 2}}, {"egress": "dns"}, {}),
    "processes with a GPU each": ({"distributed": {"processesPerWorker": 2}}, {"resources": {"gpus": 2}}, {}),
    "processes without any": (
        {"distributed": {"processesPerWorker": 2, "resources": {"gpus": 0}}},
        {"resources": {"gpus": 1}},
        {},
    ),
}


@pytest.mark.parametrize(("spec", "by", "labels"), ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed(spec, by, labels):
    assert isinstance(resolve(job(**spec), runtime(**by), labels), Resolved)


# --- what the trainer is told


def test_the_trainer_reads_the_job_that_was_resolved():
    made = resolved(job(training={"seed": 7}, model={"config": {"model_type": "bert", "x": None}}), runtime()).job
    assert parse_job(json.loads(trainer_spec(made))) == made


def test_the_trainer_is_told_nothing_that_may_change():
    changed = job(
        metadata={"uid": "u", "labels": {"a": "b"}, "generation": 3, "resourceVersion": "9"},
        suspend=True,
        queue="q",
        priorityClass="p",
        activeDeadlineSeconds=1,
        ttlSecondsAfterFinished=1,
    )
    assert trainer_spec(changed) == trainer_spec(job())


def test_what_the_trainer_is_told_fits_beside_other_annotations():
    assert MAX_BYTES < 256 * 1024
    assert trainer_spec(job(data={"source": "hf://ä/ö"})).isascii()


# --- quantities

CANONICAL = {
    "0": "0",
    "0.0Gi": "0",
    "1": "1",
    "2000m": "2",
    "0.5": "500m",
    "1.5": "1500m",
    "0.0001": "100u",
    "0.0000000001": "1n",
    "1000": "1k",
    "1024": "1024",
    "1500k": "1500k",
    "1000M": "1G",
    "1024M": "1024M",
    "007": "7",
    "1024Mi": "1Gi",
    "1.5Gi": "1536Mi",
    "0.5Gi": "512Mi",
    "1000Mi": "1000Mi",
    "1.5Ki": "1536",
    "0.5Ki": "512",
    "1.3Ki": "1331200m",
    "20Ti": "20Ti",
    "2048Ti": "2048Ti",
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items(), ids=CANONICAL.keys())
def test_a_quantity_is_written_as_the_server_writes_it(text, canonical):
    assert canonical_quantity(text) == canonical


QUANTITIES = st.builds(
    lambda whole, part, suffix: f"{whole}{part}{suffix}",
    st.integers(0, 10**9),
    st.sampled_from(["", ".0", ".5", ".125", ".001"]),
    st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=QUANTITIES)
def test_amounts_are_those_of_the_kubernetes_client(text):
    amount = parse_quantity(text)
    assert Decimal(amount.numerator) / Decimal(amount.denominator) == reference_parse(text)
    canonical = canonical_quantity(text)
    assert reference_parse(canonical) == reference_parse(text)
    if not canonical.endswith(("u", "n")):
        assert canonical_quantity(canonical) == canonical


@pytest.mark.parametrize("text", ["", "1e3", "-1", "1 Gi", "Gi", "1gi", "nan"], ids=repr)
def test_not_a_quantity(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
