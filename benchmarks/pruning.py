"""A search with a pruner beside the same search without: optimizer steps saved, and whether the winner is the same.

The data is scikit-learn's 1,797 handwritten digits, the model a small ResNet from random weights. Proposals (rate,
weight decay, clipping, schedule) are drawn at random from the search's seed, so both searches try the very same ones in
the same order, one trial at a time, with the same seed of training; the pruner has its defaults. A step counts if it
was trained: `trialTable[].step` of the experiment's status. Every side is a FineTuneExperiment that `finetune run`
takes from its first proposal to its answer.

    python benchmarks/pruning.py            about a quarter of an hour on 2 cores
"""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import subjects
from measure import Record, Report, arguments, environment, note

SIDES = ("all to the end", "with the pruner")
DIGITS = Path(__file__).parents[1] / "examples" / "make_digits.py"
TIMEOUT_SECONDS = 3600
MODEL = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
}
PARAMETERS = [
    {"field": "strategy.learningRate.value", "logUniform": {"low": 1e-5, "high": 1e-1}},
    {"field": "training.weightDecay", "logUniform": {"low": 1e-4, "high": 1.0}},
    {"field": "training.maxGradNorm", "logUniform": {"low": 0.1, "high": 10.0}},
    {"field": "training.scheduler", "categorical": {"choices": ["linear", "cosine"]}},
]


def experiment(side: str, *, proposals: int, epochs: int, seed: int) -> Record:
    """The FineTuneExperiment of one side."""
    pruner = {"startupTrials": min(5, proposals // 2)} if side == SIDES[1] else None
    search = {"sampler": "random", "proposals": proposals, "seed": seed, "parameters": PARAMETERS}
    template = {
        "task": "image-classification",
        "model": {"config": MODEL},
        "data": {"source": "pvc://data/digits", "imageSize": 16},
        "training": {"epochs": epochs, "batchSize": 64},
        "evaluation": {"every": {"epochs": 1}},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneExperiment",
        "metadata": {"name": f"search-{seed}"},
        "spec": {
            "template": template,
            "search": search | ({"pruner": pruner} if pruner else {}),
            "seeds": [0],
            "objective": {"metric": "accuracy"},
        },
    }


def searched(folder: Path, name: str, body: Record, threads: int) -> Record:
    """Steps trained, trials ended early, and the winner."""
    file, out = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump(body))
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", str(file), "--out", str(out)]
    command += ["--volumes", str(folder / "volumes"), "--cache", str(folder / "cache")]
    done = subprocess.run(
        command, env=environment(threads), capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"finetune run failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    status = yaml.safe_load((out / "status.yaml").read_text())["status"]
    rows, best = status["trialTable"], status["best"]
    return {
        "steps": sum(row["step"] for row in rows),
        "seconds": sum(row["workerSeconds"] for row in rows),
        "pruned": sum(row.get("pruned", False) for row in rows),
        "proposals": {row["name"]: row.get("set") for row in status["variants"]},
        "winner": best["variant"],
        "value": best["value"],
    }


def compare(options: Any) -> Report:
    """Both sides, once a seed of the search."""
    proposals, epochs = (2, 1) if options.quick else (options.proposals, options.epochs)
    report = Report(
        f"A search of {proposals} proposals on handwritten digits, {epochs} epochs each",
        ("search", "side", "steps", "ended early", "winner", "accuracy (%)", "seconds of training"),
    )
    saved, same = [], []
    with subjects.scratch() as folder:
        subprocess.run([sys.executable, DIGITS, folder / "volumes/data/digits"], check=True, stdout=subprocess.DEVNULL)
        for seed in range(1 if options.quick else options.searches):
            found = {}
            for side in SIDES:
                body = experiment(side, proposals=proposals, epochs=epochs, seed=seed)
                found[side] = one = searched(folder, f"{side} {seed}", body, options.threads)
                note(f"  search {seed}, {side}: {one['steps']} steps, {one['winner']} wins")
                value, seconds = 100 * one["value"], round(one["seconds"])
                report.add(str(seed), side, one["steps"], one["pruned"], one["winner"], value, seconds)
            whole, pruned = (found[side] for side in SIDES)
            if whole["proposals"] != pruned["proposals"]:
                raise RuntimeError("the two searches did not try the same")
            saved.append(1 - pruned["steps"] / whole["steps"])
            same.append(pruned["winner"] == whole["winner"])
    report.figure("steps saved, share", statistics.mean(saved), at_least=0.3)
    report.figure("same winner, share of the searches", statistics.mean(same), at_least=1)
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--searches", type=int, default=2, help="seeds of the search (default: 2)")
    parser.add_argument("--proposals", type=int, default=16, help="of a search (default: 16)")
    parser.add_argument("--epochs", type=int, default=10, help="of a trial (default: 10)")
    options = parser.parse_args()
    compare(options).print(as_json=options.json)


if __name__ == "__main__":
    main()
