"""Debian's packages: what has a service is unpacked into a cache, so that it never starts; tools are installed."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.cache import build_once, cache_folder, locked, run_logged


def unpacked(package: str, cache: Path) -> Path:
    """The folder that holds ``package``'s files; downloaded and unpacked at first use."""
    return build_once(cache / package, lambda folder: _unpack(package, folder))


def have(programs: Sequence[str], packages: Sequence[str] = ()) -> None:
    """Install ``packages`` (those of the programs' names, unless said) where this machine lacks one of ``programs``."""
    log = cache_folder() / "logs" / "tools.log"
    with locked(cache_folder() / ".tools.lock"):
        if not all(map(shutil.which, programs)):
            wanted = packages or programs
            run_logged(["apt-get", "update"], log, what="apt-get update")
            command = ["apt-get", "install", "--yes", "--no-install-recommends", *wanted]
            run_logged(command, log, what=f"installing {', '.join(wanted)}")


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
