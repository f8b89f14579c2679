"""Debian's packages without installing them: unpacked into a cache, so that no service of theirs ever starts."""

import subprocess
from pathlib import Path

from cluster.cache import build_once, run_logged


def unpacked(package: str, cache: Path) -> Path:
    """The folder that holds ``package``'s files; downloaded and unpacked at first use."""
    return build_once(cache / package, lambda folder: _unpack(package, folder))


def _unpack(package: str, folder: Path) -> None:
    downloads = folder / ".download"
    downloads.mkdir(parents=True)
    log = folder.with_name(f"{package}.log")
    if not _is_known(package):
        run_logged(["apt-get", "update"], log, what="apt-get update")
    run_logged(["apt-get", "download", package], log, what=f"downloading Debian's {package}", cwd=downloads)
    (archive,) = downloads.glob("*.deb")
    run_logged(["dpkg-deb", "--extract", archive, folder], log, what=f"unpacking {package}")
    archive.unlink()
    downloads.rmdir()


def _is_known(package: str) -> bool:
    policy = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False)
    return "Candidate:" in policy.stdout and "Candidate: (none)" not in policy.stdout
