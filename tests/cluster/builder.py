"""The project's images, built by buildah from the project's Dockerfile on a base that debootstrap makes.

Nothing is pulled: the base is the Dockerfile's ``BASE_IMAGE`` argument. Images are kept in a storage of our own in the
cache, named by the content that they are built from.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.cache import CHECKOUT, cache_folder, locked, run_logged
from cluster.debian import have
from cluster.errors import BuildError

SUITE = "bookworm"
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
BASE_IMAGE = f"cluster.test/base:{SUITE}"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Whom this machine trusts; package registries may be behind one of its own."""
TOOLS = ("buildah", "debootstrap")
MACHINE_FILES = ("/etc/hosts", "/etc/resolv.conf")
"""A step of a build looks up names as the machine does."""


def home() -> Path:
    """Where images are kept."""
    return cache_folder() / "images"


def project_image(target: str, checkout: Path = CHECKOUT) -> str:
    """The name of the image that the Dockerfile's ``target`` gives; built unless one of the same content is there."""
    name = f"cluster.test/finetune-{target}:{content_digest(checkout)}"
    with locked(home() / ".images.lock"):
        have(TOOLS)
        if not _is_there(name):
            if not _is_there(BASE_IMAGE):
                _build_base()
            _build(name, target, checkout)
            _remove_older(name)
    return name


def export_command(name: str) -> list[str]:
    """The command that writes image ``name`` as an archive to its standard output."""
    return _buildah("push", "--quiet", name, f"docker-archive:/dev/stdout:{name}")


def size_bytes(name: str) -> float:
    """Bytes of all layers of the image ``name``, to three digits."""
    command = _buildah("images", "--format", "{{.Size}}", name)
    number, unit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()]


def content_digest(checkout: Path) -> str:
    """A digest of all that the Dockerfile sees, which is what .dockerignore lets through, and of how we build."""
    digest = hashlib.sha256(f"{SUITE} {BASE_PACKAGES}".encode())
    for path in sources(checkout):
        digest.update(f"{path.relative_to(checkout)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def sources(checkout: Path) -> Iterator[Path]:
    """The files that the Dockerfile sees, and what decides on them."""
    rules = (checkout / ".dockerignore").read_text().splitlines()
    for name in sorted({"Dockerfile", ".dockerignore", *(rule[1:] for rule in rules if rule.startswith("!"))}):
        found = checkout / name
        files = sorted(found.rglob("*")) if found.is_dir() else [found]
        yield from (path for path in files if path.is_file() and "__pycache__" not in path.parts)


def _buildah(*arguments: str | Path) -> list[str]:
    storage = ["--root", home() / "storage", "--runroot", home() / "run", "--storage-driver", "overlay"]
    return [str(part) for part in ("buildah", *storage, *arguments)]


def _is_there(name: str) -> bool:
    return subprocess.run(_buildah("inspect", "--type=image", name), capture_output=True, check=False).returncode == 0


def _build_base() -> None:
    print("making a base image (once, about 4 min)", flush=True)
    log, root = home() / "base.log", home() / ".base"
    shutil.rmtree(root, ignore_errors=True)
    options = ["--variant=minbase", f"--include={BASE_PACKAGES}"]
    run_logged(["debootstrap", *options, SUITE, root], log, what="debootstrap")
    shutil.rmtree(root / "var/cache/apt")
    shutil.rmtree(root / "var/lib/apt/lists")
    shutil.copyfile(AUTHORITIES, root / str(AUTHORITIES)[1:])
    recipe = root.with_name(".base.Dockerfile")
    trusted = " ".join(f"{name}={AUTHORITIES}" for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"))
    recipe.write_text(f"FROM scratch\nCOPY . /\nENV {trusted}\n")
    run_logged(
        _buildah("build", "--isolation=chroot", "--tag", BASE_IMAGE, "--file", recipe, root), log, what="the base"
    )
    shutil.rmtree(root)


def _build(name: str, target: str, checkout: Path) -> None:
    print(f"building the image {name} (the trainer's takes about 3 min)", flush=True)
    options = ["--isolation=chroot", "--layers", "--network=host", f"--build-arg=BASE_IMAGE={BASE_IMAGE}"]
    options += [f"--volume={file}:{file}:ro" for file in MACHINE_FILES]
    command = _buildah("build", *options, "--target", target, "--tag", name, checkout)
    run_logged(command, home() / f"{target}.log", what=f"building the image {target}", env={"HOME": os.environ["HOME"]})


def _remove_older(name: str) -> None:
    """A trainer's image is 6 GB: of each target only the newest is kept."""
    names = subprocess.run(
        _buildah("images", "--format", "{{.Name}}:{{.Tag}}"), capture_output=True, text=True, check=True
    )
    older = [old for old in names.stdout.split() if old.split(":")[0] == name.split(":", maxsplit=1)[0] and old != name]
    for old in older:
        subprocess.run(_buildah("rmi", old), capture_output=True, check=False)


def pipe(producer: list[str], consumer: list[str], log: Path, *, what: str) -> None:
    """Run ``producer | consumer``; raises ``BuildError`` if either fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output, subprocess.Popen(producer, stdout=subprocess.PIPE, stderr=output) as source:
        done = subprocess.run(consumer, stdin=source.stdout, stdout=output, stderr=output, check=False)
    if source.returncode or done.returncode:
        raise BuildError(f"{what} failed ({source.returncode}, {done.returncode}): see {log}")
