"""A job that may run, with everything that its runtime decides filled in: the only input of the builders.

Invariant: what is asked of it here has an answer; nobody looks at a runtime's default or a ceiling after this.
"""

from dataclasses import dataclass
from functools import cached_property

from finetune_api.execution import Volume
from finetune_api.job import FineTuneJob, JobSpec
from finetune_api.runtime import RuntimeSpec
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT
from finetune_operator.names import volume_claim_name
from finetune_operator.trainer_spec import trainer_spec

_UID_CHARACTERS = 8


@dataclass(frozen=True)
class Resolved:
    """A job that may run, with what it runs on."""

    job: FineTuneJob
    """The job; resources, checkpoint volume and queue that it left open are filled in."""
    runtime: RuntimeSpec
    """What no job can say: image, environment, placement and so on."""

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.metadata.name

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return self.job.metadata.namespace

    @property
    def uid(self) -> str | None:
        """The job's uid; None if it is not stored in a cluster."""
        return (self.job.metadata.model_extra or {}).get("uid")

    @property
    def spec(self) -> JobSpec:
        """The job's spec, filled in."""
        return self.job.spec

    @property
    def volume(self) -> Volume:
        """Where checkpoints and the result are kept."""
        return self.spec.checkpoint.volume or self.runtime.volume

    @property
    def access_mode(self) -> str:
        """How the claim that is made for the job may be mounted."""
        return self.volume.access_mode or ("ReadWriteOnce" if self.spec.distributed.workers == 1 else "ReadWriteMany")

    @property
    def run_claim(self) -> str:
        """The claim that holds the run's folder: the user's or the runtime's, or the one that is made for the job."""
        return self.volume.claim_name or volume_claim_name(self.name)

    @property
    def run_folder(self) -> str:
        """The run's folder in its claim; ``pvc://<run_claim>/<run_folder>/model`` is the trained model.

        The uid is part of it: a job that is deleted and made again is another run, and must not go on from the
        checkpoints of its namesake.
        """
        return f"{self.name}-{self.uid[:_UID_CHARACTERS]}" if self.uid else self.name

    @property
    def cache_claim(self) -> str | None:
        """The claim in which an experiment's trials share what they make ready; None if nothing outlives a trial."""
        return None if self.cache_folder is None else self.volume.claim_name or self.runtime.model_cache

    @property
    def cache_folder(self) -> str | None:
        """The folder in it; None of a job that is no trial."""
        owners = (self.job.metadata.model_extra or {}).get("ownerReferences", [])
        owner = next((one for one in owners if one.get("kind") == FINE_TUNE_EXPERIMENT.name), None)
        return f"{owner['name']}-{owner['uid'][:_UID_CHARACTERS]}-cache" if owner else None

    @cached_property
    def trainer_spec(self) -> str:
        """The job as the trainer reads it."""
        return trainer_spec(self.job)

    @cached_property
    def source_claims(self) -> tuple[str, ...]:
        """Claims that sources name (``pvc://claim/path``), each once, in the order of the fields."""
        claims = (claim_of(source) for source in self.spec.sources.values())
        return tuple(dict.fromkeys(claim for claim in claims if claim is not None))


def claim_of(source: str) -> str | None:
    """The claim of ``pvc://claim/path``; None of any other source."""
    scheme, _, rest = source.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None
