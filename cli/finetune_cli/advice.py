"""What to do about a run that has failed."""

from dataclasses import asdict, dataclass

from finetune_api.outcomes import Cause, ExitCode
from finetune_api.status import Attempt, Reason
from finetune_api.wiring import STACKS_FILE


@dataclass(frozen=True)
class Place:
    """How a run is tried again where it ran."""

    another: str
    """With a changed spec."""
    again: str
    """As it is."""
    goes_on: str
    """From where it was, if it can."""
    tries: str
    whose: str
    """Whose rights count."""


HERE = Place(
    another="then run with another --out, or remove the folder",
    again="give the same command again",
    goes_on="the same command goes on from the last checkpoint",
    tries="The same command tries again",
    whose="this user",
)
CLUSTER = Place(
    another="then make the job anew (the spec of one that is there is fixed)",
    again="make the job anew",
    goes_on="a job that is made anew starts from the beginning",
    tries="A job that is made anew tries again",
    whose="the job's pods",
)
_BY_EXIT_CODE = {
    ExitCode.BAD_SPEC: "Correct the field that is named above, {another}.",
    ExitCode.BAD_DATA: "Correct the data that is named above, and {again}.",
    ExitCode.NOT_FOUND: "Put the file there and {again}; or correct its path, {another}.",
    ExitCode.DIVERGED: "Lower spec.strategy.learningRate or set spec.training.maxGradNorm, {another}.",
    ExitCode.DENIED: "Give {whose} access to what is named above, and {again}.",
    ExitCode.PLATFORM: "Put right what is named above (space, device, consent), and {again}.",
}
_BY_CAUSE = {
    Cause.OUT_OF_MEMORY: "Raise spec.training.gradientAccumulation or lower spec.data.maxLength, {another}.",
    Cause.INFRASTRUCTURE: "Look in the log for what was lost; {goes_on}.",
    Cause.STALLED: f"Look where the processes stood ({STACKS_FILE} beside the termination message, under attempts/).",
    Cause.APPLICATION: "Nobody foresaw this error: the log has it in full. {tries}.",
}
_UNKNOWN = "Look into the log."


def advise(reason: Reason, latest: Attempt | None, place: Place) -> str:
    """What to do, in a sentence, after the job failed for ``reason`` with ``latest`` as its last attempt."""
    return _template(reason, latest).format(**asdict(place))


def _template(reason: Reason, latest: Attempt | None) -> str:
    if reason is Reason.DEADLINE_EXCEEDED:
        return "Raise spec.activeDeadlineSeconds; {goes_on}."
    if latest is None or latest.cause is None:
        return _UNKNOWN
    if latest.cause is Cause.CONFIGURATION and latest.exit_code in set(ExitCode):
        return _BY_EXIT_CODE.get(ExitCode(latest.exit_code), _UNKNOWN)
    return _BY_CAUSE.get(latest.cause, _UNKNOWN)
