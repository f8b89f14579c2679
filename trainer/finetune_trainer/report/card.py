"""The model card: README.md of the model's folder, as the Hugging Face hub reads it.

Format: https://huggingface.co/docs/hub/model-cards and, for results, model-index
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md).
Invariant: no path of this machine is told but those that the user wrote in the spec.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from finetune_api import FineTuneJob
from finetune_api.job import DataSpec
from finetune_api.status import Result
from finetune_api.wiring import RunFolder
from finetune_trainer.report import words
from finetune_trainer.report.history import read_history
from finetune_trainer.report.records import FinalEvaluation, Metrics, Preparation, read_attempts, read_record
from finetune_trainer.report.rendering import environment, job_yaml, write_file
from finetune_trainer.report.settings import setting_rows

_PIPELINES = {
    "text-classification": "text-classification",
    "text-regression": "text-classification",
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
    "object-detection": "object-detection",
    "image-captioning": "image-to-text",
    "image-text-matching": "zero-shot-image-classification",
    "token-classification": "token-classification",
    "sequence-to-sequence": "text-generation",
}
"""Task → ``pipeline_tag`` of the hub."""
_CAPTIONING = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path/to/this/folder"
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
inputs = processor(images=Image.open("picture.png").convert("RGB"), return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=50), skip_special_tokens=True)[0])"""
_MATCHING = """\
import transformers
from PIL import Image

folder = "path/to/this/folder"
config, processor = (getattr(transformers, name).from_pretrained(folder) for name in ("AutoConfig", "AutoProcessor"))
model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
picture, texts = Image.open("picture.png").convert("RGB"), ["One text.", "Another text."]
inputs = processor(images=picture, text=texts, padding=True, return_tensors="pt")
is_blip = config.model_type == "blip"
print(model(**inputs, use_itm_head=False).itm_score if is_blip else model(**inputs).logits_per_image)"""
_WRITING = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "path/to/this/folder"
model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["A text."], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=50), skip_special_tokens=True)[0])"""
_USAGES = {
    "image-captioning": _CAPTIONING,
    "image-text-matching": _MATCHING,
    "sequence-to-sequence": _WRITING,
}
"""Task → how a model is used that has no pipeline."""
_CALLS = {
    "object-detection": 'print(model("picture.png"))  # [{"box": {"xmin": …}, "label": …, "score": …}, …]',
    "image-classification": 'print(model("picture.png"))  # [{"label": …, "score": …}, …], the most probable first',
    "causal-lm": 'print(model("Once upon a time", max_new_tokens=50)[0]["generated_text"])',
    "token-classification": 'print(model("A text.", aggregation_strategy="first"))  # [{"word": …, "entity_group": …}]',
}
"""Task → how its pipeline is called, where that is the same for all models."""
_HUB = "hf://"
MAX_LABELS = 50


def write_model_card(folder: Path, job: FineTuneJob, result: Result, run: RunFolder, versions: dict[str, str]) -> Path:
    """Write ``README.md`` into the folder of the trained model.

    Args:
        folder: The model's folder.
        job: The resolved job.
        result: What the run came to.
        run: The run's folder; what it lacks, the card does without.
        versions: Library → version, of what the model was trained with.

    Returns:
        The card's path.

    Raises:
        OSError: The folder cannot be written to.
    """
    history = read_history(run.history)
    evaluation, _ = read_record(run.evaluation, FinalEvaluation)
    preparation, _ = read_record(run.preparation, Preparation)
    evaluation = evaluation or FinalEvaluation(metrics=dict(result.metrics))
    text = (
        environment(autoescape=False)
        .get_template("card.md.j2")
        .render(
            front_matter=yaml.safe_dump(front_matter(job, evaluation), sort_keys=False, allow_unicode=True),
            job=job,
            base=_base_model(job) or job.spec.model.source,
            outcome=words.outcome(job, result, history, read_attempts(run.attempts)),
            snippet=usage(job),
            evaluation=evaluation,
            preparation=preparation,
            labels=_labels(evaluation, preparation),
            max_labels=MAX_LABELS,
            settings=setting_rows(job),
            spec=job_yaml(job),
            versions=versions,
            pinned=_is_pinned(job),
        )
    )
    card = folder / "README.md"
    write_file(card, text.encode())
    return card


def front_matter(job: FineTuneJob, evaluation: FinalEvaluation) -> dict[str, Any]:
    """What the hub reads: task, base model, tags and the measured metrics."""
    base, dataset = _base_model(job), _hub_name(job.spec.data.source)
    names = [name for name, _ in _finite(evaluation.metrics)]
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": _PIPELINES[job.spec.task]}
    if base:
        matter |= {"base_model": base, "base_model_relation": "finetune"}
    if dataset:
        matter["datasets"] = [dataset]
    return matter | {
        "tags": ["finetune-operator", job.spec.task, *(["lora"] if job.spec.strategy.lora else [])],
        "metrics": names,
        "model-index": [{"name": job.metadata.name, "results": [_index_result(job, evaluation)]}],
    }


def _index_result(job: FineTuneJob, evaluation: FinalEvaluation) -> dict[str, Any]:
    task, data = _PIPELINES[job.spec.task], job.spec.data
    return {
        "task": {"type": task, "name": job.spec.task},
        "dataset": {"type": _hub_name(data.source) or "custom", "name": _data_name(data), "split": evaluation.part},
        "metrics": [
            {"type": name, "value": value, "name": words.metric_name(name)}
            for name, value in _finite(evaluation.metrics)
        ],
    }


def _finite(metrics: Metrics) -> list[tuple[str, float]]:
    return [(name, value) for name, value in metrics.items() if value is not None and math.isfinite(value)]


def _base_model(job: FineTuneJob) -> str | None:
    return _hub_name(job.spec.model.source or "")


def _hub_name(source: str) -> str | None:
    """``owner/name`` of an ``hf://`` source."""
    return "/".join(source.removeprefix(_HUB).split("/")[:2]).rstrip("/") if source.startswith(_HUB) else None


def _data_name(data: DataSpec) -> str:
    return _hub_name(data.source) or data.source.rstrip("/").rpartition("/")[2] or data.source


def _is_pinned(job: FineTuneJob) -> bool:
    """Whether the base model can only be the one that was used: it has a revision, or needs none."""
    return _base_model(job) is None or job.spec.model.revision is not None


def _labels(evaluation: FinalEvaluation, preparation: Preparation | None) -> tuple[str, ...]:
    return (preparation.labels if preparation else None) or evaluation.labels or ()


def usage(job: FineTuneJob) -> str:
    """Python that loads the model and applies it once."""
    if job.spec.task in _USAGES:
        return _USAGES[job.spec.task]
    arguments = [f'"{_PIPELINES[job.spec.task]}"', "model=folder"]
    if job.spec.model.trust_remote_code:
        arguments.append("trust_remote_code=True")
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            'folder = "path/to/this/folder"',
            f"model = pipeline({', '.join(arguments)})",
            _CALLS.get(job.spec.task) or _call(job),
        ]
    )


def _call(job: FineTuneJob) -> str:
    limit = f", max_length={job.spec.data.max_length}" if job.spec.data.max_length else ""
    sample = (
        '{"text": "The first text.", "text_pair": "The second text."}'
        if job.spec.data.columns.text_pair
        else '"A text."'
    )
    if job.spec.task == "text-regression":
        call = f'model({sample}, function_to_apply="none", truncation=True{limit})'
        return f"print({call})  # the score is the predicted number"
    if job.spec.data.multi_label:
        call = f'model({sample}, top_k=None, function_to_apply="sigmoid", truncation=True{limit})'
        return f"print({call})  # each class has a probability of its own"
    return f"print(model({sample}, top_k=None, truncation=True{limit}))  # the probability of each class"
