"""What the project promises, from a checkpoint in a local folder to an exported model that is better than a guess.

Each row is a FineTuneJob on real or realistic data that runs to its end; the checkpoints are of the real architectures
and small, with random weights, and each has the files that its library wrote (tokenizer or image processor included).
Tasks that see and answer have such tests of their own: ``test_detection``, ``test_image_text_matching``,
``test_captioning``, ``test_answers``; the hub's address form ``test_sources``.
"""

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

import documents
import tiny
from finetune_api import parse_job
from finetune_trainer.entities import entity_counts, entity_scores, scheme_of
from finetune_trainer.metrics import Scores
from finetune_trainer.run import prepare
from finetune_trainer.text_scores import TEXT_FAMILY, text_sums
from whole import whole_run

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"max_position_embeddings": 80, "hidden_dropout_prob": 0.1}
STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


@dataclass(frozen=True)
class Data:
    """Where the rows' data lie."""

    documentation: Path
    reports: Path
    digits: Path
    names: Path
    dates: Path


@dataclass(frozen=True)
class Row:
    """One promise."""

    checkpoint: Callable[[Data, Path], None]
    """Writes the base model's folder."""
    source: str
    """Field of ``Data``."""
    spec: dict[str, Any]
    better: Callable[[dict[str, float], Any], None]
    """(test metrics, material): fails unless they are better than the stated guess."""


def save(architecture: str, fields: dict[str, Any], companion: Any, folder: Path) -> None:
    """A base model with random weights, always the same, and its tokenizer or image processor."""
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    getattr(transformers, architecture)._from_config(config).save_pretrained(folder)
    companion.save_pretrained(folder)


def bert(source: str, column: str, data: Data, folder: Path) -> None:
    """BERT with a vocabulary of its own, from the data's domain: what BioBERT and its like are. Without its head."""
    tokenizer = documents.word_pieces(documents.texts_of(getattr(data, source), column), folder)
    save("BertModel", {"model_type": "bert", **ENCODER, **TEXT, "vocab_size": len(tokenizer)}, tokenizer, folder)


def minilm(_data: Data, folder: Path) -> None:
    """A real pretrained encoder, which an adapter needs: what is drawn at random and frozen tells nothing."""
    shutil.copytree(tiny.TOKENIZER, folder)


def roberta(data: Data, folder: Path) -> None:
    """RoBERTa as it was pretrained: with the head for masked words, which is left out."""
    tokenizer = documents.byte_pairs(documents.texts_of(data.documentation, "text"), RobertaTokenizer)
    fields = {"model_type": "roberta", **ENCODER, **TEXT, "vocab_size": len(tokenizer), "pad_token_id": 1}
    save("RobertaForMaskedLM", fields | {"bos_token_id": 0, "eos_token_id": 2}, tokenizer, folder)


def gpt(data: Data, folder: Path) -> None:
    """GPT-2 with its head, which is trained on."""
    tokenizer = documents.byte_pairs(documents.texts_of(data.documentation, "text"), GPT2Tokenizer)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    save("GPT2LMHeadModel", {"model_type": "gpt2", **GPT, **ends, "vocab_size": len(tokenizer)}, tokenizer, folder)


def seeing(architecture: str, fields: dict[str, Any], processor: str, size: int, _data: Data, folder: Path) -> None:
    """ResNet or ViT with the processor that its kind comes with."""
    shape = {"shortest_edge": size} if processor == "ConvNextImageProcessor" else {"height": size, "width": size}
    save(architecture, dict(fields), getattr(transformers, processor)(size=shape), folder)


def tagger(data: Data, folder: Path) -> None:
    """BERT without its head, and a tokenizer of Python's code."""
    tokenizer = AutoTokenizer.from_pretrained(data.names.parent / "tokenizer")
    save("BertModel", {"model_type": "bert", **ENCODER, **TEXT, "vocab_size": len(tokenizer)}, tokenizer, folder)


def t5(data: Data, folder: Path) -> None:
    """T5 with a tokenizer of the words and digits of dates."""
    tokenizer = AutoTokenizer.from_pretrained(data.dates.parent / "tokenizer")
    save("T5ForConditionalGeneration", {**T5, "vocab_size": len(tokenizer)}, tokenizer, folder)


def than_the_most_frequent_class(metrics: dict[str, float], material: Any) -> None:
    part = material.parts["test"]
    counts = Counter(part.targets[part.rows].tolist())
    guess = max(counts.values()) / counts.total()
    print(f"accuracy {metrics['accuracy']:.3f}, most frequent class {guess:.3f}")
    assert metrics["accuracy"] > guess + 0.25


def than_the_mean(metrics: dict[str, float], _material: Any) -> None:
    """R² is 0 for one who always says the mean."""
    print(f"R² {metrics['r2']:.3f}")
    assert metrics["r2"] > 0.5


def than_how_often_each_token_comes(metrics: dict[str, float], material: Any) -> None:
    """A guess by the training texts' frequencies, one added to each."""
    tokens = {name: tokens_of(material.parts[name]) for name in ("train", "test")}
    counts = np.bincount(tokens["train"], minlength=len(material.companion)) + 1
    guess = math.exp(-np.log(counts / counts.sum())[tokens["test"]].mean())
    print(f"perplexity {metrics['perplexity']:.1f}, by frequency {guess:.1f}")
    assert metrics["perplexity"] < 0.7 * guess


def tokens_of(part: Any) -> Any:
    """All tokens of a part, flat."""
    ends = part.encoded.offsets
    return np.concatenate([part.encoded.ids[ends[row] : ends[row + 1]] for row in part.rows.tolist()])


def than_each_word_s_usual_tag(metrics: dict[str, float], material: Any) -> None:
    """A guess that knows for every word the tag that it has most often in training, O if it is new."""
    rows = {name: list(words_of(material.prepared.slices[name])) for name in ("train", "test")}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in (pair for row in rows["train"] for pair in row):
        counts[word][tag] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    labels, sums = material.prepared.labels, torch.zeros(3, dtype=torch.float64)
    for row in rows["test"]:
        both = [(labels.index(usual.get(word, "O")), labels.index(tag)) for word, tag in row]
        sums += entity_counts(scheme_of(labels), *torch.tensor([both]).unbind(2)).sum(0)
    guess = entity_scores(sums)["entityF1"].item()
    print(f"entity F1 {metrics['entityF1']:.3f}, each word's usual tag {guess:.3f}")
    assert metrics["entityF1"] > guess + 0.2


def words_of(piece: Any) -> Iterator[list[tuple[str, str]]]:
    """Of every sample the words with their tags."""
    table = piece.samples.table
    for row in piece.rows.tolist():
        yield list(zip(table["tokens"][row].as_py(), table["tags"][row].as_py(), strict=True))


def than_copying(metrics: dict[str, float], material: Any) -> None:
    """What is given has the same numbers as what is wanted, in another order."""
    piece = material.prepared.slices["test"]
    given, wanted = (
        [piece.samples.table[role][row].as_py() for row in piece.rows.tolist()] for role in ("text", "target")
    )
    sums = text_sums(given, wanted).sum(0, keepdim=True).T
    guess = TEXT_FAMILY.values["rougeL"](sums).item()
    print(f"ROUGE-L {metrics['rougeL']:.3f}, of what is given {guess:.3f}")
    assert metrics["rougeL"] > guess + 0.3


CLASSES = {"task": "text-classification", "strategy": {"learningRate": {"value": 3e-3}}}
IMAGES = {"task": "image-classification", "strategy": {"learningRate": {"value": 3e-3}}}
ROWS = {
    "BERT, classification": Row(
        partial(bert, "documentation", "text"), "documentation", CLASSES, than_the_most_frequent_class
    ),
    "MiniLM, classification by LoRA": Row(
        minilm,
        "documentation",
        CLASSES
        | {
            "data": {"maxLength": 48},
            "strategy": {"lora": {"r": 8}, "learningRate": {"value": 2e-3}},
            "training": {"maxSteps": 40, "batchSize": 16},
        },
        than_the_most_frequent_class,
    ),
    "BERT, classification with rates by depth, weight decay and dropout": Row(
        partial(bert, "documentation", "text"),
        "documentation",
        {
            "task": "text-classification",
            "model": {"dropout": 0.1},
            "strategy": {"learningRate": {"bottom": 2e-3, "top": 4e-3}},
            "training": {"weightDecay": 0.1},
        },
        than_the_most_frequent_class,
    ),
    "RoBERTa, classification": Row(roberta, "documentation", CLASSES, than_the_most_frequent_class),
    "a domain's BERT, classification of medical texts": Row(
        partial(bert, "reports", "report"),
        "reports",
        CLASSES | {"data": {"columns": {"text": "report", "label": "finding"}}},
        than_the_most_frequent_class,
    ),
    "BERT, regression": Row(
        partial(bert, "reports", "report"),
        "reports",
        CLASSES | {"task": "text-regression", "data": {"columns": {"text": "report", "label": "abnormal"}}},
        than_the_mean,
    ),
    "GPT, generation": Row(
        gpt,
        "documentation",
        {
            "task": "causal-lm",
            "strategy": {"learningRate": {"value": 5e-3}},
            "training": {"maxSteps": 300, "batchSize": 16},
        },
        than_how_often_each_token_comes,
    ),
    "BERT, tags of words": Row(
        tagger,
        "names",
        {"task": "token-classification", "strategy": {"learningRate": {"value": 3e-3}}},
        than_each_word_s_usual_tag,
    ),
    "T5, sequence to sequence": Row(
        t5,
        "dates",
        {
            "task": "sequence-to-sequence",
            "strategy": {"learningRate": {"value": 4e-3}},
            "evaluation": {"metrics": ["perplexity", "tokenAccuracy", "rougeL"]},
        },
        than_copying,
    ),
    "ResNet, classification": Row(
        partial(seeing, "ResNetModel", {"model_type": "resnet", **STAGES}, "ConvNextImageProcessor", 16),
        "digits",
        IMAGES,
        than_the_most_frequent_class,
    ),
    "ViT, classification": Row(
        partial(
            seeing,
            "ViTModel",
            {"model_type": "vit", **ENCODER, "image_size": 8, "patch_size": 2},
            "ViTImageProcessor",
            8,
        ),
        "digits",
        IMAGES,
        than_the_most_frequent_class,
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return Data(
        documents.write_documentation(folder / "documentation.jsonl"),
        documents.write_reports(folder / "reports", 400),
        documents.write_digits(folder / "digits"),
        documents.write_example("names", folder / "names"),
        documents.write_example("dates", folder / "dates", 2000),
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_checkpoint_of_a_folder_is_trained_to_better_than_a_guess(data, tmp_path, row):
    row.checkpoint(data, tmp_path / "base")
    fixed = {
        "model": {"source": f"file://{tmp_path / 'base'}"},
        "data": {"source": f"file://{getattr(data, row.source)}"},
        "training": {"maxSteps": 250, "batchSize": 32},
        "evaluation": {"every": {"steps": 1000}, "intervals": {"resamples": 200}},
        "checkpoint": {"every": {"steps": 1000}},
    }
    wanted = parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "row"},
            "spec": tiny.merged(fixed, row.spec),
        }
    )
    process = tiny.process_of(wanted, tmp_path / "run")
    result = whole_run(process)
    material = prepare(process)
    row.better(result.metrics, material)
    assert result.intervals.keys() >= {next(iter(result.metrics)), material.task.metrics[0]}
    near = {"abs": 0.02, "rel": 0.02} if torch.cuda.is_available() else {"abs": 1e-5, "rel": 1e-5}  # bf16 on a GPU
    assert again(material, result) == pytest.approx(result.metrics, **near)
    assert read_by(companion_of(result.model)) == read_by(material.companion), "of the exported model"


def companion_of(model: str) -> Any:
    """The tokenizer or image processor of a folder, as transformers loads it."""
    is_text = (Path(model) / "tokenizer_config.json").exists()
    return (AutoTokenizer if is_text else AutoImageProcessor).from_pretrained(model)


def read_by(companion: Any) -> Any:
    """What it makes of a text, or of an image."""
    if hasattr(companion, "encode"):
        return companion.encode("The model, on 12 May 2031: no fracture is seen; see `help()`.")
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    return companion(images=[image], return_tensors="np", input_data_format="channels_last")["pixel_values"].tolist()


def again(material: Any, result: Any) -> dict[str, float]:
    """The test metrics of the exported model, loaded by transformers alone."""
    task, part = material.task, material.parts["test"]
    model = getattr(transformers, task.auto_class).from_pretrained(result.model).eval()
    scores = Scores(task, tuple(result.metrics), model.config.num_labels, torch.device("cpu"))
    for indices in np.array_split(np.arange(len(part)), 4):
        batch = part.batch(0, indices, is_counted=True)
        with torch.no_grad():
            outputs = model(**batch.inputs)
        scores.add_loss(task.objective.losses(outputs, batch), task.objective.counts(batch))
        scores.update(*task.judged(outputs, batch, material.companion))
        if scores.reads_texts:
            scores.update_texts(*task.write(model, batch, material.companion))
    return scores.compute(list)
