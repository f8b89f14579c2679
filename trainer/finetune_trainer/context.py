"""Where a trainer process finds itself: its job, folders and rank, read once from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.job import FineTuneJob
from finetune_api.load import read_job
from finetune_api.wiring import RunFolder, Variable


@dataclass(frozen=True)
class Context:
    """One process of a run."""

    job: FineTuneJob
    run: RunFolder
    scratch: Path
    cache: Path
    volumes: Path
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    progress_address: tuple[str, int]

    @property
    def is_main(self) -> bool:
        """Rank 0: the process that writes and reports."""
        return self.rank == 0


def read_context(environment: Mapping[str, str] = os.environ) -> Context:
    """The context that the variables of ``finetune_api.wiring`` and of torch.distributed tell of.

    Raises:
        SpecError: The job is not valid.
        KeyError: FINETUNE_JOB or FINETUNE_RUN is not set.
    """
    run = Path(environment[Variable.RUN])
    host, _, port = environment.get(Variable.PROGRESS_ADDRESS, "127.0.0.1:0").rpartition(":")
    return Context(
        job=read_job(Path(environment[Variable.JOB])),
        run=RunFolder(run),
        scratch=Path(environment.get(Variable.SCRATCH, run)),
        cache=Path(environment.get(Variable.CACHE, Path.home() / ".cache" / "finetune-operator")),
        volumes=Path(environment.get(Variable.VOLUMES, "/volumes")),
        attempt=int(environment.get(Variable.ATTEMPT, "1")),
        rank=int(environment.get("RANK", "0")),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        world_size=int(environment.get("WORLD_SIZE", "1")),
        local_world_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
        progress_address=(host, int(port)),
    )
