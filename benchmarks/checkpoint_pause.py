"""How long a checkpoint holds up training: our Checkpointer beside Accelerator.save_state, in the same loop.

MiniLM with AdamW's state (270 MB in all) is trained on the CPU and saved every few steps.
  pause   what the loop waits per save, measured around the calls: `save` and the `before_update` that follows it;
          or `save_state`
  extra   how much longer the loop takes per save than the same loop without saves: a thread that writes in the
          background takes some of the CPU

    python benchmarks/checkpoint_pause.py
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import subjects
from measure import Record, Report, arguments, in_fresh_process, in_turn, median

SIDES = ("none", "ours", "save_state")
KEEP_LAST = 2


def train(settings: Record) -> Record:
    """One side: seconds of the loop, and those that each save held it up."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(subjects.minilm(), num_labels=12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    with subjects.scratch() as folder:
        project = ProjectConfiguration(str(folder), automatic_checkpoint_naming=True, total_limit=KEEP_LAST)
        accelerator = Accelerator(cpu=True, project_config=project)
        if settings["side"] == "save_state":
            model, optimizer = accelerator.prepare(model, optimizer)
        saver = SAVERS[settings["side"]](folder, model, optimizer, accelerator)
        ids = torch.randint(1000, 20_000, (settings["batch"], 64))
        labels = torch.randint(0, 12, (settings["batch"],))
        model.train()
        pauses: list[float] = []
        started = time.perf_counter()
        for step in range(1, settings["steps"] + 1):
            model(input_ids=ids, labels=labels).loss.backward()
            waited = _seconds(saver.before_update)
            optimizer.step()
            optimizer.zero_grad()
            if pauses:
                pauses[-1] += waited
            if step % settings["every"] == 0:
                pauses.append(_seconds(lambda at=step: saver.save(at)))
        wall = time.perf_counter() - started
        saver.finish()
    return {"wallSeconds": wall, "saves": len(pauses), "pauseSeconds": statistics.median(pauses) if pauses else 0.0}


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class NoSaves:
    """The loop alone."""

    def __init__(self, _folder: Path, model: Any, optimizer: Any, accelerator: Any) -> None:
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator

    def save(self, step: int) -> None:
        """Nothing."""

    def before_update(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class SaveState(NoSaves):
    """Accelerate's own."""

    def save(self, step: int) -> None:  # noqa: ARG002 - Accelerate counts by itself
        """Everything at once, while the loop waits."""
        self.accelerator.save_state()


class Ours(NoSaves):
    """Our Checkpointer, as the loop calls it."""

    def __init__(self, folder: Path, model: Any, optimizer: Any, accelerator: Any) -> None:
        from finetune_trainer.snapshot import Checkpointer

        super().__init__(folder, model, optimizer, accelerator)
        self.checkpointer = Checkpointer(
            folder,
            rank=0,
            world_size=1,
            is_sharded=False,
            keep_last=KEEP_LAST,
            before_publish=lambda: None,
            on_saved=lambda _step, _path: None,
        )

    def save(self, step: int) -> None:
        """Start a copy."""
        from finetune_trainer.snapshot import state_tensors

        tensors = state_tensors(self.model, self.optimizer, whole=False)
        self.checkpointer.save({"step": step}, tensors, best_step=None)

    def before_update(self) -> None:
        """Wait for what is left of the copy."""
        self.checkpointer.before_update()

    def finish(self) -> None:
        """Wait for the last one to be written."""
        self.checkpointer.wait()


SAVERS = {"none": NoSaves, "ours": Ours, "save_state": SaveState}


def compare(options: Any) -> Report:
    """Every side in turn."""
    settings = {"steps": options.saves * options.every + 2, "every": options.every, "batch": options.batch}

    def measure(side: str, _repeat: int) -> Record:
        return in_fresh_process(__file__, {**settings, "side": side}, threads=options.threads, timeout_seconds=900)

    records = in_turn(SIDES, options.repeats, measure)
    bare = median(records["none"], "wallSeconds")
    title = f"A save every {options.every} steps, {options.threads} threads, medians of {options.repeats}"
    report = Report(title, ("side", "saves", "pause ms", "extra ms", "loop s"))
    pause, extra = {}, {}
    for side in SIDES[1:]:
        rows = records[side]
        saves = int(rows[0]["saves"])
        wall = median(rows, "wallSeconds")
        pause[side], extra[side] = 1000 * median(rows, "pauseSeconds"), 1000 * (wall - bare) / saves
        report.add(side, saves, pause[side], extra[side], wall)
    report.add("none", 0, 0.0, 0.0, bare)
    report.figure("pause, ours / save_state", pause["ours"] / pause["save_state"], at_most=0.25)
    report.figure("extra, ours / save_state", extra["ours"] / extra["save_state"])
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--saves", type=int, default=8, help="saves of a run (default: 8)")
    parser.add_argument("--every", type=int, default=8, help="steps between saves (default: 8)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step, 64 tokens each (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(train(options.worker)))
        return
    if options.quick:
        options.saves, options.every, options.batch, options.repeats = 2, 1, 2, 1
    compare(options).print(as_json=options.json)


if __name__ == "__main__":
    main()
