"""The dashboard at a real API server: what it follows, what it may not see, and a server that goes and comes back."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest

from cluster.ports import free_port
from dashboards import pending, raw_experiment, running, succeeded, write_status
from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.access import Access
from finetune_cli.cluster.api import Cluster
from finetune_cli.dashboard import cluster_source
from finetune_cli.dashboard.board import Board
from finetune_cli.dashboard.cluster_source import Scope, Watcher, scopes
from finetune_cli.main import main
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB
from operating import job, until

JOBS = "FineTuneJobs in namespace {}"


@pytest.fixture
def make(cluster, namespace):
    """Makes a job, with a status if one is given, or writes the status of one that is there."""

    def apply(name="reviews", status=None, **spec):
        cluster.apply(job(namespace, name, **spec))
        if status is not None:
            write_status(cluster, namespace, name, status)

    return apply


class Followed:
    """A board that watchers fill, each in a thread of its own."""

    def __init__(self, kubeconfig, namespace, context=None):
        self.board, self.namespace = Board(), namespace
        self._work: queue.Queue = queue.Queue()
        cluster = Cluster(Access(str(kubeconfig), context, namespace))
        self._ended = threading.Event()
        self.threads = [
            threading.Thread(
                target=self._run, args=(Watcher(cluster, scope, self._work.put, lambda _: self._ended.wait(0.3)),)
            )
            for scope in scopes([namespace])
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, watcher):
        while not self._ended.is_set():
            watcher.step()

    def settle(self):
        while not self._work.empty():
            self._work.get()(self.board)
        return self.board.changes(0)

    def rows(self):
        return {row["name"]: row for row in self.settle().rows}

    def phases(self):
        return {name: row["phase"] for name, row in self.rows().items()}

    def problems(self):
        return {problem.what: problem for problem in self.settle().problems}

    def end(self):
        self._ended.set()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def follow(cluster, namespace, monkeypatch):
    monkeypatch.setattr(cluster_source, "WATCH_SECONDS", 2)
    started = []

    def start(kubeconfig=cluster.kubeconfig):
        started.append(Followed(kubeconfig, namespace))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_what_there_is_and_what_changes(follow, make, cluster, namespace):
    make("old", succeeded())
    followed = follow()
    until(lambda: followed.phases() == {"old": "Succeeded"})
    make("new")
    until(lambda: followed.phases() == {"old": "Succeeded", "new": "Pending"})
    make("new", running(450))
    until(lambda: followed.rows()["new"]["percent"] == 50)
    cluster.kubectl("-n", namespace, "delete", "finetunejob", "old")
    until(lambda: followed.phases() == {"new": "Running"})
    assert not followed.settle().loading


def test_an_experiment_and_its_trials(follow, cluster, namespace):
    made, jobs = raw_experiment("schemes", namespace)
    status = made.pop("status")
    for name in ("uid", "resourceVersion", "creationTimestamp", "generation"):
        del made["metadata"][name]
    cluster.apply(made)
    write_status(cluster, namespace, "schemes", status, "finetuneexperiment")
    trial = job(namespace, "schemes-full-0")
    trial["metadata"]["labels"] = {"finetune.dev/experiment": "schemes"}
    cluster.apply(trial)
    followed = follow()
    until(lambda: followed.phases() == {"schemes": "Succeeded", "schemes-full-0": "Pending"})
    assert followed.rows()["schemes-full-0"]["experiment"] == {"namespace": namespace, "name": "schemes"}
    detail, _ = followed.board.find(("FineTuneExperiment", namespace, "schemes"))
    assert len(detail()["trials"]) == len(jobs) == 9


def test_what_may_not_be_seen_is_told_until_it_may(follow, make, cluster, namespace):
    user = f"viewer-{namespace}"
    make("reviews")
    followed = follow(cluster.user(user))
    what = JOBS.format(namespace)
    problem = until(lambda: followed.problems().get(what))
    place = f"namespace {namespace}"
    missing = f"you may not list finetunejobs of finetune.dev in {place}"
    assert (problem.message, problem.since) == (f'{missing}: a Role must grant it to user "{user}"', None)
    cluster.kubectl(
        "-n", namespace, "create", "role", "sees", "--verb=list,watch", "--resource=finetunejobs.finetune.dev"
    )
    cluster.kubectl("-n", namespace, "create", "rolebinding", "sees", "--role=sees", f"--user={user}")
    until(lambda: followed.phases() == {"reviews": "Pending"})
    until(lambda: list(followed.problems()) == [f"FineTuneExperiments in namespace {namespace}"])


def test_a_server_that_goes_and_comes_back(follow, make, cluster):
    make("reviews", running(450))
    followed = follow()
    until(lambda: followed.phases() == {"reviews": "Running"})
    cluster.stop("kube-apiserver", signal.SIGKILL)
    try:
        problem = until(lambda: followed.problems().get(JOBS.format(followed.namespace)))
        assert "does not answer" in problem.message
        assert problem.since is not None
        assert followed.phases() == {"reviews": "Running"}, "what was known is still shown"
    finally:
        cluster.start("kube-apiserver")
    make("reviews", succeeded())
    until(lambda: followed.phases() == {"reviews": "Succeeded"})
    until(lambda: not followed.problems())


def test_a_server_that_hangs_is_noticed(follow, make, cluster, monkeypatch):
    monkeypatch.setattr("finetune_cli.cluster.api.CONNECT_SECONDS", 2)
    make("reviews")
    followed = follow()
    until(lambda: followed.phases() == {"reviews": "Pending"})
    cluster.pause("kube-apiserver")
    try:
        until(lambda: followed.problems().get(JOBS.format(followed.namespace)), 30)
    finally:
        cluster.resume("kube-apiserver")
    until(lambda: not followed.problems())


def test_a_place_in_the_stream_that_is_gone_is_no_problem(cluster, namespace):
    told = []
    access = Cluster(Access(str(cluster.kubeconfig), None, namespace))
    watcher = Watcher(access, Scope(FINE_TUNE_JOB, namespace), told.append, lambda _: None)
    watcher._version = "1"
    watcher.step()
    assert watcher._version == "", "all is listed anew"
    board = Board()
    for work in told:
        work(board)
    assert board.changes(0).problems == ()


def test_a_bug_is_told_and_ends_nothing(cluster, namespace, capsys):
    told, access = [], Cluster(Access(str(cluster.kubeconfig), None, namespace))
    watcher = Watcher(access, Scope(FINE_TUNE_EXPERIMENT, namespace), told.append, lambda _: None)
    watcher._list = lambda: 1 / 0
    watcher.step()
    board = Board()
    for work in told:
        work(board)
    (problem,) = board.changes(0).problems
    assert "ZeroDivisionError" in problem.message
    assert "ZeroDivisionError" in capsys.readouterr().err


# --- the command


@contextmanager
def command(*arguments, environment=None):
    """Within: the command, as a process, once it serves; yields the address that it prints, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_cli.main", "dashboard", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}),
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        yield re.search(r"http://\S+", "".join(lines))[0], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(cluster, namespace, make, how):
    make("reviews", pending())
    with command("-n", namespace, "--kubeconfig", cluster.kubeconfig) as (url, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", url), "loopback, and a secret"
        assert "Fine-tuning" in fetch(url)[1]
        question = f"{url}object?kind=FineTuneJob&namespace={namespace}&name=reviews"
        until(lambda: '"phase": "Pending"' in answer(question))
        with urllib.request.urlopen(f"{url}events", timeout=10):  # a page that is open
            process.send_signal(how)
            _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, "")


def answer(url):
    try:
        return fetch(url)[1]
    except urllib.error.HTTPError as error:
        with error:
            return ""


def test_a_folder_is_shown_without_a_cluster(tmp_path):
    (tmp_path / "runs").mkdir()
    port = free_port()
    nowhere = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    with command(tmp_path / "runs", "--port", port, "--no-secret", environment=nowhere) as (url, process):
        assert url == f"http://127.0.0.1:{port}/"
        assert fetch(f"{url}healthz") == (200, "ok")
        second = subprocess.run(
            [sys.executable, "-m", "finetune_cli.main", "dashboard", str(tmp_path), "--port", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (second.returncode, second.stderr) == (
            ExitCode.PLATFORM, f"finetune: cannot listen on 127.0.0.1, port {port}: address already in use\n",
        )  # fmt: skip
        assert process.poll() is None


WRONG = {
    "all and one": (["-A", "-n", "a"], 2, "finetune: -A shows all namespaces, and goes without -n"),
    "a folder and a cluster": (
        ["runs", "-n", "a"],
        2,
        "finetune: a folder is shown without a cluster: leave out -n, -A, --context and --kubeconfig",
    ),
    "no such folder": (["/nowhere"], 66, "finetune: /nowhere: there is no such folder"),
    "no cluster": (["--kubeconfig", "/nowhere"], 78, "finetune: --kubeconfig /nowhere: is not there"),
}


@pytest.mark.parametrize(("arguments", "code", "told"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_shown(capsys, arguments, code, told):
    assert main(["dashboard", *arguments]) == code
    assert capsys.readouterr().err.strip() == told


def test_a_port_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["dashboard", "--port", "99999"])
    assert "must be a port, 0 to 65535, got 99999" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["aiohttp", "kubernetes"])
def test_without_its_packages_it_says_what_to_install(missing):
    hidden = f"import sys; sys.modules['{missing}'] = None"
    code = f"{hidden}; from finetune_cli.main import main; sys.exit(main(['dashboard']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        ExitCode.PLATFORM,
        "finetune dashboard needs the packages aiohttp and kubernetes: pip install 'finetune-operator[dashboard]'\n",
    )


def test_the_help_comes_at_once_and_without_its_packages():
    code = "import sys; from finetune_cli.main import build_parser; build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aiohttp", "kubernetes", "torch", "asyncio"} & set(loaded)
