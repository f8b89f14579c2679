"""``finetune`` (and ``kubectl finetune``) on jobs of a real API server."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from cluster import images
from cluster.manifests import indexed_job
from finetune_api import Cause
from finetune_api.outcomes import ExitCode
from finetune_api.status import Best, JobStatus, LastCheckpoint, Phase, Progress, ProgressReport, Reason, Result, Stage
from finetune_cli.cluster import api, follow, jobs, status, suspension
from finetune_cli.cluster.jobs import know
from finetune_cli.main import main
from finetune_operator.causes import Verdict
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.kinds import Kind
from finetune_operator.names import ANNOTATION_INDEX, attempt_labels
from finetune_operator.observed import ObservedWorker, WorkerPhase
from finetune_operator.status import with_attempt, with_failure, with_report, with_restart, with_success
from kubelet import kubelet_of
from operating import containers, job
from workers import until

T0 = datetime(2020, 1, 1, tzinfo=UTC)
FOLDER = "pvc://runs/reviews-1a2b3c4d"


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def report(step, attempt=1, saved=None):
    progress = Progress(
        step=step, total_steps=100, epoch=step / 40, percent=step, eta_seconds=185, samples_per_second=310.4, time=T0
    )
    checkpoint = LastCheckpoint(step=saved, path=f"{FOLDER}/checkpoints/step-{saved}", time=T0) if saved else None
    best = Best(metric="accuracy", value=0.912345, step=30)
    return ProgressReport(
        stage=Stage.TRAINING,
        attempt=attempt,
        progress=progress,
        metrics={"accuracy": 0.91},
        best=best,
        last_checkpoint=checkpoint,
    )


def told(current, phase, reason, message=""):
    return with_situation(current, Situation(phase, reason, message), T0, 1)


def failed(current, cause, code, text, end, node="node-a"):
    worker = ObservedWorker(0, WorkerPhase.FAILED, T0, at(end), code, None, node)
    return with_failure(current, at(end), Verdict(cause, text, worker))


RUNNING = told(
    with_report(with_attempt(JobStatus(), 1, T0), report(40, saved=30)), Phase.RUNNING, Reason.TRAINING, "Training"
)


def succeeded():
    result = Result(reason="Completed", model=f"{FOLDER}/model", metrics={"accuracy": 0.9})
    done = with_success(RUNNING, at(200), None).model_copy(update={"result": result})
    return told(done, Phase.SUCCEEDED, Reason.COMPLETED, "Trained 100 steps")


def misconfigured(code=ExitCode.BAD_DATA):
    done = failed(RUNNING, Cause.CONFIGURATION, int(code), "data.csv, line 3: no label", 60)
    return told(done, Phase.FAILED, Reason.CONFIGURATION, "Attempt 1 ended (Configuration): data.csv, line 3: no label")


@pytest.fixture
def finetune(cluster, namespace, capsys):
    """Runs the command on the namespace; returns its exit code and what it printed, as lines."""

    def run(*arguments, kubeconfig=None, where=("-n", namespace)):
        capsys.readouterr()
        code = main([*arguments, *where, "--kubeconfig", str(kubeconfig or cluster.kubeconfig)])
        printed = capsys.readouterr()
        return int(code), printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def make(cluster, namespace):
    """Makes a job, with a status if one is given; returns it as the API server has it."""

    def apply(name="reviews", current=None, **spec):
        cluster.apply(job(namespace, name, **spec))
        if current is not None:
            write(name, current)
        return cluster.get("-n", namespace, "finetunejob", name)

    def write(name, current):
        patch = json.dumps({"status": current.to_wire()})
        cluster.kubectl(
            "-n", namespace, "patch", "finetunejob", name, "--subresource=status", "--type=merge", f"--patch={patch}"
        )

    apply.write = write
    return apply


# --- status


def test_there_are_no_jobs(finetune, namespace):
    assert finetune("status") == (0, [], [f"no FineTuneJobs in namespace {namespace}"])


def test_jobs_are_rows(finetune, make):
    make("a-running", RUNNING)
    make("b-new")
    make("c-waits", told(with_attempt(JobStatus(), 1, T0), Phase.STARTING, Reason.STARTING, "no node takes it"))
    make("d-done", succeeded())
    code, lines, _ = finetune("status")
    rows = [re.split(" {3,}", re.sub(r"\d+ s\b", "N s", line)) for line in lines]
    assert (code, rows) == (
        0,
        [
            ["NAME", "PHASE", "PROGRESS", "LEFT", "SAMPLES/S", "BEST", "ATTEMPT", "AGE", "MESSAGE"],
            ["a-running", "Running", "40 % (40/100)", "3:05 min", "310.4", "accuracy 0.9123", "1", "N s"],
            ["b-new", "Pending", "N s", "the operator has not looked at it yet"],
            ["c-waits", "Starting", "1", "N s", "no node takes it"],
            ["d-done", "Succeeded", "40 % (40/100)", "accuracy 0.9123", "1", "N s"],
        ],
    )


def test_jobs_of_all_namespaces(finetune, make, namespace):
    make()
    code, lines, _ = finetune("status", "-A")
    assert code == 0
    assert lines[0].split()[:3] == ["NAMESPACE", "NAME", "PHASE"]
    assert [namespace, "reviews", "Pending"] in [line.split()[:3] for line in lines]


def test_status_of_a_job_that_trains(finetune, make, namespace):
    make(current=RUNNING, earlyStopping={"patience": 3})
    code, lines, _ = finetune("status", "reviews")
    lines = [re.sub("heard  .* ago", "heard  … ago", line) for line in lines]
    assert (code, lines) == (
        0,
        [
            f"reviews  text-classification  in namespace {namespace}",
            "Running: Training",
            "  progress    [########------------] 40 %  step 40 of 100, epoch 1.00",
            "  pace        310.4 samples/s, 3:05 min left",
            "  metrics     accuracy 0.91",
            "  best        accuracy 0.9123 at step 30",
            "  checkpoint  step 30",
            "  last heard  … ago",
            "",
            "Attempts:",
            "  1  steps 0 to 40, runs",
        ],
    )


def test_status_of_a_job_that_is_done(finetune, make, namespace):
    make(current=succeeded())
    code, lines, _ = finetune("status", "reviews")
    assert (code, lines) == (
        0,
        [
            f"reviews  text-classification  in namespace {namespace}",
            "Succeeded (Completed): Trained 100 steps",
            "  metrics     accuracy 0.9",
            "  best        accuracy 0.9123 at step 30",
            "  took        3:20 min",
            f"  model       {FOLDER}/model",
            f"  checkpoint  step 30, {FOLDER}/checkpoints/step-30",
            "",
            "Attempts:",
            "  1  steps 0 to 40 in 3:20 min, finished",
        ],
    )


ATTEMPT = with_attempt(JobStatus(), 1, T0)
STANDINGS = {
    "not seen": (
        None,
        "Pending: the operator has not looked at it yet; if it does not, see that it is installed and runs",
        "Nothing yet; if this lasts, see that the operator is installed and runs.",
    ),
    "no node": (
        told(ATTEMPT, Phase.STARTING, Reason.STARTING, "no node takes it (Unschedulable): no GPUs"),
        "Starting: no node takes it (Unschedulable): no GPUs",
        "Nothing: it starts by itself. If that takes minutes, put right what is named above.",
    ),
    "no runtime": (
        told(JobStatus(), Phase.PENDING, Reason.RUNTIME_NOT_FOUND, "there is no FineTuneRuntime gpus"),
        "Pending (RuntimeNotFound): there is no FineTuneRuntime gpus",
        "See kubectl get finetuneruntimes; it starts by itself once there is one of the name.",
    ),
    "queued": (
        told(ATTEMPT, Phase.SUSPENDED, Reason.QUEUED, "Attempt 1 waits to be admitted"),
        "Suspended (Queued): Attempt 1 waits to be admitted",
        "Nothing: it starts once its queue admits it; kubectl get workloads says what it waits for.",
    ),
    "bad data": (
        misconfigured(),
        "Failed (Configuration, exit code 65): Attempt 1 ended (Configuration): data.csv, line 3: no label",
        "Correct the data that is named above, and make the job anew.",
    ),
    "deadline": (
        told(failed(RUNNING, Cause.PREEMPTED, 143, "left", 60), Phase.FAILED, Reason.DEADLINE_EXCEEDED, "it ran 60 s"),
        "Failed (DeadlineExceeded): it ran 60 s",
        "Raise spec.activeDeadlineSeconds; a job that is made anew starts from the beginning.",
    ),
    "of the terminal": (
        told(ATTEMPT, Phase.STARTING, Reason.STARTING, "its image \x1b[2Jis\nbad"),
        "Starting: its image  [2Jis bad",
        "Nothing: it starts by itself. If that takes minutes, put right what is named above.",
    ),
}


@pytest.mark.parametrize(("current", "headline", "advice"), STANDINGS.values(), ids=STANDINGS.keys())
def test_where_a_job_stands_and_what_to_do(finetune, make, current, headline, advice):
    make(current=current)
    assert finetune("status", "reviews")[1][1] == headline
    assert finetune("describe", "reviews")[1][1:3] == [headline, f"  what to do  {advice}"]


def test_the_story_of_a_job(finetune, make, namespace):
    first = failed(RUNNING, Cause.OUT_OF_MEMORY, 137, "killed by the kernel: out of memory", 65)
    second = with_attempt(with_restart(first, Cause.OUT_OF_MEMORY), 2, at(67))
    second = failed(
        with_report(second, report(50, 2, saved=30).model_copy(update={"resumed_from_step": 30})),
        Cause.PREEMPTED,
        143,
        "evicted from its node",
        100,
    )
    third = with_attempt(with_restart(second, Cause.PREEMPTED), 3, at(102))
    third = with_report(third, report(90, 3, saved=30).model_copy(update={"resumed_from_step": 30}))
    make(current=told(third, Phase.RUNNING, Reason.TRAINING, "Training"))
    code, lines, _ = finetune("describe", "reviews")
    local = [f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" for moment in (T0, at(67), at(102))]
    lines = [re.sub(r"since .*", "since then", line) for line in lines]
    assert (code, lines) == (
        0,
        [
            f"reviews  text-classification  in namespace {namespace}",
            "Running: Training",
            "  what to do  Nothing: it is under way.",
            "",
            "Attempt 1: OutOfMemory, the memory limit or the GPU's memory was exceeded",
            f"  when        {local[0]}, for 1:05 min",
            "  trained     from the beginning, to step 40",
            "  happened    killed by the kernel: out of memory",
            "  exit code   137",
            "  node        node-a",
            "  counts      may happen 2 times without a newer checkpoint",
            "  then        attempt 2 went on 2 s later, from step 30; 10 steps had to be trained again",
            "",
            "Attempt 2: Preempted, it was asked to leave or taken away (eviction, preemption, deletion, suspension)",
            f"  when        {local[1]}, for 33 s",
            "  trained     went on from the checkpoint of step 30, to step 50",
            "  happened    evicted from its node",
            "  exit code   143",
            "  node        node-a",
            "  counts      free: nothing went wrong with the run, and it may happen any number of times",
            "  then        attempt 3 went on 2 s later, from step 30; 20 steps had to be trained again",
            "",
            "Attempt 3: is under way",
            f"  when        {local[2]}, since then",
            "  trained     went on from the checkpoint of step 30, to step 90",
            "",
            "Restarts, each cause with the budget that a newer checkpoint makes whole again:",
            "  OutOfMemory 1 of 2 used, 1 in all",
            "  Preempted   free, 1 in all",
        ],
    )


def test_a_job_of_a_newer_operator_can_be_read(make):
    raw = make(current=RUNNING)
    raw["spec"]["novelty"], raw["status"]["progress"]["novelty"] = {"a": 1}, 2
    known = know(raw)
    assert known.job is not None
    assert (known.status.progress, known.job.spec.task) == (RUNNING.progress, "text-classification")


# --- watching


def test_a_job_is_watched_to_its_end(finetune, make, monkeypatch):
    monkeypatch.setattr(status, "POLL_SECONDS", 0.2)
    make(current=told(ATTEMPT, Phase.STARTING, Reason.STARTING, "Attempt 1 starts"))
    course = [RUNNING, misconfigured()]
    player = threading.Thread(target=lambda: [(time.sleep(1), make.write("reviews", one)) for one in course])
    player.start()
    code, lines, _ = finetune("status", "reviews", "--watch")
    player.join()
    assert code == ExitCode.BAD_DATA
    assert [line[9:] for line in lines[:2]] == ["Starting: Attempt 1 starts", "checkpoint of step 30 saved"]
    assert "Failed (Configuration, exit code 65): " in "\n".join(lines[2:])


def test_rows_are_watched_until_interrupted(cluster, make, namespace):
    make("first", RUNNING)
    command = [sys.executable, "-u", "-m", "finetune_cli.main", "status", "-w", "-n", namespace]
    command += ["--kubeconfig", str(cluster.kubeconfig)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline().split()[:2] for _ in range(2)]
        make("second")
        make.write("first", succeeded())
        rows += [process.stdout.readline().split()[:2] for _ in range(2)]
        cluster.kubectl("-n", namespace, "delete", "finetunejob", "second")
        last = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert rows == [["NAME", "PHASE"], ["first", "Running"], ["second", "Pending"], ["first", "Succeeded"]]
    assert last.startswith("second ")
    assert last.endswith("(deleted)\n")


# --- suspend and resume


def suspended(cluster, namespace, name="reviews"):
    return cluster.get("-n", namespace, "finetunejob", name)["spec"].get("suspend")


def test_suspend_and_resume(finetune, make, cluster, namespace):
    make(current=RUNNING)
    back = "finetune resume reviews lets it go on"
    leaves = f"attempt 1 at step 40 saves, then leaves and frees its resources; {back}"
    assert finetune("suspend", "reviews") == (0, [f"reviews: suspended; {leaves}"], [])
    assert suspended(cluster, namespace) is True
    assert finetune("suspend", "reviews") == (0, [f"reviews: is suspended already; {leaves}"], [])
    assert finetune("resume", "reviews") == (0, ["reviews: resumed; it goes on from step 30"], [])
    assert suspended(cluster, namespace) is False
    assert finetune("resume", "reviews") == (0, ["reviews: is not suspended; its phase is Running"], [])


def test_a_job_that_never_began_starts_from_the_beginning(finetune, make):
    make(suspend=True, queue="gpus")
    start = "it starts from the beginning, for nothing was saved, once queue gpus admits it"
    assert finetune("resume", "reviews") == (0, [f"reviews: resumed; {start}"], [])


def test_a_finished_job_is_not_suspended(finetune, make):
    make(current=succeeded())
    assert finetune("suspend", "reviews") == (
        64,
        [],
        ["finetune: reviews: has succeeded already; nothing was done"],
    )


@pytest.fixture
def meanwhile(monkeypatch):
    """Does something just before the first patch arrives."""

    def prepare(action):
        patch, done = api.Cluster.patch, []

        def patch_late(self, kind, name, body):
            if not done:
                done.append(action())
            return patch(self, kind, name, body)

        monkeypatch.setattr(api.Cluster, "patch", patch_late)

    return prepare


def test_suspension_survives_a_status_that_is_written_meanwhile(finetune, make, meanwhile, cluster, namespace):
    make()
    meanwhile(lambda: make.write("reviews", RUNNING))
    assert finetune("suspend", "reviews")[0] == 0
    assert suspended(cluster, namespace) is True


def test_a_namesake_is_left_alone(finetune, make, meanwhile, cluster, namespace):
    make()

    def replace():
        cluster.kubectl("-n", namespace, "delete", "finetunejob", "reviews")
        make()

    meanwhile(replace)
    assert finetune("suspend", "reviews")[0] == ExitCode.RETRY
    assert suspended(cluster, namespace) is False
    assert suspension._TRIES > 1


# --- what can go wrong


def test_a_name_that_is_nearly_right(finetune, make, namespace):
    make()
    near = f"finetune: there is no FineTuneJob revews in namespace {namespace}; did you mean reviews?"
    assert finetune("describe", "revews") == (66, [], [near])


def test_a_name_in_an_empty_namespace(finetune, namespace):
    none = f"finetune: there is no FineTuneJob a in namespace {namespace}, nor any other; -n names another one"
    assert finetune("suspend", "a") == (66, [], [none])


def test_no_name_at_all(finetune):
    code, _, errors = finetune("logs", "A/b")
    assert (code, errors[0][:34]) == (64, "finetune: A/b: is no job's name; a")


RIGHTS = {
    "get": (["status", "a"], [], "get finetunejobs of finetune.dev"),
    "list": (["status"], [], "list finetunejobs of finetune.dev"),
    "patch": (["suspend", "a"], [("finetune.dev", "finetunejobs", "get")], "patch finetunejobs of finetune.dev"),
    "pods": (["logs", "a"], [("finetune.dev", "finetunejobs", "get")], "list pods"),
    "log": (
        ["logs", "a"],
        [("finetune.dev", "finetunejobs", "get"), ("", "pods", "list")],
        "get pods/log",
    ),
}


@pytest.mark.parametrize(("command", "granted", "missing"), RIGHTS.values(), ids=RIGHTS.keys())
def test_a_missing_right_is_named(finetune, make, pod, cluster, namespace, command, granted, missing):
    pod(make("a"), 1, 0)
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in granted]
    metadata = {"name": "some", "namespace": namespace}
    rbac = "rbac.authorization.k8s.io"
    subject = {"kind": "User", "name": f"user-{namespace}", "apiGroup": rbac}
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": metadata, "subjects": [subject]}
    cluster.apply(role, binding | {"roleRef": {"kind": "Role", "name": "some", "apiGroup": rbac}})
    line = f'you may not {missing} in namespace {namespace}: a Role must grant it to user "user-{namespace}"'
    user = cluster.user(f"user-{namespace}")
    until(lambda: finetune(*command, kubeconfig=user) == (77, [], [f"finetune: {line}"]), line, seconds=10, pause=0.5)


def changed(cluster, path, change):
    """A kubeconfig like the cluster's, but for something."""
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_user_that_the_cluster_does_not_know(finetune, cluster, tmp_path):
    def forget(document):
        document["users"][0]["user"] = {"token": "nobody"}

    code, _, errors = finetune("status", kubeconfig=changed(cluster, tmp_path / "config", forget))
    assert (code, errors) == (77, ["finetune: the cluster does not know you (401): log in again"])


def test_nobody_answers(finetune, cluster, tmp_path):
    def move(document):
        document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    code, _, errors = finetune("status", kubeconfig=changed(cluster, tmp_path / "config", move))
    refused = "finetune: the cluster at https://127.0.0.1:1 does not answer: [Errno 111] Connection refused"
    assert (code, errors) == (75, [refused])


def test_the_operator_is_not_installed(finetune, monkeypatch):
    absent = Kind("FineTuneJob", "finetune.dev", "absent", "finetunejobs")
    for module in (jobs, status):
        monkeypatch.setattr(module, "FINE_TUNE_JOB", absent)
    said = "finetune: this cluster knows no FineTuneJobs: the operator is not installed (docs/cluster.md)"
    assert finetune("status") == finetune("status", "a") == (78, [], [said])


def test_which_cluster_and_namespace_is_meant(cluster, namespace, make, tmp_path, monkeypatch, capsys):
    make()

    def name(document):
        document["contexts"][0]["context"]["namespace"] = namespace
        document["contexts"][0]["name"] = "here"
        del document["current-context"]

    config = changed(cluster, tmp_path / "config", name)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{config}")
    assert main(["status", "reviews", "--context", "here"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(f"in namespace {namespace}")
    assert main(["status"]) == main(["status", "--context", "there"]) == 78
    assert capsys.readouterr().err.splitlines() == [
        f"finetune: {tmp_path}/none:{config} has no current context; give --context, one of here",
        f"finetune: there is no context there in {tmp_path}/none:{config}; it has here",
    ]


def test_no_cluster_is_configured(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    hint = "set KUBECONFIG, give --kubeconfig, or put a kubeconfig at ~/.kube/config"
    assert main(["status"]) == 78
    assert capsys.readouterr().err == f"finetune: no cluster is configured: {hint}\n"


PLACES = {
    "a folder that is here": (["demo"], "demo: holds no run (no status.yaml)"),
    "with a slash": (["./none"], "none: holds no run (no status.yaml)"),
    "not here": (["none"], "finetune: no cluster is configured"),
    "a folder, but a namespace is named": (["demo", "-n", "a"], "finetune: no cluster is configured"),
    "a folder, but it shall be watched": (["demo", "--watch"], "finetune: no cluster is configured"),
}


@pytest.mark.parametrize(("arguments", "said"), PLACES.values(), ids=PLACES.keys())
def test_a_folder_or_a_job(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert main(["status", *arguments]) in (66, 78)
    assert capsys.readouterr().err.startswith(said)


def test_all_namespaces_go_without_a_name(capsys):
    assert main(["status", "demo", "-A"]) == 2
    assert "goes without a name" in capsys.readouterr().err


def test_kubectl_always_means_the_cluster(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-finetune"])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main(["status", "runs/demo"]) == 78
    with pytest.raises(SystemExit):
        main(["logs"])
    assert capsys.readouterr().err.splitlines()[1].startswith("usage: kubectl finetune logs")


WITHOUT = "import sys; sys.modules['kubernetes'] = None; from finetune_cli.main import main; sys.exit(main(['status']))"
LIGHT = "import sys, finetune_cli.main, finetune_cli.validate, finetune_cli.status; print('kubernetes' in sys.modules)"


def test_kubernetes_is_imported_by_these_commands_alone():
    light = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert light.stdout == "False\n"
    without = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert (without.returncode, without.stderr) == (
        78,
        "this command needs the package kubernetes: pip install 'kubernetes>=37,<38'\n",
    )


# --- logs


@pytest.fixture
def kubelet(cluster, namespace, tmp_path, monkeypatch):
    for name in ("POLL_SECONDS", "_BROKEN_SECONDS"):
        monkeypatch.setattr(follow, name, 0.2)
    with kubelet_of(cluster, f"node-{namespace}", tmp_path) as made:
        yield made


@pytest.fixture
def pod(cluster, namespace):
    """Makes the pod of a worker, in a state; returns its name."""
    made = []

    def apply(raw, attempt, worker, state=None, *, told=None):
        name = f"{raw['metadata']['name']}-{attempt}-{worker}"
        labels = attempt_labels(raw["metadata"]["name"], raw["metadata"]["uid"], attempt)
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        spec = {"nodeName": f"node-{namespace}", "containers": [{"name": "trainer", "image": "trainer:1"}]}
        annotations = {ANNOTATION_INDEX: str(worker)}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"annotations": annotations}, "spec": spec}
        )
        made.append(name)
        phase = "Succeeded" if state and "terminated" in state else "Running"
        now = {
            "phase": phase,
            **containers(state or {"running": {"startedAt": "2030-01-01T00:00:00Z"}}),
            **(told or {}),
        }
        patch = json.dumps({"status": now})
        cluster.kubectl(
            "-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", f"--patch={patch}"
        )
        return name

    yield apply
    for name in made:
        cluster.kubectl("-n", namespace, "delete", "pod", name, "--force", "--ignore-not-found", "--wait=false")


ENDED = {"terminated": {"exitCode": 0, "startedAt": "2030-01-01T00:00:00Z", "finishedAt": "2030-01-01T00:01:00Z"}}
FAILED_ONCE = with_restart(failed(RUNNING, Cause.INFRASTRUCTURE, 75, "a peer was lost", 60), Cause.INFRASTRUCTURE)
TWO_ATTEMPTS = told(with_attempt(FAILED_ONCE, 2, at(60)), Phase.RUNNING, Reason.TRAINING, "Training")
SELECTIONS = {
    "the newest": ([], ["[worker 0] b", "[worker 0] c", "[worker 1] d"]),
    "one worker": (["--worker", "1"], ["d"]),
    "another attempt": (["--attempt", "1"], ["[worker 0] a"]),
    "the last line": (["--tail", "1"], ["[worker 0] c", "[worker 1] d"]),
}


def test_which_logs(finetune, make, kubelet, pod):
    raw = make(current=TWO_ATTEMPTS, distributed={"workers": 2})
    kubelet.write(pod(raw, 1, 0), "a")
    kubelet.write(pod(raw, 2, 1), "d")
    kubelet.write(pod(raw, 2, 0), "b", "c")
    found = {name: finetune("logs", "reviews", *arguments) for name, (arguments, _) in SELECTIONS.items()}
    assert found == {name: (0, lines, []) for name, (_, lines) in SELECTIONS.items()}
    assert finetune("logs", "reviews", "--worker", "2") == (
        66,
        [],
        ["finetune: reviews: has no worker 2; it has workers 0 to 1"],
    )
    assert finetune("logs", "reviews", "--attempt", "7") == (
        66,
        [],
        ["finetune: reviews: has no attempt 7; the newest was 2"],
    )


def test_logs_of_one_worker_have_no_prefix(finetune, make, kubelet, pod):
    kubelet.write(pod(make(current=RUNNING), 1, 0), "a", "ünïcode")
    assert finetune("logs", "reviews") == (0, ["a", "ünïcode"], [])


def test_what_a_worker_waits_for(finetune, make, kubelet, pod):
    raw = make(current=RUNNING, distributed={"workers": 2})
    kubelet.write(pod(raw, 1, 0), "a")
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    pod(raw, 1, 1, {"waiting": waiting}, told={"phase": "Pending"})
    why = "its image cannot be pulled (ImagePullBackOff): no such image"
    late = f"worker 1 of attempt 1 prints nothing yet: {why}"
    assert finetune("logs", "reviews") == (75, ["[worker 0] a"], [late])


def test_logs_of_a_job_without_pods(finetune, make):
    make("new", told(ATTEMPT, Phase.STARTING, Reason.STARTING, "its pods cannot be made: exceeded quota"))
    make("old", succeeded())
    waits = "finetune: new: has no pods yet: its pods cannot be made: exceeded quota"
    lost = "the pods of attempt 1 are gone, and their logs with them"
    gone = f"finetune: old: {lost}; finetune describe old tells how it ended"
    assert finetune("logs", "new") == (75, [], [waits])
    assert finetune("logs", "old") == finetune("logs", "old", "--follow") == (66, [], [gone])


def test_logs_are_followed_over_attempts_and_broken_streams(finetune, make, kubelet, pod):
    raw = make(current=RUNNING)

    def play():
        first = pod(raw, 1, 0)
        kubelet.write(first, "one", "two")
        kubelet.breaks[first] = 2
        time.sleep(1)
        kubelet.write(first, "three")
        time.sleep(1)
        kubelet.write(first, "four", ended=True)
        pod(raw, 1, 0, ENDED)
        make.write("reviews", TWO_ATTEMPTS)
        second = pod(raw, 2, 0, {"waiting": {"reason": "ContainerCreating"}}, told={"phase": "Pending"})
        time.sleep(1)
        kubelet.write(second, "five", ended=True)
        pod(raw, 2, 0)
        time.sleep(1)
        pod(raw, 2, 0, ENDED)
        make.write("reviews", succeeded())

    player = threading.Thread(target=play)
    player.start()
    code, lines, said = finetune("logs", "reviews", "--follow")
    player.join()
    assert (code, lines) == (0, ["one", "two", "three", "four", "five"])
    assert [line for line in said if "attempt 2" in line and "node" not in line] == [
        "-- worker 0 of attempt 2 prints nothing yet: ContainerCreating",
        "-- attempt 2 has begun",
    ]
    assert any("sinceTime" in asked for asked in kubelet.asked)


def test_following_ends_when_nobody_reads(cluster, namespace, make, kubelet, pod):
    name = pod(make(current=RUNNING), 1, 0)
    kubelet.write(name, "one")
    command = [sys.executable, "-m", "finetune_cli.main", "logs", "reviews", "-f", "-n", namespace]
    with subprocess.Popen([*command, "--kubeconfig", str(cluster.kubeconfig)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()
        kubelet.write(name, "two", "three")
        assert process.wait(10) == 0


@pytest.mark.node
def test_logs_of_a_real_node(node_cluster, capsys):
    images.import_image(node_cluster, images.shell_image())
    with node_cluster.namespace() as name:
        node_cluster.apply(job(name, "reviews", distributed={"workers": 2}))
        raw = node_cluster.get("-n", name, "finetunejob", "reviews")
        script = 'for n in 1 2 3; do echo "line $n"; sleep 4; done'
        manifest = indexed_job("reviews-1", name, image=images.SHELL_IMAGE, command=("sh", "-c", script))
        template = manifest["spec"]["template"]
        template["metadata"]["labels"] = attempt_labels("reviews", raw["metadata"]["uid"], 1)
        template["spec"]["containers"][0]["name"] = "trainer"
        node_cluster.apply(manifest)
        node_cluster.kubectl("-n", name, "wait", "--for=jsonpath={.status.ready}=2", "job/reviews-1", "--timeout=60s")
        patch = json.dumps({"status": TWO_ATTEMPTS.to_wire()})  # attempt 1 is over, as nobody else says here
        node_cluster.kubectl(
            "-n", name, "patch", "finetunejob", "reviews", "--subresource=status", "--type=merge", f"--patch={patch}"
        )
        access = ["-n", name, "--kubeconfig", str(node_cluster.kubeconfig)]
        assert main(["logs", "reviews", "--follow", "--attempt", "1", "--worker", "1", *access]) == 0
        assert capsys.readouterr().out == "line 1\nline 2\nline 3\n"
        assert main(["logs", "reviews", "--attempt", "1", "--tail", "1", *access]) == 0
        assert capsys.readouterr().out == "[worker 0] line 3\n[worker 1] line 3\n"
