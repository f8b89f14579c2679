"""Which tag each word of a text has: names of people and places, parts of speech."""

from dataclasses import replace
from functools import partial
from typing import Any

from finetune_api.job import Columns, JobSpec
from finetune_trainer.data.dataset import Batch
from finetune_trainer.entities import Scheme, entity_counts, scheme_of
from finetune_trainer.losses import token_counts, token_losses
from finetune_trainer.materials import Ingredients, Ready, word_material
from finetune_trainer.task import Objective, Target, Task


def build(_spec: JobSpec) -> Task:
    """One tag a word; the loss is the mean over the words."""
    return Task(
        name="token-classification",
        target=Target.TAGS,
        auto_class="AutoModelForTokenClassification",
        pipeline="token-classification",
        metrics=("entityF1", "entityPrecision", "entityRecall", "tokenAccuracy"),
        monitor="entityF1",
        objective=Objective(token_losses, token_counts),
        roles=roles,
        material=material,
    )


def roles(columns: Columns) -> dict[str, str]:
    """Words and their tags."""
    return {"tokens": columns.tokens, "tags": columns.tags}


def material(task: Task, given: Ingredients) -> Ready:
    """Words through the model's tokenizer; the data's tags say what an entity is."""
    scheme = scheme_of(given.prepared.labels or ())
    return replace(word_material(task, given), task=replace(task, judged=partial(judged, scheme)))


def judged(scheme: Scheme, outputs: Any, batch: Batch, _companion: Any) -> tuple[Any, Any]:
    """Tags (n, T) and entities (n, 3, see ``entity_counts``), beside the tags that are right (n, T)."""
    tags = outputs.logits.argmax(-1)
    return {"tags": tags, "entities": entity_counts(scheme, tags, batch.target)}, batch.target
