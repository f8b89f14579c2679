"""Names of the files that the processes of one worker leave for its launcher, in FINETUNE_SCRATCH."""

from pathlib import Path


def heartbeat_path(scratch: Path, local_rank: int) -> Path:
    """Touched by a process whenever something progresses."""
    return scratch / f"heartbeat-{local_rank}"


def rank_message_path(scratch: Path, rank: int) -> Path:
    """The TerminationMessage of one process."""
    return scratch / f"rank-{rank}.json"
