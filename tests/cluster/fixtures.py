"""What tests use of a cluster: fixtures, loaded by tests/conftest.py. A test whose cluster cannot be had fails."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import BuildError
from cluster.programs import MODULES, build_all
from cluster.running import Cluster, Shape, bring_up, take_down, users_own

NODE_IS_LOST_SOON = {
    "kube-controller-manager": ["--node-monitor-grace-period=20s", "--node-monitor-period=2s"],
    "kube-apiserver": ["--default-unreachable-toleration-seconds=5", "--default-not-ready-toleration-seconds=5"],
}
"""Flags: a node that does not answer has its pods deleted after half a minute, not after six."""
BUILT_FOR = {
    "cluster": Shape(),
    "simulated_cluster": Shape(simulated_nodes=4),
    "node_cluster": Shape(real_node=True, flags=NODE_IS_LOST_SOON),
}
"""The clusters by the fixture that gives them."""


BUILD_FAILURES = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build what the chosen tests need before the first one runs: no test's time limit would bear it."""
    if session.config.option.collectonly:
        return
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())} & BUILT_FOR.keys()
    shapes = [BUILT_FOR[name] for name in used]
    programs = {"kubectl"} if used and users_own() else {name for shape in shapes for name in shape.programs()}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            build_all(tuple(name for name in MODULES if name in programs))
    except BuildError as failure:
        # Each test that needs it fails with these words, the others run.
        session.config.stash[BUILD_FAILURES] = str(failure)


@pytest.fixture(scope="session")
def start_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[[Shape], Cluster]]:
    """Starts a cluster of its own for a test or a module; it ends with the session at the latest."""
    started: list[Cluster] = []

    def start(shape: Shape) -> Cluster:
        if BUILD_FAILURES in request.config.stash:
            pytest.fail(f"no cluster: {request.config.stash[BUILD_FAILURES]}", pytrace=False)
        folder = Path(tempfile.mkdtemp(prefix="cluster-")) / "it"
        try:
            started.append(bring_up(folder, shape, owned=True))
        except Exception as failure:  # noqa: BLE001 - whatever it is, the test fails by its words
            pytest.fail(f"no cluster: {failure}\nlogs: {folder}", pytrace=False)
        return started[-1]

    yield start
    for cluster in started:
        take_down(cluster.folder)
        cluster.folder.parent.rmdir()


@pytest.fixture(scope="session")
def cluster(start_cluster: Callable[[Shape], Cluster]) -> Cluster:
    """A control plane with the project's CRDs, one for all tests of the session; nothing runs pods."""
    return _with_crds(users_own() or start_cluster(BUILT_FOR["cluster"]))


@pytest.fixture(scope="session")
def simulated_cluster(start_cluster: Callable[[Shape], Cluster]) -> Cluster:
    """A control plane with the project's CRDs and a few simulated nodes, which pretend to run pods."""
    return _with_crds(start_cluster(BUILT_FOR["simulated_cluster"]))


@pytest.fixture(scope="session")
def node_cluster(start_cluster: Callable[[Shape], Cluster]) -> Cluster:
    """A control plane with the project's CRDs and one real node, which runs pods."""
    return _with_crds(users_own() or start_cluster(BUILT_FOR["node_cluster"]))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of ``cluster`` for one test."""
    with cluster.namespace() as name:
        yield name


def _with_crds(cluster: Cluster) -> Cluster:
    cluster.apply_crds()
    return cluster
