"""Random objects, valid and broken: nothing crashes, nothing hangs, and each refusal names its field.

The pure part takes thousands; a sample of them goes through a real API server to a running operator, and as a campaign
thousands do as well.
"""

import itertools
import json
import re
import ssl
import urllib.error
import urllib.request
from random import Random

import pytest

from finetune_api import FineTuneJob, FineTuneRuntime, SpecError, parse_job, parse_runtime
from finetune_api.errors import field_names
from finetune_operator.build.children import build_children
from finetune_operator.resolve import resolve
from finetune_operator.resolved import Resolved
from operating import RUNTIME, Stage, until
from pod_security import violations
from random_objects import broken_job, random_object

COUNT, SAMPLE = 2000, 40
on_a_cluster = pytest.mark.parametrize(
    "count", [SAMPLE, pytest.param(COUNT, marks=[pytest.mark.campaign, pytest.mark.timeout(3600)])]
)
PERMISSIVE = parse_runtime({**RUNTIME, "spec": {**RUNTIME["spec"], "allowTrustRemoteCode": True}})
VERDICT_SECONDS = 60
REFUSED = re.compile(r"(spec(?:\.\w+)*)(?:\[\d+\])?: .")


def test_random_jobs_are_built_or_refused_by_their_field():
    rng, built = Random(1), 0
    for number in range(COUNT):
        job = parse_job(random_object(FineTuneJob, rng))
        by = PERMISSIVE if number % 2 else parse_runtime(random_object(FineTuneRuntime, rng))
        made = resolve(job, by, {})
        if not isinstance(made, Resolved):
            assert is_field(REFUSED.match(made.message)[1]), made
            continue
        built += 1
        manifests = build_children(made, 1, ("ops",))
        assert json.loads(json.dumps(manifests)) == list(manifests)
        assert violations(manifests[-1]["spec"]["template"]["spec"]) == []
    assert built > COUNT / 5, "most of what is drawn must be worth the while"


def is_field(path):
    """Whether there is a field of this path."""
    *parents, name = path.split(".")
    return name in field_names(FineTuneJob, tuple(parents))


def test_random_runtimes_survive_their_own_json():
    rng = Random(2)
    for _ in range(COUNT):
        runtime = parse_runtime(random_object(FineTuneRuntime, rng))
        assert parse_runtime(runtime.to_wire()) == runtime


def test_random_broken_jobs_are_refused_by_their_field():
    rng = Random(3)
    for _ in range(COUNT):
        document, path = broken_job(rng)
        with pytest.raises(SpecError) as caught:
            parse_job(document)
        assert path in [fault.path for fault in caught.value.faults], (path, caught.value, document)


@pytest.fixture(scope="module")
def post(cluster):
    """Sends a manifest as the administrator, and strictly, as kubectl does; returns the status and what is said."""
    plane = cluster.plane
    trusted = ssl.create_default_context(cafile=str(plane.authority.root.certificate))
    identity = plane.authority.issue("random", "random", groups=("system:masters",))
    trusted.load_cert_chain(identity.certificate, identity.key)

    def send(namespace, document):
        path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs?fieldValidation=Strict"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(plane.url + path, json.dumps(document).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["message"]

    return send


@pytest.fixture
def stage(cluster, namespace, tmp_path):
    cluster.apply({**RUNTIME, "spec": {**RUNTIME["spec"], "allowTrustRemoteCode": True}})
    made = Stage(cluster, namespace, tmp_path)
    yield made
    made.end()
    cluster.apply(RUNTIME)


def verdicts(stage):
    """Name of each job → its condition Accepted, once every job has one."""

    def look():
        jobs = stage.get("finetunejobs")
        found = {
            job["metadata"]["name"]: one
            for job in jobs
            for one in job.get("status", {}).get("conditions", [])
            if one["type"] == "Accepted"
        }
        missing = sorted({job["metadata"]["name"] for job in jobs} - found.keys())
        return (not missing, found or missing)

    return until(lambda: (done := look())[0] and done, VERDICT_SECONDS, "a condition of every job")[1]


def assert_at_rest(operator):
    """No key waits or is being tried again, and no bug was met."""
    metrics = until(lambda: (m := operator.metrics())["finetune_operator_queue_depth"] == 0 and m)
    assert not [name for name in metrics if 'result="bug"' in name and metrics[name]]
    assert "a bug" not in operator.log.read_text()


@on_a_cluster
def test_random_jobs_on_a_cluster(stage, post, count):
    """Each is accepted by the API server, and is then either started or told why not."""
    operator = stage.start().await_ready()
    rng, asked = Random(4), {}
    for number in range(count):
        spec = {"runtime": "missing" if number % 8 == 0 else "default", "suspend": number % 5 == 1}
        spec["stop"] = False  # one that is ended before it began is never started
        document = random_object(FineTuneJob, rng, stage.namespace, **spec)
        document["metadata"]["name"] = name = f"random-{number}"
        document["spec"].setdefault("distributed", {})["workers"] = 1 + number % 3
        assert post(stage.namespace, document) == (201, ""), document
        asked[name] = document
    told = verdicts(stage)
    started = {job["metadata"]["labels"]["finetune.dev/job"] for job in stage.get("jobs")}
    for name, verdict in told.items():
        if verdict["status"] == "False":
            assert is_field(REFUSED.match(verdict["message"])[1]), verdict
        elif not asked[name]["spec"]["suspend"]:
            assert name in started, stage.message(name)
    assert len(started) >= count / 4
    assert_at_rest(operator)


@on_a_cluster
def test_the_api_server_refuses_random_broken_jobs(namespace, post, count):
    rng = Random(5)
    for _ in range(count):
        document, path = broken_job(rng, namespace)
        status, message = post(namespace, document)
        assert status in (400, 422), (status, document)
        assert path in message


@pytest.fixture
def without_schema(cluster):
    """The API server takes anything for a FineTuneJob, as it would with the CRD of another version."""
    (crd,) = cluster.get("crd", "--field-selector=metadata.name=finetunejobs.finetune.dev")
    version = crd["spec"]["versions"][0]
    loose = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {**crd["spec"], "versions": [{**version, "schema": loose}]}
    manifest = {name: crd[name] for name in ("apiVersion", "kind")} | {
        "metadata": {"name": crd["metadata"]["name"]},
        "spec": {name: spec[name] for name in ("group", "names", "scope", "versions")},
    }
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(manifest))
    yield
    cluster.apply_crds()


@on_a_cluster
@pytest.mark.usefixtures("without_schema")
def test_the_operator_refuses_random_broken_jobs(stage, post, count):
    """Those that were stored all the same: each is told which field is wrong, and none gets in the way of another."""
    operator = stage.start().await_ready()
    rng, paths = Random(5), {}
    while len(paths) < count:
        document, path = broken_job(rng, stage.namespace)
        if path == "metadata.name":
            continue
        document["metadata"]["name"] = name = f"broken-{len(paths)}"
        until(lambda sent=document: post(stage.namespace, sent)[0] == 201, what=name)
        paths[name] = path
    told = verdicts(stage)
    assert {name: one["status"] for name, one in told.items()} == dict.fromkeys(paths, "False")
    assert [(paths[name], one["message"]) for name, one in told.items() if paths[name] not in one["message"]] == []
    assert_at_rest(operator)
    stage.kubectl("delete", f"--raw=/apis/finetune.dev/v1alpha1/namespaces/{stage.namespace}/finetunejobs")


def test_the_same_seed_gives_the_same_objects():
    def drawn():
        rng = Random(6)
        return [random_object(FineTuneJob, rng) for _ in range(5)], [broken_job(rng) for _ in range(5)]

    first, second = (drawn() for _ in itertools.repeat(None, 2))
    assert first == second
