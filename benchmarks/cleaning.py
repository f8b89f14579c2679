"""Cleaning Debian's package descriptions: what it finds of what is put in, what that is worth, its speed and memory.

Label noise: 10 % of the training texts get another label at random; recall and precision of finding them, and the test
accuracy (on texts whose labels nobody touched) of MiniLM trained on all, and as long on what cleaning leaves. Precision
counts only what was put in: Debian's own labels are doubtful as well, so it cannot be 1.
Near duplicates: texts that are not like each other (an exhaustive comparison says so), and copies of some, changed in a
few words, in case and punctuation. Found is a copy that is told with its original; any other text told is false.
Speed and memory: all of cleaning on 1x and on 10x the data (of every text 10 variants), in fresh processes; memory is
the peak of what is the process's own (RssAnon), since mapped files are the kernel's to take back.

    python benchmarks/cleaning.py                     all of it
    python benchmarks/cleaning.py near memory         some of it
"""

import csv
import json
import random
import re
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import subjects
from debian_texts import read_texts
from measure import Record, Report, arguments, in_fresh_process, in_turn, median

MIB = 2**20
NOISE = 0.1
BATCH = 32
SHARE = 7 / 9
"""Of the samples that are trained on: 7 to 2 for validation."""
PARTS = ("noise", "light", "near", "memory")


# ── in a process of its own ──────────────────────────────────────────────────────────────────────────────────────


def prepare(settings: Record) -> Record:
    """Read and clean: seconds, peak memory, and what was found."""
    from finetune_trainer.data.prepare import prepare_slices
    from finetune_trainer.tasks import task_of

    with subjects.scratch() as folder:
        document = job_of(settings)
        process = subjects.process(document, folder)
        spec = process.spec
        plain = spec.model_copy(update={"data": spec.data.model_copy(update={"cleaning": None})})
        prepare_slices(plain, task_of(plain), process.context, lambda: None)  # reading is not what is measured
        with Peak() as peak:
            started = time.perf_counter(), time.process_time()
            prepare_slices(spec, task_of(spec), process.context, lambda: None)
            seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        findings = [json.loads(line) for line in process.context.run.findings.read_text().splitlines()]
    kept = ("kind", "outcome", "origin", "twin")
    return {
        "seconds": seconds,
        "cpuSeconds": cpu_seconds,
        "peak": peak.bytes,
        "findings": [{name: finding.get(name) for name in kept} for finding in findings] if settings["tell"] else [],
    }


def train(settings: Record) -> Record:
    """Train on what cleaning leaves; accuracy on the test set."""
    from finetune_trainer.data.prepare import TEST, TRAIN

    with subjects.scratch() as folder:
        process, material = subjects.prepared(job_of(settings), folder)
        loop, state = subjects.assembled(process, material)
        loop.run(state)
        metrics = loop.judge.evaluate(loop.inner, material.parts[TEST])
        return {"accuracy": metrics["accuracy"], "samples": len(material.parts[TRAIN])}


class Peak:
    """The largest that the process's own memory was within, looked at a hundred times a second."""

    def __enter__(self) -> Self:
        self.bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.01):
            found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
            assert found is not None
            self.bytes = max(self.bytes, int(found.group(1)) * 1024)


def job_of(settings: Record) -> Record:
    length = {"maxSteps": settings["steps"]} if "steps" in settings else {"epochs": settings.get("epochs", 1)}
    training = {"batchSize": BATCH, **length, "seed": settings.get("seed", 0)}
    job = subjects.job(Path(settings["data"]), max_length=64, training=training)
    job["spec"]["data"] |= {"cleaning": settings["cleaning"]} if settings["cleaning"] else {}
    if settings.get("trainable") == "head":
        job["spec"]["strategy"] = {"trainable": "head", "learningRate": {"value": 5e-3}}
    if "test" in settings:
        job["spec"]["data"] |= {"testSource": f"file://{settings['test']}"}
    return job


# ── what is put in ───────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def line_of(origin: str) -> int:
    """Index of the sample that was read there; no text of Debian's has a line break."""
    return int(origin.rpartition(":")[2]) - 2


def some(count: int, seed: int) -> list[tuple[str, str]]:
    texts, labels = read_texts(subjects.texts())
    return random.Random(seed).sample(list(zip(texts, labels, strict=True)), min(count, len(texts)))


def noisy(rows: list[tuple[str, str]], seed: int) -> tuple[list[tuple[str, str]], set[int]]:
    """Rows with the label of every tenth changed, and which."""
    chosen = random.Random(seed)
    names = sorted({label for _, label in rows})
    wrong = set(chosen.sample(range(len(rows)), round(NOISE * len(rows))))
    return [
        (text, chosen.choice([name for name in names if name != label]) if row in wrong else label)
        for row, (text, label) in enumerate(rows)
    ], wrong


def word_pairs(text: str) -> frozenset[tuple[str, ...]]:
    """Pairs of words, by another way than cleaning's own."""
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    return frozenset(pairwise(words)) or frozenset([tuple(words)])


def unlike(rows: list[tuple[str, str]], wanted: int, below: float) -> list[tuple[str, str]]:
    """The first ``wanted`` rows of at least 12 words, none of which has a Jaccard of ``below`` with one before it."""
    kept: list[tuple[str, str]] = []
    sets: list[frozenset[tuple[str, ...]]] = []
    holders: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        pairs = word_pairs(row[0])
        if len(pairs) < 12 or len(kept) == wanted:
            continue
        shared: dict[int, int] = {}
        for pair in pairs:
            for other in holders.get(pair, ()):
                shared[other] = shared.get(other, 0) + 1
        if all(count / (len(pairs) + len(sets[other]) - count) < below for other, count in shared.items()):
            for pair in pairs:
                holders.setdefault(pair, []).append(len(kept))
            kept.append(row)
            sets.append(pairs)
    return kept


def changed(text: str, chosen: random.Random) -> str:
    """A near copy: one word in thirty (one at least) replaced, left out or put in; and case or punctuation changed."""
    words = text.split()
    for _ in range(max(1, len(words) // 30)):
        place = chosen.randrange(len(words))
        words[place : place + chosen.choice((0, 1, 1))] = chosen.choice(([], ["something"], ["indeed"]))
    joined = " ".join(words)
    return chosen.choice((joined, joined.upper(), joined.replace(",", " -"), f"{joined} !"))


# ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────────


def noise(options: Any, folder: Path) -> None:
    rows = some(options.samples + options.test, seed=1)
    held, rows = rows[: options.test], rows[options.test :]
    rows, wrong = noisy(rows, seed=2)
    data, test = write(folder / "noisy.csv", rows), write(folder / "test.csv", held)
    cleaning = {"labelNoise": {"action": "report"}}
    settings = {"do": "prepare", "data": str(data), "cleaning": cleaning, "tell": True}
    found = {line_of(one["origin"]) for one in measured(settings, options)["findings"]}
    report = Report(
        f"{NOISE:.0%} label noise in {len(rows):,} of Debian's texts, 12 sections",
        ("put in", "found", "of them put in"),
    )
    report.add(len(wrong), len(found), len(found & wrong))
    report.figure("recall", len(found & wrong) / len(wrong))
    report.figure("precision", len(found & wrong) / max(1, len(found)))
    report.print(as_json=options.json)

    steps = max(1, round(options.epochs * len(rows) * SHARE / BATCH))

    def run(side: str, repeat: int) -> Record:
        own = {
            "with": {"labelNoise": {"action": "drop"}},
            "without": None,
            "weights": {"labelNoise": {"action": "downWeight"}},
        }
        more = {"data": str(data), "test": str(test), "steps": steps, "seed": repeat, "tell": False}
        more["trainable"] = options.trainable
        return measured({"do": "train", "cleaning": own[side], **more}, options)

    records = in_turn(("with", "without", "weights"), options.repeats, run)
    accuracy = Report(
        f"Test accuracy (%) after {steps} steps of {BATCH} samples, {options.repeats} seeds",
        ("side", "trained on", "accuracy", "seeds"),
    )
    means = {side: statistics.fmean(100 * row["accuracy"] for row in one) for side, one in records.items()}
    names = {"with": "suspects dropped", "without": "no cleaning", "weights": "suspects down-weighted"}
    for side, one in records.items():
        seeds = " ".join(f"{100 * row['accuracy']:.1f}" for row in one)
        accuracy.add(names[side], one[0]["samples"], means[side], seeds)
    accuracy.figure("dropped - not cleaned, points", means["with"] - means["without"], at_least=0)
    accuracy.figure("down-weighted - not cleaned, points", means["weights"] - means["without"])
    accuracy.print(as_json=options.json)


def light(options: Any, folder: Path) -> None:
    """The same with a model that trains in seconds, so that chance can be told from gain: more seeds, a larger test.

    Words that occur in one text are left out. With them the model learns wrong labels by heart, one word each, at no
    cost to others, and dropping suspects gains nothing (-0.2 points over 4 seeds).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    report = Report(
        "Test accuracy (%) of TF-IDF with logistic regression", ("seed", "found", "no cleaning", "suspects dropped")
    )
    gains = []
    for seed in range(2 * options.repeats):
        rows = some(options.samples // 2 + 3 * options.test, seed=seed)
        held, (rows, _) = rows[: 3 * options.test], noisy(rows[3 * options.test :], seed=seed)
        settings = {"do": "prepare", "data": str(write(folder / f"light-{seed}.csv", rows)), "tell": True}
        told = measured({**settings, "cleaning": {"labelNoise": {}}}, options)["findings"]
        found = {line_of(one["origin"]) for one in told}
        kept = [row for number, row in enumerate(rows) if number not in found]
        accuracies = []
        for chosen in (rows, kept):
            words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
            model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0)
            model.fit(words.fit_transform([text for text, _ in chosen]), [label for _, label in chosen])
            accuracies.append(100 * model.score(words.transform([text for text, _ in held]), [one for _, one in held]))
        report.add(seed, len(found), *accuracies)
        gains.append(accuracies[1] - accuracies[0])
    report.figure("dropped - not cleaned, TF-IDF, points", statistics.fmean(gains), at_least=0)
    report.print(as_json=options.json)


def near(options: Any, folder: Path) -> None:
    chosen = random.Random(3)
    base = unlike(some(40_000, seed=4), options.near, below=0.6)
    originals = chosen.sample(range(len(base)), len(base) // 5)
    copies = [(changed(base[row][0], chosen), base[row][1]) for row in originals]
    data = write(folder / "near.csv", [*base, *copies])
    cleaning = {"duplicates": "report", "nearDuplicates": {"action": "report"}}
    found = measured({"do": "prepare", "data": str(data), "cleaning": cleaning, "tell": True}, options)["findings"]
    twins = {line_of(one["origin"]): line_of(one["twin"]) for one in found}
    right = sum(twins.get(len(base) + number) == row for number, row in enumerate(originals))
    false = sum(row < len(base) for row in twins)
    report = Report("Near duplicates, threshold 0.8", ("texts", "copies put in", "found", "others told"))
    report.add(len(base), len(copies), right, false)
    report.figure("copies found", right / len(copies), at_least=0.95)
    report.figure("others told, share of the texts", false / len(base), at_most=0.01)
    report.print(as_json=options.json)


def memory(options: Any, folder: Path) -> None:
    rows, chosen = some(options.speed, seed=5), random.Random(6)
    more = [
        (" ".join(chosen.sample(words := text.split(), len(words))), label) for text, label in rows for _ in range(9)
    ]
    sides = {"1x": write(folder / "1x.csv", rows), "10x": write(folder / "10x.csv", [*rows, *more])}
    cleanings = {
        "duplicates and near": {"duplicates": "drop", "nearDuplicates": {}},
        "label noise": {"labelNoise": {"action": "drop"}},
    }
    report = Report(
        f"All texts cleaned, medians of {options.repeats}",
        ("what", "data", "samples", "samples/s", "samples/CPU s", "MiB"),
    )
    for name, cleaning in cleanings.items():

        def run(side: str, _repeat: int, cleaning: Record = cleaning) -> Record:
            settings = {"do": "prepare", "data": str(sides[side]), "cleaning": cleaning, "tell": False}
            return measured(settings, options)

        records = in_turn(tuple(sides), options.repeats, run)
        for side, one in records.items():
            count = len(rows) * (10 if side == "10x" else 1)
            rates = [count / median(one, unit) for unit in ("seconds", "cpuSeconds")]
            report.add(name, side, count, *rates, median(one, "peak") / MIB)
        report.figure(
            f"{name}: peak, 10x / 1x", median(records["10x"], "peak") / median(records["1x"], "peak"), at_most=1.15
        )
    report.print(as_json=options.json)


def measured(settings: Record, options: Any) -> Record:
    variables = subjects.launched(job_of(settings), options.threads)
    return in_fresh_process(__file__, settings, threads=options.threads, timeout_seconds=7200, **variables)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--samples", type=int, default=8000, help="training texts with noise (default: 8,000)")
    parser.add_argument("--test", type=int, default=2000, help="test texts (default: 2,000)")
    parser.add_argument("--epochs", type=float, default=2, help="epochs of training without cleaning (default: 2)")
    parser.add_argument(
        "--trainable", choices=("all", "head"), default="all", help="what of MiniLM is trained (default: all)"
    )
    parser.add_argument("--near", type=int, default=5000, help="texts that are not alike (default: 5,000)")
    parser.add_argument("--speed", type=int, default=30_000, help="texts of 1x (default: 30,000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps({"prepare": prepare, "train": train}[options.worker["do"]](options.worker)))
        return
    if options.quick:
        options.samples, options.test, options.near, options.speed = 200, 50, 60, 600
        options.repeats, options.epochs = 1, 0.1
    with subjects.scratch() as folder:
        for name in options.parts or PARTS:
            {"noise": noise, "light": light, "near": near, "memory": memory}[name](options, folder)


if __name__ == "__main__":
    main()
