"""A distilled student beside the same student trained alone: test accuracy, three seeds of each.

The data is Debian's texts (``debian_texts.py``), the first of each section, few of them: what distillation is for. The
teacher is MiniLM (6 layers, 22.7 M parameters), fine-tuned on the training set once. The student is a BERT of one layer
(4 M parameters, nearly all of them embeddings) from random weights, trained with the same samples, steps, rates and
seeds, alone or with the teacher's outputs beside the labels (kept once, ``cacheTeacher``). Every side is a FineTuneJob
that runs from its first file to its last; what is told is the exported model's accuracy on the test set.

    python benchmarks/distillation.py            about five minutes on 2 cores
"""

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import subjects
from debian_texts import read_texts
from measure import Record, Report, arguments, in_fresh_process, note

SIDES = ("alone", "distilled")
MAX_LENGTH = 24
STUDENT = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
}
DISTILLATION = {"temperature": 4.0, "weight": 0.9, "cacheTeacher": True}


def few_texts(path: Path, each: int) -> Path:
    """The first ``each`` texts of every section."""
    left: dict[str, int] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for text, label in zip(*read_texts(subjects.texts()), strict=True):
            left[label] = left.get(label, each) - 1
            if left[label] >= 0:
                writer.writerow((text, label))
    return path


def job_of(settings: Record) -> Record:
    """The FineTuneJob of one side."""
    minilm = f"file://{subjects.minilm()}"
    is_teacher = settings["side"] == "teacher"
    strategy: Record = {"learningRate": {"value": 1e-4 if is_teacher else 1e-3}}
    if settings["side"] == "distilled":
        strategy["distillation"] = {"teacher": settings["teacher"], **DISTILLATION}
    training = {"seed": settings["seed"], "epochs": settings["epochs"], "batchSize": 32}
    job = subjects.job(Path(settings["data"]), max_length=MAX_LENGTH, training=training, strategy=strategy)
    job["spec"]["data"]["split"] = {"train": 4, "validation": 1, "test": 10}
    if not is_teacher:
        job["spec"]["model"] = {"config": STUDENT, "tokenizer": minilm}
    return job


def train(settings: Record) -> Record:
    """One job in this process; the exported model's folder and its test accuracy with the interval."""
    from finetune_trainer.run import run

    result = run(subjects.process(job_of(settings), Path(settings["run"])))
    assert result is not None
    interval = result.intervals["accuracy"]
    return {"model": result.model, "accuracy": result.metrics["accuracy"], "interval": [interval.low, interval.high]}


def compare(options: Any) -> Report:
    """The teacher once, then both sides with every seed."""
    each, epochs, teacher_epochs = (20, 1, 0.5) if options.quick else (options.texts, options.epochs, 4)
    with subjects.scratch() as folder:
        data, cache = few_texts(folder / "texts.csv", each), str(folder / "cache")

        def measure(side: str, seed: int, **more: Any) -> Record:
            settings = {"side": side, "seed": seed, "data": str(data), "run": str(folder / f"{side} {seed}"), **more}
            record = in_fresh_process(
                __file__, settings, threads=options.threads, timeout_seconds=1800, FINETUNE_CACHE=cache
            )
            note(f"  {side}, seed {seed}: {100 * record['accuracy']:.2f} %")
            return record

        teacher = measure("teacher", 0, epochs=teacher_epochs)
        more = {"epochs": epochs, "teacher": Path(teacher["model"]).as_uri()}
        seeds = range(1 if options.quick else options.seeds)
        records = {side: [measure(side, seed, **more) for seed in seeds] for side in SIDES}
    title = f"Test accuracy (%), {each} texts of each section, 4/15 to train on, {epochs} epochs"
    report = Report(title, ("side", *(f"seed {seed}" for seed in seeds), "mean", "95 % of seed 0"))
    for side, rows in {"teacher": [teacher] * len(seeds), **records}.items():
        found = [100 * row["accuracy"] for row in rows]
        low, high = (100 * end for end in rows[0]["interval"])
        report.add(side, *found, statistics.mean(found), f"{low:.1f} to {high:.1f}")
    gains = [
        100 * (mine["accuracy"] - other["accuracy"])
        for other, mine in zip(records["alone"], records["distilled"], strict=True)
    ]
    report.figure("distilled - alone, points, mean of the seeds", statistics.mean(gains), at_least=0.5)
    report.figure("distilled - alone, points, worst seed", min(gains), at_least=0.0)
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the students (default: 3)")
    parser.add_argument("--texts", type=int, default=150, help="texts a section, 4/15 to train on (default: 150)")
    parser.add_argument("--epochs", type=float, default=20, help="of the students (default: 20)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(train(options.worker)))
        sys.stdout.flush()
        return
    compare(options).print(as_json=options.json)


if __name__ == "__main__":
    main()
