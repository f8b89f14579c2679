"""The end of a run: the best weights judged on the test set, exported, and told of."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import nn

from finetune_api.status import Result, Stage
from finetune_trainer import checkpoint
from finetune_trainer.context import Context
from finetune_trainer.course import RunState
from finetune_trainer.data.dataset import Part
from finetune_trainer.data.labels import IdLists
from finetune_trainer.data.prepare import TEST, VALIDATION, Prepared, Slice
from finetune_trainer.data.tags import tagged_words
from finetune_trainer.data.words import counted_words
from finetune_trainer.distributed import is_sharded
from finetune_trainer.evaluate import Details
from finetune_trainer.examples import Gallery, Shown, to_records
from finetune_trainer.export import Exported, export, unsharded, whole_state
from finetune_trainer.loop import Loop
from finetune_trainer.metrics import summary
from finetune_trainer.quantized import bits_of, in_full_precision
from finetune_trainer.snapshot import load_tensors
from finetune_trainer.task import Target, Task
from finetune_trainer.thumbnails import thumbnail

if TYPE_CHECKING:
    from finetune_trainer.families import Bootstrap

log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "finetune-operator")
_PROBE_SAMPLES = 4
_WORST_CHARACTERS = 4000


@dataclass(frozen=True)
class Ending:
    """What the end of a run needs to know of its beginning."""

    context: Context
    task: Task
    prepared: Prepared
    parts: Mapping[str, Part]
    companion: Any
    """Tokenizer or image processor."""


def finish(ending: Ending, loop: Loop, state: RunState, *, build: Callable[[], nn.Module]) -> Result | None:
    """Judge the best weights, export them, write the report; the result on rank 0.

    Args:
        ending: The run.
        loop: Its loop, at the end of the course.
        state: The state at the end.
        build: Makes the model anew (a sharded one is exported through it).
    """
    loop.reporter.set(stage=Stage.EXPORTING, state=state)
    validation = restore_best(loop, state, ending.context)
    part = TEST if TEST in ending.parts else VALIDATION
    details = Details(ending.task, len(ending.prepared.labels or ()))
    bootstrap = _bootstrap(ending, loop)
    metrics = loop.judge.evaluate(loop.model, ending.parts[part], details=details, bootstrap=bootstrap)
    with loop.heartbeat.pulse():
        intervals = bootstrap.intervals(metrics, loop.group) if bootstrap else {}
    details = details.merge(_gather(loop, details))
    log.info("%s: %s", part, summary(metrics))
    with loop.heartbeat.pulse():
        examples = to_records(_examples(ending, loop, part))
        exported = _export(ending, loop, build)
        if exported is None:
            return None
        run = ending.context.run
        result = Result(
            reason="EarlyStopped" if state.early_stopped else "Completed",
            model=str(exported.model),
            adapter=str(exported.adapter) if exported.adapter else None,
            report=str(run.report),
            metrics=metrics,
            intervals=intervals,
        )
        told: dict[str, Any] = {"confidence": loop.spec.evaluation.intervals.confidence}
        told |= {"intervals": {name: interval.to_wire() for name, interval in intervals.items()}}
        told |= {"examples": examples}
        record = _record(ending, part, details) | {"metrics": metrics, "validation": validation, **told}
        run.evaluation.write_text(json.dumps(record))
        # A second of imports that the start need not pay.
        from finetune_trainer.report import write_model_card, write_report

        write_model_card(exported.model, ending.context.job, result, run, _versions())
        write_report(run, ending.context.job, result)
        return result


def _bootstrap(ending: Ending, loop: Loop) -> "Bootstrap | None":
    wanted = loop.spec.evaluation.intervals
    if not wanted.resamples:
        return None
    from finetune_trainer.families import Bootstrap

    return Bootstrap(ending.task.target, loop.judge.classes, wanted)


def restore_best(loop: Loop, state: RunState, context: Context) -> Mapping[str, float]:
    """Load the best checkpoint's weights, if they are not those at hand; returns its validation metrics."""
    if state.best is None or state.best.step == state.step or not loop.spec.checkpoint.keep_best:
        return state.metrics
    folder = context.run.checkpoints / checkpoint.name_of(state.best.step)
    try:
        best = loop.group.broadcast(checkpoint.verify(folder) if context.is_main else None)
    except checkpoint.Damaged as damage:
        log.warning("the best checkpoint is damaged (%s); the last weights are exported", damage)
        best = loop.group.broadcast(None)
    if best is None:
        return state.metrics
    load_tensors(best, loop.inner, None)
    log.info("the weights of step %d are the best and are exported", best.step)
    return state.best.metrics


def _examples(ending: Ending, loop: Loop, part: str) -> Sequence[Shown]:
    """What the model does with a few samples; none of a model that no process has whole."""
    if ending.task.show is None or not ending.context.is_main or is_sharded(loop.spec, loop.group.size):
        return ()
    loop.inner.eval()
    piece, beat = ending.prepared.slices[part], loop.heartbeat.beat
    labels = ending.prepared.labels
    return ending.task.show(Gallery(loop.inner, ending.parts[part], piece, ending.companion, labels, beat))


def _gather(loop: Loop, details: Details) -> list[Details]:
    if loop.group.size == 1:
        return [details]
    gathered: list[Any] = [None] * loop.group.size
    dist.all_gather_object(gathered, details)
    return gathered


def _export(ending: Ending, loop: Loop, build: Callable[[], nn.Module]) -> Exported | None:
    state = whole_state(loop.inner) if is_sharded(loop.spec, loop.group.size) else None
    if not ending.context.is_main:
        return None
    model = loop.inner if state is None else unsharded(state, build)
    if bits_of(loop.spec) is not None:
        model = in_full_precision(model, build)
    run = ending.context.run
    part = ending.parts[VALIDATION]
    probe = part.batch(0, np.arange(min(_PROBE_SAMPLES, len(part))), is_counted=True).inputs
    return export(model.to("cpu"), [ending.companion], to=run.model, adapter_to=run.adapter, probe=probe)


def _record(ending: Ending, part: str, details: Details) -> dict[str, Any]:
    """evaluation.json, but for the metrics."""
    labels, target = ending.prepared.labels, ending.task.target
    piece = ending.prepared.slices[part]
    expected, predicted = zip(*details.residuals, strict=True) if details.residuals else ((), ())
    return {
        "part": part,
        "task": ending.task.name,
        "labels": labels,
        "confusion": details.confusion.tolist() if target == Target.CLASS else None,
        "residuals": {"expected": expected, "predicted": predicted} if target == Target.NUMBER else None,
        "worst": [
            {
                **_sample(piece, index),
                "origin": piece.origin(index),
                **_answers(ending, piece, int(piece.rows[index]), prediction),
                "loss": loss,
            }
            for loss, index, prediction in details.worst
        ],
    }


def _sample(piece: Slice, index: int) -> dict[str, str | None]:
    row, table = int(piece.rows[index]), piece.samples.table

    def cell(role: str) -> str | None:
        if role not in table.column_names:
            return None
        value = table[role][row].as_py()
        return (" ".join(value) if isinstance(value, list) else str(value))[:_WORST_CHARACTERS]

    image = table["image"][row].as_py() if "image" in table.column_names else None
    texts = {"text": cell("text") or cell("tokens"), "textPair": cell("text_pair")}
    return {**texts, "image": thumbnail(image) if image else None}


def _answers(ending: Ending, piece: Slice, row: int, prediction: Any) -> dict[str, str]:
    labels = ending.prepared.labels
    if ending.task.target != Target.TAGS:
        return {"expected": _expected(piece, row, labels), "predicted": _words(prediction, labels)}
    assert labels is not None
    words = piece.samples.table["tokens"][row].as_py()
    counted = counted_words(words, ending.companion)
    found = {"expected": piece.values.ids_of(row)[counted], "predicted": prediction}
    tags = {name: [labels[one] for one in ids] for name, ids in found.items()}
    return {name: ", ".join(tagged_words([words[at] for at in counted], every)) for name, every in tags.items()}


def _expected(piece: Slice, row: int, labels: tuple[str, ...] | None) -> str:
    if piece.values is None:
        return str(piece.samples.table["target"][row]) if "target" in piece.samples.table.column_names else ""
    if isinstance(piece.values, IdLists):
        return ", ".join((labels or ())[one] for one in piece.values.ids_of(row).tolist())
    value = piece.values[row]
    if labels is None:
        return f"{float(value):.4g}"
    return labels[int(value)] if value.ndim == 0 else ", ".join(labels[found] for found in value.nonzero()[0])


def _words(prediction: Any, labels: tuple[str, ...] | None) -> str:
    if prediction is None:
        return ""
    if labels is None:
        return f"{prediction:.4g}"
    return labels[prediction] if isinstance(prediction, int) else ", ".join(labels[found] for found in prediction)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}
