"""Progress of worker 0, pulled over HTTP: bounded in time and size, and trusted with its own job's status only."""

import asyncio
from http import HTTPStatus

import aiohttp
from pydantic import ValidationError

from finetune_api.status import Best, LastCheckpoint, ProgressReport, Result, TerminationMessage
from finetune_operator.build.mounts import RUN
from finetune_operator.names import PROGRESS_PORT

MAX_BYTES = 65_536
TIMEOUT_SECONDS = 2.0
_PATH_CHARACTERS = 1024


async def pull_report(session: aiohttp.ClientSession, address: str, port: int = PROGRESS_PORT) -> ProgressReport | None:
    """The latest report of the worker at this address; None if it could not be had this time."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async with session.get(f"http://{host}:{port}/progress", allow_redirects=False) as answer:
                if answer.status != HTTPStatus.OK:
                    return None
                body = await _read(answer)
        return ProgressReport.model_validate_json(body) if body is not None else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, ValueError):
        return None


async def _read(answer: aiohttp.ClientResponse) -> bytes | None:
    """The body; None if it is too long."""
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            return None
    return body


def relocate_message(message: TerminationMessage, run: str) -> TerminationMessage:
    """The message with the run's folder as users find it (``run``), where the worker has the container's."""
    result, report = message.result, message.report
    return message.model_copy(
        update={
            "result": None if result is None else _relocate_result(result, run),
            "report": None if report is None else relocate_report(report, run),
        }
    )


def relocate_report(report: ProgressReport, run: str) -> ProgressReport:
    """Likewise, a report."""
    return report.model_copy(
        update={
            "best": _relocate_best(report.best, run),
            "last_checkpoint": _relocate_checkpoint(report.last_checkpoint, run),
        }
    )


def _relocate_best(best: Best | None, run: str) -> Best | None:
    return best.model_copy(update={"checkpoint": _relocate(best.checkpoint, run)}) if best else None


def _relocate_checkpoint(checkpoint: LastCheckpoint | None, run: str) -> LastCheckpoint | None:
    return checkpoint.model_copy(update={"path": _relocate(checkpoint.path, run)}) if checkpoint else None


def _relocate_result(result: Result, run: str) -> Result:
    paths = {name: _relocate(getattr(result, name), run) for name in ("model", "adapter", "report")}
    return result.model_copy(update=paths)


def _relocate(path: str | None, run: str) -> str | None:
    if path is None or not (path == RUN or path.startswith(f"{RUN}/")):
        return path
    return f"{run}{path.removeprefix(RUN)}"[:_PATH_CHARACTERS]
