"""What a cluster (Kubernetes or the local machine) and the trainer agree upon: variables and the files of a run.

A worker is started as ``python -m finetune_trainer.launch`` with the variables below and no arguments. It starts one
process a device, ends them together, and leaves a ``TerminationMessage``. Worker 0's rank 0 serves ``/progress`` and
``/metrics``. SIGTERM asks it to save and leave (exit code 143).
"""

from enum import StrEnum
from pathlib import Path


class Variable(StrEnum):
    """Environment variables of a worker."""

    JOB = "FINETUNE_JOB"
    """Path of the resolved FineTuneJob, as JSON."""
    RUN = "FINETUNE_RUN"
    """The run's folder, shared by all workers and kept over attempts (see RunFolder)."""
    ATTEMPT = "FINETUNE_ATTEMPT"
    """Number of the attempt, 1 for the first."""
    WORKER = "FINETUNE_WORKER"
    """Index of this worker, 0 to workers - 1."""
    MASTER_ADDRESS = "MASTER_ADDR"
    """Host name of worker 0, as torch.distributed has it."""
    MASTER_PORT = "MASTER_PORT"
    """Port of the rendezvous on worker 0, as torch.distributed has it."""
    SCRATCH = "FINETUNE_SCRATCH"
    """Folder of this worker and attempt: heartbeats, stack dumps, the address of the progress server."""
    TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
    """File that the termination message is written to."""
    PROGRESS_ADDRESS = "FINETUNE_PROGRESS_ADDRESS"
    """host:port that rank 0 serves on; port 0 takes a free one. What it took stands in SCRATCH/progress.address."""
    CACHE = "FINETUNE_CACHE"
    """Folder of prepared data, shared by runs. Unset: ~/.cache/finetune-operator."""
    VOLUMES = "FINETUNE_VOLUMES"
    """Folder under which claims are mounted by name (pvc://claim/path). Unset: /volumes."""


PROGRESS_ADDRESS_FILE = "progress.address"
STACKS_FILE = "stacks.txt"


class RunFolder:
    """Where everything of a run lies; all of it survives a restart."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        """step-<12 digits>/ each; complete once it has this name."""
        self.history = root / "history.jsonl"
        """One JSON line a training step (`kind: step`) or evaluation (`kind: evaluation`)."""
        self.passes = root / "passes.json"
        """With `batchSize: auto`: the largest pass that was found to fit."""
        self.attempts = root / "attempts.jsonl"
        """One JSON line when an attempt starts, and one when it ends."""
        self.evaluation = root / "evaluation.json"
        """The final evaluation in detail: metrics, confusion matrix or residuals, the worst examples."""
        self.preparation = root / "preparation.json"
        """What was read and how it was divided: samples a part, labels, lengths in tokens."""
        self.cleaning = root / "cleaning.json"
        """What cleaning found, in numbers and examples."""
        self.findings = root / "cleaning.jsonl"
        """One JSON line a sample that cleaning found something wrong with."""
        self.model = root / "model"
        """The trained model, with tokenizer and model card; merged if it was an adapter."""
        self.adapter = root / "adapter"
        """The LoRA adapter alone."""
        self.report = root / "report.html"
        """The report page, self-contained."""
        self.pictures = root / "pictures"
        """The report's pictures as PNG."""
        self.trackers = root / "trackers"
        """TensorBoard's event files and Weights & Biases' offline runs."""
        self.status = root / "status.yaml"
        """The FineTuneJob with its status (local cluster)."""
        self.events = root / "events.jsonl"
        """One JSON line an event (local cluster)."""
        self.logs = root / "logs"
        """attempt-<n>-worker-<i>.log each (local cluster)."""
