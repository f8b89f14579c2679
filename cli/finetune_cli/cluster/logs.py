"""``finetune logs``: what the workers of an attempt print, and of those that follow it."""

import sys

from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.follow import Follower
from finetune_cli.cluster.jobs import KnownJob, read_known_job
from finetune_cli.cluster.workers import Wanted, WorkerPod, absent, chosen, newest_text, prefixed, read_pods
from finetune_cli.printing import say
from finetune_operator.kinds import POD
from finetune_operator.names import TRAINER_CONTAINER

MAX_STREAMS = 64
"""Workers that are followed at a time: each takes a connection to the API server and one to its node."""


def show_logs(cluster: Cluster, name: str, wanted: Wanted) -> int:
    """Print the logs.

    Returns:
        0; 75 if a worker that was asked for has not begun to print; 66 if there is no such worker or attempt.
    """
    known = read_known_job(cluster, name)
    _check(known, wanted)
    prefix = known.job is not None and known.job.spec.distributed.workers > 1 and wanted.worker is None
    if wanted.follow:
        Follower(cluster, known, wanted, prefix=prefix).follow()
        return ExitCode.DONE
    pods = chosen(read_pods(cluster, known), wanted)
    if not pods:
        raise absent(known, wanted)
    for pod in pods:
        if pod.has_begun:
            _print_log(cluster, pod, wanted, prefix=prefix)
    late = [pod for pod in pods if not pod.has_begun]
    for pod in late:
        print(f"{pod.who} prints nothing yet: {pod.waits_for}", file=sys.stderr)
    return ExitCode.RETRY if late else ExitCode.DONE


def _check(known: KnownJob, wanted: Wanted) -> None:
    """Refuse what cannot be: a worker or attempt that the job does not have, more streams than we open."""
    workers = known.job.spec.distributed.workers if known.job else None
    if workers is not None and wanted.worker is not None and wanted.worker >= workers:
        has = "one worker, 0" if workers == 1 else f"workers 0 to {workers - 1}"
        raise ClusterError(ExitCode.NOT_FOUND, f"{known.name}: has no worker {wanted.worker}; it has {has}")
    if workers is not None and workers > MAX_STREAMS and wanted.follow and wanted.worker is None:
        told = f"{known.name}: has {workers} workers, and {MAX_STREAMS} can be followed at a time; name one by --worker"
        raise ClusterError(ExitCode.BAD_SPEC, told)
    newest = known.status.attempts[-1].number if known.status.attempts else 0
    if wanted.attempt is not None and wanted.attempt > max(newest, 1) and not wanted.follow:
        raise ClusterError(ExitCode.NOT_FOUND, f"{known.name}: has no attempt {wanted.attempt}; {newest_text(newest)}")


def _print_log(cluster: Cluster, pod: WorkerPod, wanted: Wanted, *, prefix: bool) -> None:
    query = {"container": TRAINER_CONTAINER, **({"tailLines": str(wanted.tail)} if wanted.tail is not None else {})}
    for line in cluster.read_log(POD, pod.name, **query):
        if not say(prefixed(line, pod, prefix=prefix)):
            return
