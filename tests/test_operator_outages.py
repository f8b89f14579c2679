"""The API server is away, slow, or wrong for a while: jobs finish, their pods never notice, nothing is left."""

import json
import math
import random
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Thread

import pytest

from api_proxy import Call, Judge, Refusal
from cluster.running import Shape
from finetune_api import Cause
from finetune_operator.names import MANAGER
from operating import message, until
from surviving import CHILDREN, CLAIMS, JOBS, SIZED, Outside, Replica, claim

LONG = {"attempt": 1, "workers": 2}
BACK_SECONDS = 60.0
"""Until everything is told after an outage."""
KUBERNETES_BACK_SECONDS = 180.0
"""Until Kubernetes' own controllers go on: after 60 s without their API server it was once 97 s."""
RETRY_SECONDS = 1
"""What Retry-After tells."""


@pytest.fixture(scope="module")
def own_cluster(start_cluster):
    cluster = start_cluster(Shape(simulated_nodes=2))
    cluster.apply_crds()
    cluster.apply(SIZED)
    return cluster


@dataclass
class Scene:
    """A namespace, and the operator that serves it."""

    outside: Outside
    replica: Replica

    def phases(self) -> dict[str, float]:
        """Jobs by phase, as the operator counts them."""
        name = f'finetune_operator_jobs{{namespace="{self.outside.namespace}",phase="'
        found = self.replica.operator.metrics().items()
        return {key.removeprefix(name).rstrip('"}'): value for key, value in found if key.startswith(name)}

    def until_phases(self, **expected: int) -> None:
        """The operator counts these, and so knows of no others."""
        seen: dict[str, float] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.phases())
            return seen == expected

        try:
            until(look, BACK_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"counted {seen} in place of {expected}; {self.replica.log()[-3000:]}") from error

    def complete(self, name: str, attempt: int = 1, workers: tuple[int, ...] = (0,)) -> None:
        self.outside.finish(name, attempt, 0, message(0, step=30), workers)

    def made_twice(self) -> list[str]:
        made = [call for call in self.replica.proxy.writes() if call.status == 201]
        names = Counter((str(call), call.answer["metadata"]["name"]) for call in made)
        return ["/".join(name) for name, count in names.items() if count > 1]


@pytest.fixture
def set_up(own_cluster, tmp_path_factory):
    """Sets a scene, with volumes for so many jobs."""
    scenes, namespaces = [], []

    def begin(volumes: int) -> Scene:
        namespace = own_cluster.namespace()
        namespaces.append(namespace)
        outside = Outside(own_cluster, namespace.__enter__())
        outside.give_volumes(volumes)
        scenes.append(Scene(outside, Replica(own_cluster, outside.namespace, tmp_path_factory.mktemp("scene"))))
        return scenes[-1]

    yield begin
    for scene in scenes:
        scene.replica.close()
    for namespace in namespaces:
        namespace.__exit__(None, None, None)


# Outages of the real thing


def server_down(cluster, seconds):
    cluster.stop("kube-apiserver")
    time.sleep(seconds)
    cluster.start("kube-apiserver")


def etcd_restarted(cluster, seconds):
    cluster.stop("etcd")
    time.sleep(seconds)
    cluster.start("etcd")


def answers(outside):
    """Whether the API server does: after etcd's return it may let a request wait for many seconds."""
    try:
        return outside.ask("GET", CHILDREN)
    except (OSError, AssertionError):
        return None


def until_kubernetes_goes_on(outside):
    """A Job that is not ours runs on a volume: Kubernetes looks for its API server once a minute or so."""
    volume = {"name": "volume", "persistentVolumeClaim": {"claimName": "bare"}}
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "main"}], "volumes": [volume]}
    outside.ask("POST", CLAIMS, claim("bare"))
    outside.ask("POST", CHILDREN, {"metadata": {"name": "bare"}, "spec": {"template": {"spec": pod}}})
    until(
        lambda: outside.ask("GET", f"{CHILDREN}/bare").get("status", {}).get("ready"),
        KUBERNETES_BACK_SECONDS,
        "a bare Job's pod",
    )


OUTAGES = [
    pytest.param(server_down, 8, id="API server down 8 s"),
    pytest.param(etcd_restarted, 3, id="etcd restarted"),
    pytest.param(server_down, 60, id="API server down 60 s", marks=pytest.mark.campaign),
    pytest.param(etcd_restarted, 60, id="etcd down 60 s", marks=pytest.mark.campaign),
]


@pytest.mark.parametrize(("happen", "seconds"), OUTAGES)
def test_after_an_outage_everything_goes_on(own_cluster, set_up, happen, seconds):
    scene = set_up(4)
    outside = scene.outside
    outside.apply("long", distributed={"workers": 2})
    outside.apply("ends")
    pods = outside.until_runs("long", **LONG)
    outside.until_runs("ends")
    scene.complete("ends")  # nobody can be told before it is over
    happen(own_cluster, seconds)
    until(lambda: answers(outside), KUBERNETES_BACK_SECONDS, "an answer of the API server")
    began = time.monotonic()
    outside.apply("new")
    until(lambda: outside.ask("GET", f"{CHILDREN}/new-1"), BACK_SECONDS, "the new job's attempt")
    print(f"{time.monotonic() - began:.1f} s until a new job's attempt was made")
    until_kubernetes_goes_on(outside)
    print(f"{time.monotonic() - began:.1f} s until a job ran that is not ours")
    outside.until_phase("ends", "Succeeded", BACK_SECONDS)
    assert outside.until_runs("long", **LONG) == pods
    scene.complete("long", workers=(0, 1))
    outside.until_runs("new")
    scene.complete("new")
    for name in ("long", "new"):
        outside.until_phase(name, "Succeeded", BACK_SECONDS)
    scene.until_phases(Succeeded=3)
    assert (scene.made_twice(), scene.replica.ends) == ([], [])


# An API server that is wrong


def conflicts(dice):
    """409 on 20 % of the writes."""
    return lambda call: Refusal(409, "Conflict") if call.number and dice.random() < 0.2 else None


def busy(dice):
    """429 on 20 % of all requests, each to come again no sooner than after RETRY_SECONDS."""
    refusal = Refusal(429, "TooManyRequests", {"Retry-After": str(RETRY_SECONDS)})
    return lambda call: refusal if dice.random() < 0.2 else None


def failing(dice):
    """500 on 10 % of all requests."""
    return lambda call: Refusal(500, "InternalError") if dice.random() < 0.1 else None


def expiring(dice):
    """The operator's own lists expire half-way, the first one and others now and then, and one of kopf's does."""
    spared = {"operator", "kopf"}

    def judge(call):
        if "continue" not in call.query or call.is_watch:
            return None
        expired = client(call) in spared or (client(call) == "operator" and dice.random() < 0.3)
        spared.discard(client(call))
        return Refusal(410, "Expired") if expired else None

    return judge


def fine(dice):
    return lambda _call: None


def client(call):
    """Whose request it is: ``operator`` or ``kopf``."""
    return "operator" if call.agent == MANAGER else "kopf"


BUSY = "429 on 20 % of the requests"
WEATHERS = {
    "409 on 20 % of the writes": (conflicts, None, None, {"409"}),
    BUSY: (busy, None, None, {"429"}),
    "500 on 10 % of the requests": (failing, None, None, {"500"}),
    "lists expire half-way": (expiring, "expire_watches", 2.0, {"410 to operator", "410 to kopf"}),
    "watches are cut": (fine, "cut_watches", 0.7, {"watched again"}),
    "watches expire": (fine, "expire_watches", 1.5, {"listed again", "watched again"}),
}
"""What is wrong → (which requests are refused, how the watches are hurt, how often in seconds, what proves both)."""


ENDS = {"lists expire half-way": [1]}
"""kopf cannot go on from an expired list: the operator ends, and is started again."""


@dataclass(frozen=True)
class Lived:
    """What became of the three jobs, and of the operator's requests meanwhile."""

    made_twice: list[str]
    ends: list[int]
    phases: dict[str, float]
    refused: list[Call]
    calls: list[Call]
    log: str

    def befallen(self) -> set[str]:
        """What befell the operator: who was refused and how, and what every watch did again in the same process."""
        watched = Counter(call.path for call in self.calls if call.is_watch)
        listed = Counter(call.path for call in self.calls if call.path in watched and begins_list(call))
        counts = {"watched again": watched, "listed again": listed}
        again = {what for what, paths in counts.items() if min(paths.values()) > 1 + len(self.ends)}
        refused = {f"{call.status}{whom}" for call in self.refused for whom in ("", f" to {client(call)}")}
        return refused | again

    def hurried(self) -> list[str]:
        """Requests that were refused and came again, for the same object, sooner than they were told to."""
        found = []
        for refused in self.refused:
            times = (call.at for call in self.calls if call.at > refused.at and whose(call) == whose(refused))
            seconds = next(times, math.inf) - refused.at
            if seconds < RETRY_SECONDS:
                found.append(f"{refused} {whose(refused)[1]} after {seconds:.2f} s")
        return found


def begins_list(call: Call) -> bool:
    """Whether it is what kopf reads before it watches."""
    return client(call) == "kopf" and not call.is_watch and "continue" not in call.query


def whose(call: Call) -> tuple[str, str]:
    """The client, and the path of the object or list that it asks for."""
    name = f"/{json.loads(call.body)['metadata']['name']}" if call.verb == "POST" else ""
    return client(call), call.path + name


def live_in(scene: Scene, weather: str) -> list[Call]:
    """Three jobs: one fails once, one is suspended once, one just runs. Returns what was refused."""
    judge, hurt, every, _ = WEATHERS[weather]
    proxy, outside, over, refused = scene.replica.proxy, scene.outside, Event(), []
    proxy.page = 1
    proxy.judge = noting(judge(random.Random(4)), refused)

    def go_on_hurting() -> None:
        while hurt and not over.wait(every):
            getattr(proxy, hurt)()

    hurting = Thread(target=go_on_hurting)
    hurting.start()
    try:
        _live(scene)
    finally:
        over.set()
        hurting.join()
        proxy.judge = fine(None)
    assert {outside.status(name)["phase"] for name in ("fails", "rests", "runs")} == {"Succeeded"}
    return refused


def noting(judge: Judge, refused: list[Call]) -> Judge:
    """The same judge; what it refuses is noted."""

    def judged(call: Call) -> Refusal | None:
        refusal = judge(call)
        if refusal is not None:
            refused.append(call)
        return refusal

    return judged


def _live(scene: Scene) -> None:
    outside = scene.outside
    outside.apply("fails", "rests", "runs")
    pods = outside.until_runs("runs")
    outside.until_runs("fails")
    outside.finish("fails", 1, 70, message(70, Cause.APPLICATION, "KeyError: 'x'"))
    outside.until_runs("rests")
    outside.suspend("rests", wanted=True)
    outside.until_phase("rests", "Suspended")
    until(lambda: outside.status("rests")["attempts"][0].get("end"), BACK_SECONDS, "the end of the suspended attempt")
    outside.suspend("rests", wanted=False)
    for name in ("fails", "rests"):
        outside.until_runs(name, 2)
        scene.complete(name, 2)
    assert outside.until_runs("runs") == pods
    scene.complete("runs")
    for name in ("fails", "rests", "runs"):
        outside.until_phase(name, "Succeeded")


@pytest.fixture(scope="module")
def lives(own_cluster, tmp_path_factory):
    """What becomes of the three jobs in each weather; a few at a time, for they mostly wait."""

    def live(weather: str) -> Lived:
        with own_cluster.namespace() as namespace:
            outside = Outside(own_cluster, namespace)
            outside.give_volumes(3)
            scene = Scene(outside, Replica(own_cluster, namespace, tmp_path_factory.mktemp("weather")))
            try:
                refused = live_in(scene, weather)
                scene.until_phases(Succeeded=3)
                calls = list(scene.replica.proxy.calls)
                log = scene.replica.log()
                return Lived(scene.made_twice(), scene.replica.ends, scene.phases(), refused, calls, log)
            except AssertionError as error:
                raise AssertionError(f"{weather}: {error}\n{scene.replica.log()[-3000:]}") from error
            finally:
                scene.replica.close()

    with ThreadPoolExecutor(3) as pool:
        yield {weather: pool.submit(live, weather) for weather in WEATHERS}


@pytest.mark.parametrize("weather", WEATHERS)
def test_in_bad_weather_every_job_finishes(lives, weather):
    future: Future[Lived] = lives[weather]
    lived = future.result()
    assert (lived.made_twice, lived.phases) == ([], {"Succeeded": 3})
    assert lived.ends == ENDS.get(weather, []), lived.log[-20000:]
    *_, proof = WEATHERS[weather]
    assert proof <= lived.befallen(), "else the weather was fine"


def test_who_is_told_to_come_later_does(lives):
    future: Future[Lived] = lives[BUSY]
    assert future.result().hurried() == []


# What happens while nobody looks


@pytest.mark.parametrize("expired", [False, True], ids=["watches go on", "watches expire"])
def test_deleted_while_disconnected(set_up, expired):
    scene = set_up(3)
    outside, proxy = scene.outside, scene.replica.proxy
    outside.apply("gone", "loses-its-child", "stays")
    for name in ("gone", "loses-its-child", "stays"):
        pods = outside.until_runs(name)
    scene.until_phases(Starting=3)
    proxy.disconnect()
    outside.ask("DELETE", f"{JOBS}/gone")
    outside.ask("DELETE", f"{CHILDREN}/loses-its-child-1", {"propagationPolicy": "Background"})
    until(lambda: not outside.pods("gone", 1) and not outside.pods("loses-its-child", 1), 60, "the pods to go")
    if expired:
        proxy.expire_next_watches()
    proxy.connect()
    scene.until_phases(Starting=1, Restarting=1)
    attempt = outside.status("loses-its-child")["attempts"][-1]["number"]
    outside.until_runs("loses-its-child", attempt)
    assert outside.until_runs("stays") == pods
    scene.complete("stays")
    scene.complete("loses-its-child", attempt)
    scene.until_phases(Succeeded=2)
    assert scene.replica.ends == []
