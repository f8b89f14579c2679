"""``finetune suspend`` and ``finetune resume``: ``spec.suspend``, and what follows from it in words.

Invariant: only what was looked at is changed: the patch carries its uid and resourceVersion.
"""

from http import HTTPStatus

from finetune_api.outcomes import ExitCode
from finetune_api.status import Phase
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.experiments import KnownExperiment, read_known
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.printing import say
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB
from finetune_operator.status import open_attempt

_TRIES = 8
"""The operator writes the job's status meanwhile, a few times a minute."""
_TRIALS_LEAVE = "its trials save, then leave and free their resources; finetune resume {} lets them go on"
_TRIALS_GO_ON = "its trials go on from their newest checkpoints"


def suspend(cluster: Cluster, name: str) -> int:
    """Have the job, or the experiment's trials, save, stop and hold no resources."""
    known, changed = _set(cluster, name, suspend=True)
    told = _when_suspended(known) if isinstance(known, KnownJob) else _TRIALS_LEAVE.format(name)
    say(f"{name}: {'suspended' if changed else 'is suspended already'}; {told}")
    return ExitCode.DONE


def resume(cluster: Cluster, name: str) -> int:
    """Have the job, or the experiment's trials, go on from the newest checkpoint."""
    known, changed = _set(cluster, name, suspend=False)
    told = _when_resumed(known, changed=changed) if isinstance(known, KnownJob) else _TRIALS_GO_ON
    say(f"{name}: {'resumed' if changed else 'is not suspended'}; {told}")
    return ExitCode.DONE


def _set(cluster: Cluster, name: str, *, suspend: bool) -> tuple[KnownJob | KnownExperiment, bool]:
    """The job or experiment as it was, and whether it was changed."""
    known = read_known(cluster, name)
    uid = known.uid
    for _ in range(_TRIES):
        if known.uid != uid:
            break
        if known.is_finished:
            raise ClusterError(ExitCode.BAD_SPEC, f"{name}: has {known.status.phase.lower()} already; nothing was done")
        if known.suspend is suspend:
            return known, False
        try:
            metadata = {"uid": known.uid, "resourceVersion": known.version}
            kind = FINE_TUNE_JOB if isinstance(known, KnownJob) else FINE_TUNE_EXPERIMENT
            cluster.patch(kind, name, {"metadata": metadata, "spec": {"suspend": suspend}})
        except ClusterError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            known = read_known(cluster, name)
        else:
            return known, True
    raise ClusterError(ExitCode.RETRY, f"{name}: was changed by somebody else at every try; nothing was done")


def _when_suspended(known: KnownJob) -> str:
    attempt = open_attempt(known.status)
    back = f"finetune resume {known.name} lets it go on"
    if attempt is None or known.status.phase is Phase.SUSPENDED:
        return f"nothing of it runs{_saved(known)}; {back}"
    where = f" at step {known.status.progress.step}" if known.status.progress else ""
    return f"attempt {attempt.number}{where} saves, then leaves and frees its resources; {back}"


def _saved(known: KnownJob) -> str:
    saved = known.status.last_checkpoint
    return f", step {saved.step} is saved" if saved else ", and it has not saved anything yet"


def _when_resumed(known: KnownJob, *, changed: bool) -> str:
    if not changed:
        return f"its phase is {known.status.phase}"
    saved = known.status.last_checkpoint
    start = f"it goes on from step {saved.step}" if saved else "it starts from the beginning, for nothing was saved"
    queue = known.job.spec.queue if known.job else None
    return f"{start}{f', once queue {queue} admits it' if queue else ''}"
