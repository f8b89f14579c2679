"""MLflow, over its REST API (https://mlflow.org/docs/latest/rest-api.html): nothing of MLflow need be installed.

Invariant: training never waits for the server. Values are sent by a thread, in the order in which they came; what a
server that is away does not take is kept and sent again, the oldest given up when there are too many.
"""

import base64
import json
import logging
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from finetune_trainer.errors import Denied, PlatformError

log = logging.getLogger(__name__)

FIELD = "spec.tracking.mlflow"
TIMEOUT_SECONDS = 20.0
SEND_EVERY_SECONDS = 2.0
_LAST_SECONDS = 3.0
"""For what is left when a run ends; a server that is away does not keep it from ending."""
_BATCH = 500
"""The API takes 1,000 metrics at once."""
_KEPT = 100_000
_PARAMETERS = 100
_VALUE_CHARACTERS = 500
_REFUSED = frozenset({401, 403})
_NOT_FOUND = 404


class RefusedError(OSError):
    """The server answers, but not with what it was asked for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Server:
    """An MLflow tracking server."""

    uri: str
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """Holds MLFLOW_TRACKING_TOKEN, or …_USERNAME and …_PASSWORD, if the server wants any."""

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a call; raises OSError (RefusedError among them) or ValueError."""
        return self._ask(path, json.dumps(body).encode())

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """The answer to a question; raises OSError (RefusedError among them) or ValueError."""
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}", None)

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        url = f"{self.uri.rstrip('/')}/api/2.0/mlflow/{path}"
        headers = {"Content-Type": "application/json"} | self._credentials()
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - http or https by the API's pattern
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - as above
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.code, f"{error.code} {error.reason}") from None
        return found

    def _credentials(self) -> dict[str, str]:
        token = self.environment.get("MLFLOW_TRACKING_TOKEN")
        name, password = (self.environment.get(f"MLFLOW_TRACKING_{what}", "") for what in ("USERNAME", "PASSWORD"))
        if token:
            return {"Authorization": f"Bearer {token}"}
        pair = base64.b64encode(f"{name}:{password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"} if name else {}


class MlflowTracker(GeneralTracker):  # type: ignore[misc]
    """Reports a run to MLflow; a resumed run goes on in the same one."""

    name = "mlflow"
    requires_logging_directory = False

    def __init__(
        self, server: Server, experiment: str, run_name: str, *, remembered: Path, parameters: Mapping[str, Any]
    ) -> None:
        """Prepare; nothing is sent before ``start``.

        Args:
            server: Where to report to.
            experiment: Its name; made if there is none.
            run_name: Name of the run.
            remembered: File that keeps the run's id over attempts.
            parameters: Settings to show beside the run, as JSON types.
        """
        super().__init__()
        self.run_name = run_name
        self._server, self._experiment, self._remembered = server, experiment, remembered
        self._parameters = parameters
        self._run: dict[str, str] = {}
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)

    @property
    def tracker(self) -> str:
        """The run's id."""
        return self._run["run_id"]

    @property
    def url(self) -> str:
        """The run's page."""
        return f"{self._server.uri.rstrip('/')}/#/experiments/{self._run['experiment_id']}/runs/{self._run['run_id']}"

    @on_main_process  # type: ignore[untyped-decorator]
    def start(self) -> None:
        """Open the run.

        Raises:
            PlatformError: The server cannot be reached.
            Denied: It refuses access.
        """
        try:
            self._run = self._known_run() or self._new_run()
        except RefusedError as error:
            if error.code in _REFUSED:
                raise Denied(f"{FIELD}.secretRef: {self._server.uri} refuses access ({error.code})") from error
            raise PlatformError(f"{FIELD}.trackingUri: {self._server.uri} answers {error}") from error
        except (OSError, ValueError, KeyError) as error:
            raise PlatformError(f"{FIELD}.trackingUri: {self._server.uri} cannot be used: {error}") from error
        self._thread.start()

    def _known_run(self) -> dict[str, str] | None:
        if not self._remembered.exists():
            return None
        run: dict[str, str] = json.loads(self._remembered.read_text())
        try:
            self._server.post("runs/update", {"run_id": run["run_id"], "status": "RUNNING"})
        except RefusedError as error:
            if error.code == _NOT_FOUND:  # somebody deleted it
                return None
            raise
        return run

    def _new_run(self) -> dict[str, str]:
        experiment = self._experiment_id()
        asked = {"experiment_id": experiment, "run_name": self.run_name, "start_time": _now()}
        run = {"experiment_id": experiment, "run_id": self._server.post("runs/create", asked)["run"]["info"]["run_id"]}
        parameters = [{"key": name, "value": value} for name, value in flat(self._parameters).items()][:_PARAMETERS]
        self._server.post("runs/log-batch", {"run_id": run["run_id"], "params": parameters})
        self._remembered.parent.mkdir(parents=True, exist_ok=True)
        self._remembered.write_text(json.dumps(run))
        return run

    def _experiment_id(self) -> str:
        try:
            found = self._server.get("experiments/get-by-name", experiment_name=self._experiment)
            return str(found["experiment"]["experiment_id"])
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise
        return str(self._server.post("experiments/create", {"name": self._experiment})["experiment_id"])

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: Mapping[str, Any], step: int | None = None, **_options: Any) -> None:
        """Report numbers; those that are not finite are left out."""
        now = _now()
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._waiting.append({"key": name, "value": value, "timestamp": now, "step": step or 0})

    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Send what is left, and say that the run is finished."""
        self._end("FINISHED")

    @on_main_process  # type: ignore[untyped-decorator]
    def fail(self) -> None:
        """Send what is left, and say that the run was broken off."""
        self._end("FAILED")

    def _end(self, status: str) -> None:
        if not self._run or self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(_LAST_SECONDS)
        try:
            self._server.post("runs/update", {"run_id": self.tracker, "status": status, "end_time": _now()})
        except (OSError, ValueError) as error:
            log.warning("MLflow was not told the end of the run: %s", error)

    def _send_all(self) -> None:
        is_away = False
        while not self._ended.wait(SEND_EVERY_SECONDS) or self._waiting:
            try:
                while self._waiting:
                    self._send_some()
                is_away = False
            except (OSError, ValueError) as error:
                if not is_away:
                    log.warning("MLflow takes nothing at present, trying again: %s", error)
                is_away = True
                if self._ended.is_set():
                    return

    def _send_some(self) -> None:
        part = [self._waiting[index] for index in range(min(_BATCH, len(self._waiting)))]
        self._server.post("runs/log-batch", {"run_id": self.tracker, "metrics": part})
        for _ in part:
            self._waiting.popleft()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON as text by path: ``{"a": {"b": 1}}`` is ``{"a.b": "1"}``."""
    found: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: str(value)[:_VALUE_CHARACTERS]}
    return found


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
