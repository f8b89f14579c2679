"""What rank 0 tells of the run while it lives: `/progress` (JSON) and `/metrics` (Prometheus), over HTTP.

The training loop only stores a frozen object; the text is made when somebody asks, in the server's thread.
"""

import datetime as dt
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from finetune_api.job import JobSpec
from finetune_api.status import (
    Best,
    EarlyStoppingStatus,
    EvaluationPoint,
    LastCheckpoint,
    Progress,
    ProgressReport,
    Stage,
)
from finetune_api.wiring import PROGRESS_ADDRESS_FILE
from finetune_trainer.course import Course, RunState

_WINDOW_STEPS = 50


@dataclass(frozen=True)
class View:
    """What is known at one moment."""

    stage: Stage = Stage.PREPARING
    stage_percent: float | None = None
    state: RunState | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    steps_per_second: float | None = None
    samples_per_second: float | None = None
    last_checkpoint: LastCheckpoint | None = None
    resumed_from_step: int = 0
    lost_steps: int = 0
    tracking_urls: Mapping[str, str] = field(default_factory=dict)


class Reporter:
    """Keeps the present view and answers questions about it."""

    def __init__(self, spec: JobSpec, attempt: int) -> None:
        self._spec = spec
        self._attempt = attempt
        self._view = View()
        self._lock = threading.Lock()
        self._ticks: deque[tuple[float, int]] = deque(maxlen=_WINDOW_STEPS + 1)
        self.course: Course | None = None
        self.watched = "loss"

    def set(self, **changes: Any) -> None:
        """Change fields of the view."""
        with self._lock:
            self._view = replace(self._view, **changes)

    def step(self, state: RunState, *, loss: float, learning_rate: float, grad_norm: float) -> None:
        """One more training step is done."""
        self._ticks.append((time.monotonic(), state.samples))
        steps, samples = self._rates()
        self.set(
            stage=Stage.TRAINING,
            stage_percent=None,
            state=state,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            steps_per_second=steps,
            samples_per_second=samples,
        )

    def pause(self) -> None:
        """Something else than training begins: it must not count as slow steps."""
        self._ticks.clear()

    def _rates(self) -> tuple[float | None, float | None]:
        (first, first_samples), (last, last_samples) = self._ticks[0], self._ticks[-1]
        if last <= first:
            return self._view.steps_per_second, self._view.samples_per_second
        return (len(self._ticks) - 1) / (last - first), (last_samples - first_samples) / (last - first)

    def report(self, now: dt.datetime | None = None) -> ProgressReport:
        """The present view as it goes over the wire."""
        view = self._view
        state = view.state or RunState()
        best, stopping = state.best, self._spec.early_stopping
        metrics = dict(state.metrics) | ({"trainLoss": view.loss} if view.loss is not None else {})
        return ProgressReport(
            stage=view.stage,
            attempt=self._attempt,
            stage_percent=view.stage_percent,
            progress=self._progress(view, now or dt.datetime.now(dt.UTC)),
            metrics={name: value for name, value in metrics.items() if abs(value) < float("inf")},
            best=Best(metric=self.watched, value=best.value, step=best.step) if best else None,
            evaluations=_points(state.evaluated_values),
            early_stopping=EarlyStoppingStatus(
                evaluations_without_improvement=state.without_improvement,
                stopped_at_step=state.step if state.early_stopped else None,
            )
            if stopping
            else None,
            last_checkpoint=view.last_checkpoint,
            resumed_from_step=view.resumed_from_step,
            lost_steps=view.lost_steps,
            tracking_urls=dict(view.tracking_urls),
        )

    def _progress(self, view: View, now: dt.datetime) -> Progress | None:
        if self.course is None or view.state is None:
            return None
        left = max(0, self.course.total_steps - view.state.step)
        return Progress(
            step=view.state.step,
            total_steps=max(self.course.total_steps, view.state.step),
            epoch=round(view.state.position, 4),
            percent=round(100 * self.course.done(view.state), 2),
            eta_seconds=round(left / view.steps_per_second, 1) if view.steps_per_second else None,
            samples_per_second=round(view.samples_per_second, 2) if view.samples_per_second is not None else None,
            time=now,
        )

    def metrics_text(self) -> bytes:
        """Prometheus' text format. Labels are bounded: a metric's name, nothing per step."""
        registry = CollectorRegistry()
        report, view = self.report(), self._view

        def gauge(name: str, text: str, value: float | None) -> None:
            if value is not None:
                Gauge(f"finetune_{name}", text, registry=registry).set(value)

        if report.progress is not None:
            gauge("step", "Optimizer steps done.", report.progress.step)
            gauge("total_steps", "Optimizer steps of the whole run.", report.progress.total_steps)
            gauge("epoch", "Epochs done.", report.progress.epoch)
            gauge("eta_seconds", "Seconds to the last step at the present rate.", report.progress.eta_seconds)
        gauge("samples_per_second", "Training samples a second over all processes.", view.samples_per_second)
        gauge("train_loss", "Loss of the latest step.", view.loss)
        gauge("learning_rate", "Highest learning rate of the latest step.", view.learning_rate)
        gauge("grad_norm", "Norm of the latest gradient, before clipping.", view.grad_norm)
        gauge("last_checkpoint_step", "Step of the newest complete checkpoint.", _step_of(report.last_checkpoint))
        stage = Gauge(
            "finetune_stage", "What the trainer is doing (1 for the present stage).", ["stage"], registry=registry
        )
        for name in Stage:
            stage.labels(stage=name.value).set(float(name == report.stage))
        metric = Gauge("finetune_metric", "Latest value of an evaluation metric.", ["metric"], registry=registry)
        for key, value in report.metrics.items():
            metric.labels(metric=key).set(value)
        return generate_latest(registry)


def _points(values: tuple[tuple[int, float], ...]) -> tuple[EvaluationPoint, ...]:
    return tuple(
        EvaluationPoint(step=step, value=float(f"{value:.6g}")) for step, value in values if math.isfinite(value)
    )


def _step_of(checkpoint: LastCheckpoint | None) -> float | None:
    return float(checkpoint.step) if checkpoint else None


class ProgressServer:
    """Serves a Reporter until it is closed."""

    def __init__(self, reporter: Reporter, address: tuple[str, int], scratch: Path) -> None:
        """Bind ``address`` and leave what was bound in ``scratch``/progress.address."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = _answer(reporter, self.path)
                if answer is None:
                    self.send_error(404)
                    return
                body, kind = answer
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Requests are not worth a line."""

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        (scratch / PROGRESS_ADDRESS_FILE).write_text(f"{host}:{port}")
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _answer(reporter: Reporter, path: str) -> tuple[bytes, str] | None:
    """Body and content type of what is served at ``path``."""
    if path == "/progress":
        return report_bytes(reporter), "application/json"
    if path == "/metrics":
        return reporter.metrics_text(), "text/plain; version=0.0.4; charset=utf-8"
    return None


def report_bytes(reporter: Reporter) -> bytes:
    """`/progress` as JSON."""
    return reporter.report().model_dump_json(exclude_none=True).encode()
