"""Progress of rank 0, asked for over HTTP; bounded in time and size, for a trainer may be stuck or wrong."""

import http.client
import time
from pathlib import Path

from pydantic import ValidationError

from finetune_api.status import ProgressReport
from finetune_api.wiring import PROGRESS_ADDRESS_FILE

MAX_BYTES = 65_536
TIMEOUT_SECONDS = 1.0
_CHUNK_BYTES = 16_384


def pull_report(scratch: Path, *, timeout_seconds: float = TIMEOUT_SECONDS) -> ProgressReport | None:
    """The latest report of the worker with this scratch folder; None if it could not be had this time."""
    try:
        host, _, port = (scratch / PROGRESS_ADDRESS_FILE).read_text().strip().rpartition(":")
        body = _get(host, int(port), timeout_seconds)
        return ProgressReport.model_validate_json(body) if body is not None else None
    except (OSError, ValueError, http.client.HTTPException, ValidationError):
        return None


def _get(host: str, port: int, timeout_seconds: float) -> bytes | None:
    """The body of ``/progress``; None if it is not 200, too long or too slow."""
    deadline = time.monotonic() + timeout_seconds
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/progress")
        with connection.getresponse() as response:
            body = b""
            while len(body) <= MAX_BYTES and time.monotonic() < deadline:
                chunk = response.read1(_CHUNK_BYTES)
                if not chunk:
                    return body if response.status == http.client.OK else None
                body += chunk
            return None
    finally:
        connection.close()
