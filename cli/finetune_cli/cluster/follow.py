"""Following logs: of an attempt, and of those after it.

Invariant: no line is printed twice, and none is left out when a stream breaks: it is opened anew at the time of the
last line, and what was printed already is passed by.
"""

import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime

from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.jobs import KnownJob, read_known_job
from finetune_cli.cluster.workers import Wanted, WorkerPod, absent, chosen, prefixed, read_pods, why_no_pods
from finetune_cli.printing import say
from finetune_operator.kinds import POD
from finetune_operator.names import TRAINER_CONTAINER
from finetune_operator.observed import WorkerPhase
from finetune_operator.pods import observe_worker

POLL_SECONDS = 2.0
_BROKEN_SECONDS = 2.0
_TRIES = 5
"""For a log that its node does not hand out, though its container has begun."""


class Follower:
    """Prints the logs of an attempt and of those after it, until the job has finished."""

    def __init__(self, cluster: Cluster, known: KnownJob, wanted: Wanted, *, prefix: bool) -> None:
        self._cluster, self._known, self._wanted, self._prefix = cluster, known, wanted, prefix
        self._streams: dict[str, threading.Thread] = {}
        self._attempt = 0
        self._said = ""
        self._printing = threading.Lock()
        self._is_read = True

    def follow(self) -> None:
        """Returns when the job (or its chosen attempt) is over and every line is printed, or nobody reads them.

        Raises:
            ClusterError: There was nothing to print; exit code 66.
        """
        while not self._look() and self._is_read:
            time.sleep(POLL_SECONDS)
        while self._is_read and any(stream.is_alive() for stream in self._streams.values()):
            time.sleep(POLL_SECONDS / 10)
        if not self._streams and self._is_read:
            raise absent(read_known_job(self._cluster, self._known.name), self._wanted)

    def _look(self) -> bool:
        """Open what is new; returns whether nothing more will come."""
        try:
            known = read_known_job(self._cluster, self._known.name)
            pods = chosen(read_pods(self._cluster, self._known), self._wanted)
        except ClusterError as error:
            if error.code is not ExitCode.RETRY:
                raise
            self._say(f"{error}; asking again")
            return False
        for pod in pods:
            if pod.has_begun and pod.uid not in self._streams:
                self._say_attempt(pod.attempt)
                # A daemon: Ctrl-C need not wait for a trainer's next line.
                self._streams[pod.uid] = threading.Thread(target=self._stream, args=(pod,), daemon=True)
                self._streams[pod.uid].start()
        is_over = known.uid != self._known.uid or known.is_finished or self._has_ended(known)
        late = [pod for pod in pods if not pod.has_begun]
        if late and not is_over:
            self._say(f"{late[0].who} prints nothing yet: {late[0].waits_for}")
        elif not pods and not is_over:
            self._say(f"{known.name}: {why_no_pods(known)}")
        return is_over

    def _has_ended(self, known: KnownJob) -> bool:
        """The one attempt that was asked for has ended."""
        number = self._wanted.attempt
        ended = {one.number for one in known.status.attempts if one.end is not None}
        return number is not None and number in ended

    def _say_attempt(self, number: int) -> None:
        if self._attempt not in (0, number):
            self._say(f"attempt {number} has begun")
        self._attempt = number

    def _say(self, text: str) -> None:
        """To standard error, once."""
        if text != self._said:
            self._said = text
            print(f"-- {text}", file=sys.stderr, flush=True)

    def _stream(self, pod: WorkerPod) -> None:
        """Print a pod's log to its end; a stream that breaks is opened anew."""
        reader, failures = _Reader(self._cluster, pod, self._wanted.tail), 0
        while True:
            try:
                for line in reader.read():
                    failures = 0
                    self._print(prefixed(line, pod, prefix=self._prefix))
            except ClusterError as error:
                failures += 1
                if failures >= _TRIES or error.code is ExitCode.NOT_FOUND:
                    self._say(f"the log of {pod.who} cannot be had: {error}")
                    return
            else:
                if self._is_over(pod):
                    return
            time.sleep(_BROKEN_SECONDS)

    def _print(self, line: str) -> None:
        with self._printing:
            self._is_read = say(line) and self._is_read

    def _is_over(self, pod: WorkerPod) -> bool:
        """Whether the container has ended; the API server ends streams for reasons of its own."""
        try:
            raw = self._cluster.get(POD, pod.name, self._known.namespace)
        except ClusterError as error:
            return error.code is not ExitCode.RETRY
        phase = observe_worker(raw).phase
        states = [one.get("state") or {} for one in (raw.get("status") or {}).get("containerStatuses") or []]
        ended = bool(states) and all("terminated" in state for state in states)
        return ended or raw["metadata"]["uid"] != pod.uid or phase in (WorkerPhase.SUCCEEDED, WorkerPhase.FAILED)


class _Reader:
    """Reads one log, over as many streams as it takes."""

    def __init__(self, cluster: Cluster, pod: WorkerPod, tail: int | None) -> None:
        self._cluster, self._pod, self._tail = cluster, pod, tail
        self._last = ""
        """Time of the last line, to the nanosecond, as the kubelet wrote it."""

    def read(self) -> Iterator[str]:
        """Lines that no stream before has brought, until this stream ends."""
        before = self._last
        for line in self._cluster.read_log(POD, self._pod.name, **self._query()):
            stamp, _, text = line.partition(" ")
            if not before or _order(stamp) > _order(before):
                self._last = stamp
                yield text

    def _query(self) -> dict[str, str]:
        query = {"container": TRAINER_CONTAINER, "follow": "true", "timestamps": "true"}
        if self._last:
            return {**query, "sinceTime": datetime.fromisoformat(self._last).isoformat(timespec="seconds")}
        return {**query, **({"tailLines": str(self._tail)} if self._tail is not None else {})}


def _order(stamp: str) -> tuple[str, str]:
    """Orders times of RFC 3339 in UTC, whose fraction has as many digits as it needs."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return seconds, fraction
