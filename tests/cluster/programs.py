"""The programs of a cluster, built from their published Go modules; nothing else than Go's module proxy is needed."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.cache import build_once, cache_folder, run_logged
from cluster.errors import BuildError

KUBERNETES = "1.34.4"
KWOK = "0.7.0"
HELM = "3.22.0"
COREDNS = "1.14.6"
PATCHED = "patched"
"""Folder of a module's source that was put right."""


@dataclass(frozen=True)
class Patch:
    """What is put right in a published module's source."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Module:
    """Where a program's source is."""

    path: str
    package: str
    """What is built, its full import path."""
    version: str
    minutes: int
    """About how long a first build takes on two cores."""
    patch: Patch | None = None

    @property
    def home(self) -> Path:
        """Where it is kept, and what is built of it."""
        return cache_folder() / f"{self.path.split('/')[1]}-{self.version}{'-patched' if self.patch else ''}"


# kwok begins each watch with all that there are, also one that only goes on after its time is over, every 5 to 10
# minutes. While it takes in 8,000 pods again it does not keep up, so its watch is ended, and it begins anew, for ever.
KWOK_GOES_ON = Patch(
    "pkg/utils/informer/event.go",
    "if !o.EnableListPager || o.EnableStreamWatch {",
    'if opts.ResourceVersion == "" && (!o.EnableListPager || o.EnableStreamWatch) {',
)


def _kubernetes(name: str, minutes: int) -> Module:
    return Module("k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}", KUBERNETES, minutes)


MODULES = {
    # The version that Kubernetes itself is built against, so most of it is compiled for both.
    "etcd": Module("k8s.io/kubernetes", "go.etcd.io/etcd/server/v3", KUBERNETES, 2),
    "kube-apiserver": _kubernetes("kube-apiserver", 8),
    "kube-controller-manager": _kubernetes("kube-controller-manager", 1),
    "kube-scheduler": _kubernetes("kube-scheduler", 1),
    "kubectl": _kubernetes("kubectl", 2),
    "kubelet": _kubernetes("kubelet", 2),
    "kube-proxy": _kubernetes("kube-proxy", 1),
    "kwok": Module("sigs.k8s.io/kwok", "sigs.k8s.io/kwok/cmd/kwok", KWOK, 5, KWOK_GOES_ON),
    "helm": Module("helm.sh/helm/v3", "helm.sh/helm/v3/cmd/helm", HELM, 4),
    "coredns": Module("github.com/coredns/coredns", "github.com/coredns/coredns", COREDNS, 5),
}
ALTERNATIVES = "install it, or set KUBEBUILDER_ASSETS (a folder of programs) or FINETUNE_TEST_KUBECONFIG (a cluster)"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


def program(name: str) -> Path:
    """The program ``name``, built or downloaded at first use.

    KUBEBUILDER_ASSETS, where it is set and holds the program, is preferred. Raises ``BuildError``.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (given := Path(assets) / name).exists():
        return given
    module = MODULES[name]
    return build_once(module.home / "bin" / name, lambda target: _build(name, module, target))


def build_all(names: tuple[str, ...]) -> None:
    """Have all these programs ready."""
    for name in names:
        program(name)


def _build(name: str, module: Module, target: Path) -> None:
    if not shutil.which("go"):
        raise BuildError(f"{name} is built with Go, and there is no `go` on the PATH: {ALTERNATIVES}")
    _say(f"building {name} of {module.path} {module.version} (once, about {module.minutes} min on 2 cores)")
    began = time.monotonic()
    log = module.home / f"{name}.log"
    log.unlink(missing_ok=True)
    source = _module_folder(module, log)
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion=v{module.version}"
    command: list[str | Path] = [
        "nice",
        "-n",
        "5",
        "go",
        "build",
        "-p",
        "2",
        "-trimpath",
        "-ldflags",
        flags,
        "-o",
        target,
    ]
    run_logged([*command, module.package], log, what=f"building {name}", cwd=source, env=_go_settings())
    _say(f"built {name} in {time.monotonic() - began:.0f} s")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _go_settings() -> dict[str, str]:
    return {"GOFLAGS": "-mod=mod -buildvcs=false", "GOWORK": "off", "GO111MODULE": "on"}


def _module_folder(module: Module, log: Path) -> Path:
    """A module of our own that requires theirs: what ``go install`` refuses, for replace lines, is built so."""
    return build_once(module.home / "module", lambda folder: _write_module(folder, module, log))


def _write_module(folder: Path, module: Module, log: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module cluster\n")
    at = f"{module.path}@v{module.version}"
    run_logged(["go", "mod", "download", at], log, what=f"downloading {at}", cwd=folder, env=_go_settings())
    found = _output(["go", "list", "-m", "-f", "{{.Dir}}", at], folder)
    theirs = Path(found)
    (folder / "go.mod").write_text(wrapper_module(module, (theirs / "go.mod").read_text()))
    (folder / "go.sum").write_bytes((theirs / "go.sum").read_bytes())
    if module.patch:
        shutil.copytree(theirs, folder / PATCHED, copy_function=shutil.copyfile)
        apply_patch(module.patch, folder / PATCHED)


def apply_patch(patch: Patch, source: Path) -> None:
    """Change the module in this folder; raises ``BuildError`` if it is not what was to be changed."""
    file = source / patch.file
    text = file.read_text()
    if text.count(patch.old) != 1:
        raise BuildError(f"{file}: what is to be put right is not there once: {patch.old}")
    file.write_text(text.replace(patch.old, patch.new))


def wrapper_module(module: Module, theirs: str) -> str:
    """Our go.mod: it requires ``module`` as published, its staging folders as the modules they are published as."""
    language = re.search(r"^go (\S+)", theirs, re.MULTILINE)
    lines = ["module cluster", "", f"go {language[1] if language else '1.24'}", ""]
    lines.append(f"require {module.path} v{module.version}")
    if module.patch:
        lines.append(f"replace {module.path} => ./{PATCHED}")
    staged = "v0." + module.version.partition(".")[2]
    lines += [f"replace {name} => {name} {staged}" for name in re.findall(r"(\S+) => \./staging/", theirs)]
    return "\n".join(lines) + "\n"


def _output(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | _go_settings(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as failure:
        raise BuildError(f"{failure}\n{getattr(failure, 'stderr', '')}") from failure
    return done.stdout.strip()
