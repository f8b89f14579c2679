"""All pictures of a report, drawn under one style.

Invariant: a picture is drawn only if there is something to see in it.
"""

from finetune_api import FineTuneJob
from finetune_api.status import Result
from finetune_trainer.report.augmented import augmented_picture
from finetune_trainer.report.curves import (
    Marks,
    gradient_norm_picture,
    learning_rate_picture,
    loss_picture,
    metric_pictures,
)
from finetune_trainer.report.history import History
from finetune_trainer.report.predictions import confusion_picture, residual_pictures
from finetune_trainer.report.records import FinalEvaluation, Preparation
from finetune_trainer.report.theme import Picture, drawing


def draw_pictures(
    job: FineTuneJob,
    result: Result | None,
    history: History,
    evaluation: FinalEvaluation | None,
    restarts: tuple[int, ...] = (),
    preparation: Preparation | None = None,
) -> tuple[Picture, ...]:
    """All pictures that this run has something to show in; ``restarts`` are the steps that attempts resumed from."""
    stopped = history.last_step if result and result.reason == "EarlyStopped" else None
    marks = Marks(history.best, stopped, restarts)
    limit = job.spec.training.max_grad_norm
    with drawing():
        halves = (*metric_pictures(history, marks), *learning_rate_picture(history, marks))
        return (
            *loss_picture(history, marks),
            *halves,
            *gradient_norm_picture(history, marks, limit, wide=len(halves) % 2 == 0),  # leaves no gap in two columns
            *confusion_picture(evaluation),
            *residual_pictures(evaluation),
            *augmented_picture(preparation),
        )
