"""What the cluster is built from: whole or not at all, and clear words when it fails."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster import builder, programs
from cluster.archive import write_image
from cluster.cache import CHECKOUT, build_once, run_logged
from cluster.control_plane import ControlPlane, Ports
from cluster.errors import BuildError, ClusterError
from cluster.keeper import Keeper
from cluster.ports import free_ports
from cluster.running import Shape, bring_up, users_own

KUBERNETES = programs.Module("k8s.io/kubernetes", "k8s.io/kubernetes/cmd/kubectl", "1.34.4", 2)


def test_staging_folders_become_published_modules():
    theirs = "module k8s.io/kubernetes\n\ngo 1.24.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n"
    assert programs.wrapper_module(KUBERNETES, theirs) == (
        "module cluster\n\ngo 1.24.0\n\nrequire k8s.io/kubernetes v1.34.4\nreplace k8s.io/api => k8s.io/api v0.34.4\n"
    )


def test_a_patched_module_is_taken_from_its_copy(tmp_path):
    kwok = programs.MODULES["kwok"]
    assert "replace sigs.k8s.io/kwok => ./patched\n" in programs.wrapper_module(kwok, "module sigs.k8s.io/kwok\n")
    (tmp_path / "file").write_text("as it was")
    programs.apply_patch(programs.Patch("file", "was", "should be"), tmp_path)
    assert (tmp_path / "file").read_text() == "as it should be"
    with pytest.raises(BuildError, match="is not there once: was"):
        programs.apply_patch(programs.Patch("file", "was", "should be"), tmp_path)


def test_a_build_appears_whole_or_not_at_all(tmp_path):
    def fail(partial):
        partial.write_text("half")
        raise BuildError("no")

    with pytest.raises(BuildError):
        build_once(tmp_path / "program", fail)
    assert not (tmp_path / "program").exists()
    assert build_once(tmp_path / "program", lambda partial: partial.write_text("whole")).read_text() == "whole"


def test_two_do_not_build_the_same(tmp_path):
    built = []

    def build(partial):
        built.append(partial)
        partial.write_text("whole")

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: build_once(tmp_path / "program", build), range(8)))
    assert len(built) == 1


def test_a_failed_step_shows_the_end_of_its_log(tmp_path):
    script = "print(*range(1000), sep='\\n'); raise SystemExit('no space left')"
    with pytest.raises(BuildError, match=r"(?s)compiling failed: .*exit status 1.*the end of .*999\nno space left"):
        run_logged([sys.executable, "-c", script], tmp_path / "log", what="compiling")


def test_without_go_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    with pytest.raises(BuildError, match="no `go` on the PATH: install it, or set KUBEBUILDER_ASSETS"):
        programs.program("kube-apiserver")


def test_given_programs_are_preferred(tmp_path, monkeypatch):
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert programs.program("etcd") == tmp_path / "etcd"


def test_a_users_own_cluster_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("FINETUNE_TEST_KUBECONFIG", raising=False)
    assert users_own() is None
    monkeypatch.setenv("FINETUNE_TEST_KUBECONFIG", str(tmp_path / "config"))
    theirs = users_own()
    assert theirs.kubeconfig == tmp_path / "config"
    with pytest.raises(ClusterError, match="not ours to touch"):
        theirs.stop("etcd")


def test_a_cluster_that_does_not_come_up_says_why_and_leaves_only_logs(tmp_path):
    folder = tmp_path / "it"
    with pytest.raises(
        ClusterError, match=r"(?s)kube-apiserver ended; the end of .*kube-apiserver.log.*unknown flag: --no"
    ):
        bring_up(folder, Shape(flags={"kube-apiserver": ["--no-such-flag"]}), owned=True)
    assert not Keeper(folder).is_there()
    assert {path.name for path in (folder / "logs").iterdir()} == {"etcd.log", "kube-apiserver.log"}


def test_flags_come_last_and_only_to_their_process(tmp_path):
    plane = ControlPlane(tmp_path, "127.0.0.1", Ports(*free_ports(5)))
    commands = plane.arguments()
    assert list(commands) == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
    assert "--endpoint-reconciler-type=none" in commands["kube-apiserver"]
    with_node = replace(plane, folder=tmp_path / "node", address="10.250.7.2").arguments()
    assert "--endpoint-reconciler-type=none" not in with_node["kube-apiserver"]


def test_an_image_is_named_by_all_that_it_is_built_from(tmp_path):
    (tmp_path / ".dockerignore").write_text("*\n!code\n**/__pycache__\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("1\n")
    digests = [builder.content_digest(tmp_path)]
    (tmp_path / "code" / "__pycache__" / "a.pyc").touch()
    (tmp_path / "notes.md").touch()
    digests.append(builder.content_digest(tmp_path))
    (tmp_path / "code" / "a.py").write_text("2\n")
    digests.append(builder.content_digest(tmp_path))
    assert (digests[0] == digests[1], digests[1] == digests[2]) == (True, False)


def test_the_project_has_what_images_are_built_from():
    names = {path.relative_to(CHECKOUT).parts[0] for path in builder.sources(CHECKOUT)}
    assert names >= {"Dockerfile", "pyproject.toml", "requirements.lock", "crds", "operator", "trainer", "cli"}


def test_an_image_of_a_file_is_the_same_each_time(tmp_path):
    (tmp_path / "program").write_bytes(b"\x7fELF")
    for name in ("one", "two"):
        write_image(tmp_path / name, "cluster.test/a:1", {"a": tmp_path / "program"}, ["/a"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
