"""A real MLflow server on this machine, in an environment of its own: it brings 620 MB and wants an older pyarrow."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.cache import build_once, cache_folder, run_logged
from group import free_port

VERSION = "3.17.2"
_START_SECONDS = 180


def mlflow() -> Path:
    """The `mlflow` command, installed once for all checkouts."""
    log = cache_folder() / "logs" / "mlflow.log"

    def build(folder: Path) -> None:
        run_logged([sys.executable, "-m", "venv", folder], log, what="a virtual environment")
        run_logged([folder / "bin/pip", "install", "-q", f"mlflow=={VERSION}"], log, what="MLflow")

    return build_once(cache_folder() / f"mlflow-{VERSION}", build) / "bin"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server that keeps its runs in ``folder``."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [mlflow() / "python", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", folder / "artifacts"]
    with (folder / "server.log").open("wb") as output:
        server = subprocess.Popen(
            [*command, *stores, "--workers", "1"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(address, server)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its workers do not end by being asked
            server.wait()


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError("MLflow did not start; see server.log")
