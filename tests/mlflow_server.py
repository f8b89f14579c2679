"""MLflow servers: one that writes down what it is told, and a real one.

The real one has an environment of its own: it brings 620 MB and wants an older pyarrow.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from cluster.cache import build_once, cache_folder, run_logged
from cluster.ports import free_port

VERSION = "3.17.2"
_START_SECONDS = 180


@dataclass
class Recorded:
    """A server that answers as MLflow does, and writes down what it was asked."""

    calls: list[tuple[str, dict, str | None]] = field(default_factory=list)
    experiments: dict[str, str] = field(default_factory=dict)
    refuse: int = 0
    address: str = ""

    def answer(self, path: str, body: dict, authorization: str | None) -> tuple[int, dict]:
        self.calls.append((path, body, authorization))
        if self.refuse:
            return self.refuse, {}
        match path:
            case "experiments/get-by-name" if not self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
            case "experiments/get-by-name":
                return 200, {"experiment": {"experiment_id": "7"}}
            case "experiments/create":
                self.experiments[body["name"]] = "7"
                return 200, {"experiment_id": "7"}
            case "runs/create":
                return 200, {"run": {"info": {"run_id": "abc"}}}
        return 200, {}

    def metrics(self) -> list[tuple[str, int, float]]:
        bodies = [body for path, body, _ in self.calls if path == "runs/log-batch"]
        return [(one["key"], one["step"], one["value"]) for body in bodies for one in body.get("metrics", ())]


@contextmanager
def recording() -> Iterator[Recorded]:
    """A server that records, on a port of its own."""
    recorded = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._answer({})

        def _answer(self, body: dict) -> None:
            path = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
            code, answer = recorded.answer(path, body, self.headers["Authorization"])
            text = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorded.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield recorded
    finally:
        http.shutdown()
        http.server_close()


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
