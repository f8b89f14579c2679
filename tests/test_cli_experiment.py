"""``finetune status``, ``compare``, ``report``, ``suspend`` and ``resume`` of an experiment on a real API server."""

import json
import threading
import time

import pytest

from experimenting import World, experiment
from finetune_cli.cluster import experiment_status
from finetune_cli.main import main
from finetune_operator.build.trial import build_trial
from test_experiment_reconcile import by_strategy


@pytest.fixture
def finetune(cluster, namespace, capsys):
    """Runs the command on the namespace; returns its exit code and what it printed, as lines."""

    def run(*arguments):
        capsys.readouterr()
        code = main([*arguments, "-n", namespace, "--kubeconfig", str(cluster.kubeconfig)])
        printed = capsys.readouterr()
        return int(code), printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def stored(cluster, namespace):
    """Stores an experiment after so many ticks, with its trials; later calls bring it up to date."""

    def write(kind, name, status):
        patch = json.dumps({"status": status.to_wire()})
        where = ("-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge")
        cluster.kubectl(*where, f"--patch={patch}")

    def store(ticks):
        made = experiment()
        metadata = made.metadata.model_copy(update={"namespace": namespace})
        world = World(made.model_copy(update={"metadata": metadata}), by_strategy).run(ticks)
        if not cluster.get("-n", namespace, "fte"):
            cluster.apply(world.experiment.to_wire() | {"status": None})
        raw = cluster.get("-n", namespace, "fte", "e")
        write("fte", "e", world.status)
        owner = metadata.model_copy(update={"uid": raw["metadata"]["uid"]})
        owned = world.experiment.model_copy(update={"metadata": owner})
        cluster.apply(*(build_trial(owned, job) for job in world.jobs.values()))
        for name, job in world.jobs.items():
            if job.status:
                write("ftj", name, job.status)
        return world

    return store


def test_how_it_stands(finetune, stored, namespace):
    world = stored(1000)
    code, lines, _ = finetune("status", "e")
    assert code == 0
    assert lines[:2] == [
        f"e  experiment in namespace {namespace}",
        f"Succeeded: {world.condition('Concluded').message}",
    ]
    assert lines[3].split()[:3] == ["variant", "n", "mean"]
    assert [line.split()[:2] for line in lines[4:6]] == [["full", "3"], ["head", "3"]]
    assert lines[-1] == f"  jobs        kubectl get finetunejobs -n {namespace} -l finetune.dev/experiment=e"
    assert "  model       /runs/e-full-2/model" in lines


def test_nothing_is_known_of_a_new_one(finetune, cluster, namespace):
    made = experiment()
    metadata = made.metadata.model_copy(update={"namespace": namespace})
    cluster.apply(made.model_copy(update={"metadata": metadata}).to_wire())
    assert "the operator has not looked at it yet" in finetune("status", "e")[1][1]


def test_it_is_followed_to_its_answer(finetune, stored, monkeypatch):
    monkeypatch.setattr(experiment_status, "POLL_SECONDS", 0.2)
    stored(6)
    later = threading.Thread(target=lambda: (time.sleep(1), stored(1000)))
    later.start()
    code, lines, _ = finetune("status", "e", "--watch")
    later.join()
    assert code == 0
    assert [line.split()[1] for line in lines if "finished with" in line][-1] == "e-head-2:"
    assert any(line.startswith("Succeeded: full is better than head") for line in lines)


def test_its_trials_are_compared(finetune, stored, tmp_path):
    stored(1000)
    code, lines, _ = finetune("compare", "e")
    assert code == 0
    assert lines[0].split() == [f"e-{variant}-{seed}" for seed in range(3) for variant in ("full", "head")]
    assert finetune("compare", "e", "--html", str(tmp_path / "c.html"))[0] == 0
    assert "e: head" in (tmp_path / "c.html").read_text()


def test_its_page_is_written(finetune, stored, tmp_path):
    world = stored(1000)
    page = tmp_path / "pages/e.html"
    assert finetune("report", "e", "--out", str(page))[:2] == (0, [f"Written to {page}"])
    assert world.condition("Concluded").message in page.read_text()
    assert page.read_text().count("<svg") == 2
    code, _, told = finetune("report", "e", "--out", "/dev/null/page.html")
    assert (code, told[0].startswith("--out: /dev/null/page.html cannot be written")) == (77, True)


def test_a_job_has_no_such_page(finetune, stored):
    stored(2)
    code, _, told = finetune("report", "e-full-0")
    assert (code, told) == (
        64,
        ["finetune: e-full-0 is a job: its report lies in its run's folder; finetune status e-full-0 says where"],
    )


def test_suspended_and_resumed(finetune, stored, cluster, namespace):
    stored(2)
    assert finetune("suspend", "e")[:2] == (
        0,
        ["e: suspended; its trials save, then leave and free their resources; finetune resume e lets them go on"],
    )
    assert cluster.get("-n", namespace, "fte", "e")["spec"]["suspend"] is True
    assert finetune("resume", "e")[1] == ["e: resumed; its trials go on from their newest checkpoints"]
    stored(1000)
    code, _, told = finetune("suspend", "e")
    assert (code, told) == (64, ["finetune: e: has succeeded already; nothing was done"])


def test_what_is_neither(finetune, stored):
    stored(2)
    code, _, told = finetune("status", "e-ful-0")
    assert (code, told[0].endswith("; did you mean e-full-0?")) == (66, True)
