"""An example on a real node, from `helm install` to the model, as its user and a Prometheus see it."""

import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

import on_node
from charts import ROOT
from on_node import Run, Site
from operating import until
from prometheus import Prometheus, prometheus

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]
EXAMPLE = ROOT / "examples/digits-cluster.yaml"
OPERATOR_UP = 'up{job="operator"}'
TRAINER_UP = 'up{job="trainer"}'
STEP = 'finetune_step{job="trainer"}'
JOBS = 'finetune_operator_jobs{phase="Running"}'


@dataclass
class Seen:
    """What was seen of the example while it ran, and its end."""

    run: Run
    statuses: list[dict[str, Any]] = field(default_factory=list)
    """Each status that differs from the one before."""
    rows: list[str] = field(default_factory=list)
    """What `kubectl get finetunejobs` printed."""
    series: dict[str, dict[Any, float]] = field(default_factory=dict)
    """What Prometheus answered while it trained."""
    waited: str = ""
    """What `kubectl wait` printed."""

    @property
    def last(self) -> dict[str, Any]:
        return self.statuses[-1]


@pytest.fixture(scope="module")
def site(node_cluster, tmp_path_factory):
    with on_node.site(node_cluster, tmp_path_factory.mktemp("volumes")) as ours:
        yield ours


@pytest.fixture(scope="module")
def seen(site: Site, tmp_path_factory):
    """The example runs; a second thread waits for it as a user does."""
    with prometheus(tmp_path_factory.mktemp("prometheus") / "it") as scraping:
        site.kubectl("apply", f"--filename={EXAMPLE}")
        seen = Seen(Run(site, "digits"))
        waiter = threading.Thread(target=lambda: wait(seen))
        waiter.start()
        try:
            watch(seen)
            seen.series = until(lambda: watch(seen) and answers(site, scraping), on_node.START_SECONDS, "it trains")
            until(lambda: watch(seen) in ("Succeeded", "Failed"), on_node.START_SECONDS, "its end")
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{seen.run.told()}") from failure
        finally:
            waiter.join()
    assert seen.last["phase"] == "Succeeded", seen.run.told()
    return seen


def wait(seen: Seen) -> None:
    command = ("wait", "finetunejob/digits", "--for=condition=Succeeded", "--timeout=900s")
    seen.waited = seen.run.site.kubectl(*command, seconds=920, check=False)


def watch(seen: Seen) -> str:
    """Look once; returns the phase."""
    status = seen.run.status()
    if not seen.statuses or status != seen.last:
        seen.statuses.append(status)
        seen.rows.append(seen.run.site.kubectl("get", "finetunejobs"))
    return status.get("phase", "")


def answers(site: Site, scraping: Prometheus) -> dict[str, dict[Any, float]] | None:
    """What Prometheus knows, once it knows that the job trains."""
    scraping.tell(site.cluster.get("pods", "--all-namespaces"))
    found = {expression: scraping.query(expression) for expression in (OPERATOR_UP, TRAINER_UP, STEP, JOBS)}
    return found if found[STEP] and max(found[STEP].values()) > 0 and found[JOBS] else None


def test_it_trains_on_real_data_and_stops_early(seen):
    result = seen.last["result"]
    assert result["reason"] == "EarlyStopped"
    assert result["metrics"]["accuracy"] >= 0.95
    (attempt,) = seen.last["attempts"]
    assert (attempt["number"], attempt["exitCode"], "cause" in attempt) == (1, 0, False)
    assert seen.last["earlyStopping"]["stoppedAtStep"] == attempt["toStep"] == seen.run.step()


def test_progress_moves_on_the_status_meanwhile(seen):
    steps = [status["progress"]["step"] for status in seen.statuses if "progress" in status]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert next(status["phase"] for status in seen.statuses if "phase" in status) == "Starting"
    assert any(status["progress"].get("etaSeconds") for status in seen.statuses if "progress" in status)


def test_kubectl_wait_returns(seen):
    assert seen.waited == "finetunejob.finetune.dev/digits condition met\n"


def test_the_printed_rows_say_how_it_goes(seen):
    header, *_ = seen.rows[-1].splitlines()
    assert header.split()[:8] == ["NAME", "PHASE", "PERCENT", "STEP", "METRIC", "BEST", "ATTEMPT", "AGE"]
    rows = [row for text in seen.rows for row in text.splitlines()[1:]]
    assert any(re.match(r"digits +Running +[\d.]+ +\d+ +accuracy +[\d.]+ +1 .* Training$", row) for row in rows)
    assert re.match(r"digits +Succeeded +[\d.]+ +\d+ +accuracy +[\d.]+ +1 .*stopped early", rows[-1])


def test_checkpoint_and_model_are_on_the_volume_and_the_model_loads(seen):
    from transformers import pipeline

    folder = seen.run.folder
    result, last = seen.last["result"], seen.last["lastCheckpoint"]
    assert result["model"] == f"pvc://runs/{folder.root.name}/model"
    assert last["path"] == f"pvc://runs/{folder.root.name}/checkpoints/step-{last['step']:012d}"
    assert (folder.checkpoints / f"step-{last['step']:012d}").is_dir()
    model = pipeline("image-classification", model=str(folder.model))
    rows = json.loads(folder.evaluation.read_text())["worst"]
    digits = [seen.run.site.data / "digits" / row["origin"] for row in rows]
    assert [model(str(path), top_k=1)[0]["label"] for path in digits] == [row["predicted"] for row in rows]


def test_prometheus_scrapes_operator_and_trainer(seen, site):
    def of(expression, *names):
        return [
            (*(dict(labels).get(name) for name in names), value) for labels, value in seen.series[expression].items()
        ]

    assert of(OPERATOR_UP, "namespace") == [(site.operator_namespace, 1.0)]
    (up,) = of(TRAINER_UP, "namespace", "finetune_job", "pod")
    assert up[:2] + up[3:] == (site.namespace, "digits", 1.0)
    assert up[2].startswith("digits-1-0-")
    assert of(JOBS, "namespace", "phase") == [(site.namespace, "Running", 1.0)]
    assert of(STEP, "finetune_job")[0][0] == "digits"


def test_one_attempt_of_restricted_pods_was_all(seen, site):
    assert [pod["status"]["phase"] for pod in seen.run.pods(1)] == ["Succeeded", "Succeeded"]
    events = site.get("events.events.k8s.io", "--field-selector=regarding.kind=FineTuneJob")
    assert {event["reason"] for event in events} == {"Starting", "Training", "EarlyStopped"}
