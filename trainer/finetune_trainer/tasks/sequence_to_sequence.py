"""A text that is made of a text: translation, summary, correction. T5, BART, Marian."""

from collections.abc import Sequence

from finetune_api.job import Columns, JobSpec
from finetune_trainer.examples import Gallery, Shown
from finetune_trainer.losses import token_counts, token_losses
from finetune_trainer.materials import sequence_material
from finetune_trainer.task import Objective, Target, Task
from finetune_trainer.writing import write_sequences


def build(_spec: JobSpec) -> Task:
    """Loss on every token of the target, and on its end."""
    return Task(
        name="sequence-to-sequence",
        target=Target.TOKENS,
        auto_class="AutoModelForSeq2SeqLM",
        pipeline=None,
        metrics=("perplexity", "tokenAccuracy"),
        monitor="loss",
        objective=Objective(token_losses, token_counts),
        roles=roles,
        material=sequence_material,
        has_new_head=False,
        show=show,
        write=write_sequences,
    )


def roles(columns: Columns) -> dict[str, str]:
    """What is given, and what is to be written."""
    return {"text": columns.text, "target": columns.target}


def show(gallery: Gallery) -> Sequence[Shown]:
    """What the model writes for some texts."""
    shown = []
    for number in range(gallery.count):
        (written,), _ = write_sequences(gallery.model, gallery.batch(number), gallery.companion)
        given, expected = gallery.cell("text", number), gallery.cell("target", number)
        shown.append(Shown(gallery.origin(number), given, expected=expected, predicted=written))
    return shown
