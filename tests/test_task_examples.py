"""The examples: all are listed, and what each is about is seen in a run of two steps on small models.

Those that start from nothing run as they are, on the data that are made for them; a checkpoint of the hub is one of the
same architecture with random weights. ``test_demo``, ``test_demo_experiment``, ``test_augment_examples``,
``test_cleaning_example`` and ``test_report_matching`` run the others.
"""

import json
import os
import re
import signal
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import csv, parquet
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

import documents
import finetune_cli.workers
import tiny
from finetune_api.errors import field_names
from finetune_api.job import Strategy, Tracking
from finetune_api.wiring import RunFolder
from finetune_cli.main import main
from finetune_trainer.tasks import TASKS
from mlflow_server import recording
from test_capabilities import save
from translators import write_translator
from workers import until

EXAMPLES = documents.EXAMPLES
DATA = {
    "scenes": "scenes.jsonl",
    "questions": "questions.jsonl",
    "names": "names.jsonl",
    "dates": "dates.jsonl",
    "reports": "reports.csv",
    "reviews": "test.csv",
}
"""Those that are made, and the file of each of which a short run takes the first lines."""
FEW = 60
TOWER = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}
BLIP = {
    "model_type": "blip",
    "text_config": TOWER | {"encoder_hidden_size": 16, "vocab_size": 64, "max_position_embeddings": 48},
    "vision_config": TOWER | {"image_size": 16, "patch_size": 8},
    "image_text_hidden_size": 16,
}
DISTILBERT = {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
QWEN = {**TOWER, "model_type": "qwen2", "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": 2000}
SHORT = (
    "spec.training.epochs=",
    "spec.training.maxSteps=2",
    "spec.training.batchSize=4",
    "spec.evaluation.intervals={resamples: 0}",
)


# ── data and models ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples") / "volumes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # make_questions reads what the library has deprecated, too
        for name, file in DATA.items():
            documents.write_example(name, root / "data" / name, *([FEW] if name == "reports" else []))
            path = root / "data" / name / file
            path.write_text("".join(path.read_text().splitlines(keepends=True)[: FEW + 1]))
    tiny.write_images(root / "data/xrays", FEW)
    write_tables(root / "data")
    write_models(root / "models", root / "data")
    return root


def write_tables(data: Path) -> None:
    """What lies on the hub, or what a user brings: pairs of sentences with a label, abstracts in three files."""
    for name, is_number in (("mrpc", False), ("stsb", True)):
        pairs = table(tiny.write_texts(data / f"{name}.jsonl", 40, number=is_number))
        pairs = pairs.rename_columns({"text": "sentence1", "other": "sentence2"})
        for part, start, count in (("train", 0, 30), ("validation", 30, 10)):
            parquet.write_table(pairs.slice(start, count), data / f"{name}-{part}.parquet")
    abstracts = table(tiny.write_texts(data / "abstracts.jsonl", 40)).rename_columns(
        {"text": "abstract", "label": "topic"}
    )
    (data / "abstracts").mkdir()
    for part, start, count in (("train", 0, 24), ("dev", 24, 10), ("test", 34, 6)):
        csv.write_csv(abstracts.slice(start, count), data / "abstracts" / f"{part}.csv")


def table(lines: Path) -> pa.Table:
    """The texts and labels of a JSON Lines file."""
    return pa.Table.from_pylist(list(map(json.loads, lines.read_text().splitlines()))).drop_columns(["tokens", "tags"])


def write_models(models: Path, data: Path) -> None:
    """A checkpoint for each that the examples name, and its tokenizer."""
    words = AutoTokenizer.from_pretrained(tiny.TOKENIZER)
    chat, reports = (AutoTokenizer.from_pretrained(data / name / "tokenizer") for name in ("questions", "reports"))
    roberta = {**tiny.BERT, "model_type": "roberta", "vocab_size": len(words), "pad_token_id": 0}
    save("BertForMaskedLM", {**tiny.BERT, "num_hidden_layers": 12}, words, models / "biobert")
    save("BertForMaskedLM", dict(tiny.BERT), words, models / "bert")
    save("RobertaForMaskedLM", roberta, words, models / "roberta-base")
    save("DistilBertForMaskedLM", dict(DISTILBERT), words, models / "distilbert")
    save("Qwen2ForCausalLM", dict(QWEN), chat, models / "qwen")
    save("ViTModel", dict(tiny.VIT), SimpleNamespace(save_pretrained=lambda _: None), models / "vit")
    save("BlipForImageTextRetrieval", dict(BLIP), reports, models / "blip-itm-base-coco")
    write_teacher(models / "reviews-bert", words)
    for seed, name in enumerate(("opus-mt-en-de", "opus-mt-de-en")):
        write_translator(models / name, seed)


def write_teacher(folder: Path, tokenizer: Any) -> None:
    """A BERT that is sure of itself: so the student's loss tells that it was asked."""
    labels = {"id2label": {0: "blame", 1: "praise"}, "label2id": {"blame": 0, "praise": 1}}
    save("BertForSequenceClassification", {**tiny.BERT, **labels, "initializer_range": 10.0}, tokenizer, folder)


# ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Forked:
    """What ``finetune run`` needs of a subprocess.Popen: a worker that need not import everything anew."""

    def __init__(self, workers, _command, *, env, stdout, **_):
        self.pid, self._ask = workers._start_warm(dict(env), Path(stdout.name))
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._ask()
        return self.returncode

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def wait(self):
        until(lambda: self.poll() is not None, "the worker's end")


@dataclass(frozen=True)
class Done:
    """A run that has succeeded."""

    folder: RunFolder
    status: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return self.status["result"]["metrics"]

    @property
    def preparation(self) -> dict[str, Any]:
        return json.loads(self.folder.preparation.read_text())

    @property
    def evaluation(self) -> dict[str, Any]:
        return json.loads(self.folder.evaluation.read_text())

    @property
    def rates(self) -> dict[str, float]:
        """Of each depth that is trained."""
        return {one["group"]: one["learningRate"] for one in self.preparation["rates"]}

    def changed(self, base: Path) -> set[str]:
        """Weights of the exported model that the checkpoint has otherwise, or not at all."""
        before, after = (load_file(folder / "model.safetensors") for folder in (base, self.folder.model))
        return {name for name in after if name not in before or (before[name] != after[name]).any()}


@pytest.fixture
def finetune(workers, volumes, tmp_path, monkeypatch):
    """Runs an example as a user does, with changes as ``--set`` takes them."""
    started = {"Popen": partial(Forked, workers), "DEVNULL": subprocess.DEVNULL, "STDOUT": subprocess.STDOUT}
    monkeypatch.setattr(finetune_cli.workers, "subprocess", SimpleNamespace(**started))

    def run(file: Path, changes: tuple[str, ...]) -> Done:
        folder = RunFolder(tmp_path / "run")
        places = {"--volumes": volumes, "--out": folder.root, "--cache": tmp_path / "cache"}
        arguments = [argument for place in places.items() for argument in map(str, place)]
        code = main(["run", "-f", str(file), *arguments, *(part for one in changes for part in ("--set", one))])
        logs = "".join(path.read_text() for path in sorted(folder.logs.glob("*")))
        assert code == 0, logs[-3000:]
        status = yaml.safe_load(folder.status.read_text())["status"]
        assert (status["phase"], status["progress"]["step"], len(status["attempts"])) == ("Succeeded", 2, 1)
        return Done(folder, status)

    return run


# ── what each shows ──────────────────────────────────────────────────────────────────────────────────────────────


def paraphrases(done: Done, models: Path) -> None:
    assert done.preparation["samples"] == {"train": 30, "validation": 10}
    same = load_file(models / "roberta-base" / "model.safetensors").keys() - done.changed(models / "roberta-base")
    assert not {name for name in same if not name.startswith("lm_head.")}, "all of it is trained"
    assert AutoConfig.from_pretrained(done.folder.model).architectures == ["RobertaForSequenceClassification"]


def abstracts(done: Done, models: Path) -> None:
    assert done.preparation["samples"] == {"train": 24, "validation": 10, "test": 6}
    assert done.rates == dict.fromkeys(("layer 11", "layer 12", "head"), 3e-5)
    layers = {name.split(".")[3] for name in done.changed(models / "biobert") if ".layer." in name}
    assert layers == {"10", "11"}
    assert not {name for name in done.changed(models / "biobert") if "embeddings" in name}
    assert list(done.folder.trackers.rglob("events.out.tfevents.*"))
    assert list(done.folder.trackers.glob("wandb/offline-run-*"))


def back_translation(done: Done, _models: Path) -> None:
    assert done.rates == pytest.approx(
        {"embeddings": 1e-5, "layer 1": 4e-5 / 3, "layer 2": 5e-5 / 3, "head": 2e-5}, rel=1e-6
    )
    for sample in done.preparation["augmented"]:
        first, *variants = sample["texts"]
        assert len(variants) == 4
        assert first not in variants


def similarity(done: Done, models: Path) -> None:
    assert done.preparation["samples"] == {"train": 27, "validation": 3, "test": 10}
    assert "embeddings" not in done.rates
    assert not {name for name in done.changed(models / "roberta-base") if "embeddings" in name}
    config = AutoConfig.from_pretrained(done.folder.model)
    assert (config.num_labels, config.problem_type) == (1, "regression")


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def lora(done: Done, models: Path, *, parts: tuple[str, ...] = ("lora_A", "lora_B")) -> None:
    config = json.loads((done.folder.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.1)
    weights = load_file(done.folder.adapter / "adapter_model.safetensors")
    adapted = {tuple(name.split(".")[-3 if "lora_magnitude" not in name else -2 :][:2]) for name in weights}
    assert adapted == {(projection, part) for projection in PROJECTIONS for part in parts}
    merged = {name.removesuffix(".weight").split(".")[-1] for name in done.changed(models / "qwen")}
    assert merged == set(PROJECTIONS)
    assert json.loads(done.folder.passes.read_text())["samples"] >= 1


def distillation(done: Done, _models: Path) -> None:
    loss = tiny.steps_of(done.folder.root)[0]["loss"]
    assert loss > 2, "a student that knows nothing yet has 0.7 by the labels; the teacher makes the rest"
    assert list((done.folder.root.parent / "cache").rglob("outputs.npy"))


def xrays(done: Done, models: Path) -> None:
    config = AutoConfig.from_pretrained(done.folder.model)
    assert (config.image_size, config.num_channels) == (16, 1)
    weights = load_file(done.folder.model / "model.safetensors")
    assert weights["vit.embeddings.patch_embeddings.projection.weight"].shape == (16, 1, 4, 4)
    assert weights["vit.embeddings.position_embeddings"].shape == (1, 4 * 4 + 1, 16)
    assert list(done.rates.values()) == pytest.approx([3e-4 * 0.8**depth for depth in (3, 2, 1, 0)])


def blip(done: Done, models: Path) -> None:
    changed = done.changed(models / "blip-itm-base-coco")
    layers = re.findall(r"^(\w+)\.encoder\.layers?\.(\d)", "\n".join(changed), flags=re.MULTILINE)
    assert set(layers) == {(tower, depth) for tower in ("vision_model", "text_encoder") for depth in "1234"}
    assert not {name for name in changed if "embeddings" in name}


def detection(done: Done, _models: Path) -> None:
    shown = done.evaluation["examples"]
    assert {word for one in shown for word in one["expected"].split(", ")} <= {*done.preparation["labels"]}
    assert all(one["image"].startswith("data:image/png;base64,") for one in shown)


def captions(done: Done, _models: Path) -> None:
    assert all(re.fullmatch(r"a \w+( and a \w+)?", one["expected"]) for one in done.evaluation["examples"])


def answers(done: Done, models: Path) -> None:
    lines = (models.parent / "data/questions/questions.jsonl").read_text().splitlines()
    talks = {tuple(said["content"] for said in json.loads(line)["messages"]) for line in lines}
    assert {(one["given"], one["expected"]) for one in done.evaluation["examples"]} < talks, (
        "what is asked, and answered"
    )
    assert "<|assistant|>" in AutoTokenizer.from_pretrained(done.folder.model).chat_template


def tags(done: Done, _models: Path) -> None:
    assert {"O", "B-CALL", "I-CALL", "B-PARAMETER"} <= {*done.preparation["labels"]}
    assert all(re.search(r" [BI]-[A-Z]+", one["expected"]) for one in done.evaluation["worst"])
    assert "entityF1" in done.metrics


def rewritten(done: Done, _models: Path) -> None:
    shown = done.evaluation["examples"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", one["expected"]) for one in shown)
    assert all(one["expected"][:4] in one["given"] for one in shown)


# ── the examples ─────────────────────────────────────────────────────────────────────────────────────────────────


TWO = "spec.data.split={train: 28, validation: 1, test: 1}"
"""For models that write: until they have learned to end, each of their texts takes as long as it may."""


def checkpoint(name: str) -> tuple[str, str]:
    return f"spec.model.source=pvc://models/{name}", "spec.model.revision="


def glue(name: str, measured: str) -> tuple[str, ...]:
    return (
        f"spec.data.source=pvc://data/{name}-train.parquet",
        f"spec.data.{measured}Source=pvc://data/{name}-validation.parquet",
        "spec.data.revision=",
        "spec.data.maxLength=32",
    )


@dataclass(frozen=True)
class Case:
    """One example: what of it is changed for a short run without a hub, and what must be seen."""

    shows: Callable[[Done, Path], None]
    changes: tuple[str, ...] = ()


CASES = {
    "scenes-detection": Case(detection),
    "scenes-captioning": Case(captions, (TWO,)),
    "questions-chat": Case(answers, (TWO,)),
    "names-tagging": Case(tags),
    "dates-rewriting": Case(rewritten, (TWO,)),
    "paraphrases-roberta": Case(paraphrases, (*checkpoint("roberta-base"), *glue("mrpc", "validation"))),
    "abstracts-biobert": Case(abstracts),
    "reviews-back-translation": Case(back_translation, (*checkpoint("bert"), "spec.data.maxLength=32")),
    "similarity-regression": Case(
        similarity,
        (
            *checkpoint("roberta-base"),
            *glue("stsb", "test"),
            "spec.training.batchSize=",
            "spec.training.tokensPerBatch=64",
        ),
    ),
    "questions-lora": Case(
        lora,
        (
            *checkpoint("qwen"),
            TWO,
            "spec.data.maxLength=32",
            "spec.training.batchSize=auto",
            "spec.training.effectiveBatchSize=4",
        ),
    ),
    "reviews-distillation": Case(distillation, (*checkpoint("distilbert"), "spec.data.maxLength=32")),
    "xrays-vit": Case(xrays, (*checkpoint("vit"), "spec.model.config={image_size: 16, num_channels: 1}")),
    "image-report-blip": Case(blip, checkpoint("blip-itm-base-coco")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs(finetune, volumes, name):
    file, case = EXAMPLES / f"{name}.yaml", CASES[name]
    done = finetune(file, (*SHORT, *case.changes))
    asked = yaml.safe_load(file.read_text())["spec"].get("evaluation", {}).get("metrics", ())
    assert {*asked, "loss"} <= done.metrics.keys()
    case.shows(done, volumes / "models")


def test_the_page_of_a_run_is_named_in_its_status(finetune, volumes):
    with recording() as server:
        tracking = f"spec.tracking={{mlflow: {{trackingUri: '{server.address}'}}}}"
        done = finetune(EXAMPLES / "names-tagging.yaml", (*SHORT, tracking))
    assert done.status["trackingUrls"] == {"mlflow": f"{server.address}/#/experiments/7/runs/abc"}
    losses = [step["loss"] for step in tiny.steps_of(done.folder.root)]
    assert [value for name, _, value in server.metrics() if name == "train/loss"] == losses


def test_dora_is_the_line_that_is_left_out(finetune, volumes, tmp_path):
    text = (EXAMPLES / "questions-lora.yaml").read_text()
    file = tmp_path / "dora.yaml"
    file.write_text(text.replace("# useDora", "useDora"))
    done = finetune(file, (*SHORT, *CASES["questions-lora"].changes))
    lora(done, volumes / "models", parts=("lora_A", "lora_B", "lora_magnitude_vector"))


def test_the_cluster_s_example_has_its_queue_priority_and_secrets(capsys):
    assert main(["render", "-f", str(EXAMPLES / "questions-cluster.yaml")]) == 0
    children = {one["kind"]: one for one in yaml.safe_load_all(capsys.readouterr().out)}
    job = children["Job"]
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert (job["spec"]["suspend"], job["spec"]["completions"]) == (True, 2), "it waits for the queue"
    assert pod["priorityClassName"] == "training"
    environment = pod["containers"][0]["env"]
    secrets = {
        one["name"]: one["valueFrom"].get("secretKeyRef", {}).get("name") for one in environment if "valueFrom" in one
    }
    assert secrets.items() >= {"HF_TOKEN": "hub", "WANDB_API_KEY": "wandb", "MLFLOW_TRACKING_TOKEN": "mlflow"}.items()
    assert children["PersistentVolumeClaim"]["spec"]["storageClassName"] == "shared"


def test_every_example_is_listed():
    listed = re.findall(r"^\| \[`([^`]+)`\]\(\1\)", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.yaml"))


def test_every_task_and_every_way_of_training_has_an_example():
    jobs = [yaml.safe_load(path.read_text()) for path in EXAMPLES.glob("*.yaml")]
    specs = [job["spec"] for job in jobs if job["kind"] == "FineTuneJob"]
    used = {part: {name for spec in specs for name in spec.get(part, {})} for part in ("strategy", "tracking")}
    assert {spec["task"] for spec in specs} == {*TASKS}
    assert used == {"strategy": {*field_names(Strategy, ())}, "tracking": {*field_names(Tracking, ())}}
    sources = [spec["model"].get("source", "").partition(":")[0] for spec in specs]
    assert {"hf", "pvc", "file", ""} == {*sources}
