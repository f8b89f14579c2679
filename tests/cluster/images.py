"""Images for a real node: built here, imported there; nothing is pulled."""

import subprocess
import zlib
from pathlib import Path

from cluster import builder
from cluster.archive import write_image
from cluster.cache import build_once, cache_folder, run_logged
from cluster.client import Cluster
from cluster.debian import unpacked
from cluster.node_settings import PAUSE_IMAGE

SHELL_TOOLS = ("sh", "sleep", "nslookup", "nc", "httpd", "cat", "grep", "kill", "ls", "id", "dd", "tail")
"""Of a busybox. Its wget dies of looking up a name: a static libc cannot."""
SHELL_IMAGE = f"cluster.test/shell:{zlib.crc32(' '.join(SHELL_TOOLS).encode()):08x}"
"""For what is not about an image of ours."""


def folder() -> Path:
    """Where images and what they are made from are kept."""
    return cache_folder() / "images"


def pause_image() -> Path:
    """The archive of the image that holds a pod's namespaces: a static C program, nothing else."""
    source = Path(__file__).with_name("pause.c")

    def build(target: Path) -> None:
        program = target.with_suffix(".program")
        compiler: list[str | Path] = ["gcc", "-static", "-Os", "-o", program, source]
        run_logged(compiler, folder() / "pause.log", what="compiling the pause program (gcc, libc6-dev)")
        write_image(target, PAUSE_IMAGE, {"pause": program}, ["/pause"])
        program.unlink()

    return build_once(folder() / "pause.tar", build)


def shell_image() -> Path:
    """The archive of ``SHELL_IMAGE``."""
    busybox = unpacked("busybox-static", cache_folder() / "debian") / "bin/busybox"
    files = {f"bin/{name}": busybox for name in SHELL_TOOLS}
    return build_once(
        folder() / f"shell-{SHELL_IMAGE[-8:]}.tar", lambda target: write_image(target, SHELL_IMAGE, files, ["/bin/sh"])
    )


def import_image(cluster: Cluster, archive: Path) -> None:
    """Import an archive into the node's containerd, where kubelet finds it."""
    run_logged(_import_command(cluster, str(archive)), cluster.log("images"), what=f"importing {archive.name}")


def import_project_image(cluster: Cluster, target: str) -> str:
    """Build one target of the project's Dockerfile, import it and return its name; minutes for ``trainer``."""
    name = builder.project_image(target)
    if name not in _output(_client(cluster, "list", "--quiet")):
        builder.pipe(
            builder.export_command(name), _import_command(cluster, "-"), cluster.log("images"), what=f"importing {name}"
        )
    return name


def tag(cluster: Cluster, name: str, other: str) -> None:
    """Give an image of the node's one more name."""
    run_logged(_client(cluster, "tag", "--force", name, other), cluster.log("images"), what=f"tagging {name}")


def _import_command(cluster: Cluster, archive: str) -> list[str]:
    return _client(cluster, "import", archive)


def _client(cluster: Cluster, *arguments: str) -> list[str]:
    client = unpacked("containerd", cache_folder() / "debian") / "usr/bin/ctr"
    socket = cluster.folder / "node" / "containerd.sock"
    return [str(client), f"--address={socket}", "--connect-timeout=30s", "--namespace=k8s.io", "images", *arguments]


def _output(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
