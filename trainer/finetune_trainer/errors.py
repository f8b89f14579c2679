"""What can end a trainer, and the exit code that each ending has.

    TrainerError            an expected ending; the message is for the user: field or file, what was found, what to do
    ├── SpecFault       64  the spec does not fit the model, the task or the machine
    ├── DataError       65  a broken row, a label outside the list, an image that does not decode, nothing to train on
    ├── NotFoundError   66  the model or the data is not there
    ├── PeerLostError   75  a peer or the network was lost; the same run again may well succeed
    ├── Diverged        76  loss or gradients became NaN or infinite
    ├── Denied          77  a file or a hub refused access
    ├── PlatformError   78  a full volume, a missing device, a consent that is not given
    └── Preempted      143  asked to leave (SIGTERM); what there was to save is saved

Invariant: errors become exit codes in one place, ``__main__``, which also knows what others' errors mean (memory, disk,
network); whatever is neither is a bug (70).
"""

from typing import ClassVar

from finetune_api.outcomes import ExitCode


class TrainerError(Exception):
    """An expected ending of a trainer process; ``exit_code`` says which."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    """What the process exits with when this is not caught."""


class SpecFault(TrainerError):  # noqa: N818 - as in finetune_api, a fault is the user's to mend
    """The spec is valid by its schema, but does not fit the model, the task or the machine."""

    exit_code = ExitCode.BAD_SPEC


class DataError(TrainerError):
    """The data is wrong; the message names file and line."""

    exit_code = ExitCode.BAD_DATA


class NotFoundError(TrainerError):
    """The model or the data is not there; the message names the field and the path."""

    exit_code = ExitCode.NOT_FOUND


class PeerLostError(TrainerError):
    """A peer or the network was lost."""

    exit_code = ExitCode.RETRY


class Diverged(TrainerError):  # noqa: N818 - what happened to the run, not an error in it
    """Loss or gradients became NaN or infinite."""

    exit_code = ExitCode.DIVERGED


class Denied(TrainerError):  # noqa: N818 - an answer that was given, not an error in the run
    """A file or a hub refused access."""

    exit_code = ExitCode.DENIED


class PlatformError(TrainerError):
    """The platform is misconfigured: the volume is full, the device is missing, consent is not given."""

    exit_code = ExitCode.PLATFORM


class Preempted(TrainerError):  # noqa: N818 - what was asked of the run, not an error in it
    """Asked to leave (SIGTERM); what there was to save is saved."""

    exit_code = ExitCode.PREEMPTED
