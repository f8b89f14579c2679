"""Exit codes of the trainer, the causes they stand for, and which of them earn another attempt.

The numbers are sysexits' (https://man.freebsd.org/cgi/man.cgi?sysexits), so that a shell user reads them as well.
"""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a trainer process ended."""

    DONE = 0
    """The run is finished: trained, evaluated and exported."""
    BAD_SPEC = 64
    """The spec is wrong: an unknown field, or a value outside its range."""
    BAD_DATA = 65
    """The data is wrong: a broken row, a label outside the list, an image that does not decode, nothing to train on."""
    NOT_FOUND = 66
    """The model or the data is not there."""
    BUG = 70
    """An error that nobody foresaw."""
    RETRY = 75
    """A peer or the network was lost; the same run again may well succeed."""
    DIVERGED = 76
    """Loss or gradients became NaN or infinite."""
    DENIED = 77
    """A file or a hub refused access."""
    PLATFORM = 78
    """The platform is misconfigured: the volume is full, the device is missing, consent is not given."""
    KILLED = 137
    """SIGKILL: most often the kernel's out-of-memory killer."""
    PREEMPTED = 143
    """SIGTERM: the checkpoint is saved and the run can go on elsewhere."""


class Cause(StrEnum):
    """Why an attempt ended before the run was finished; each has its own budget of restarts."""

    PREEMPTED = "Preempted"
    """Asked to leave (SIGTERM, eviction); free, for nothing went wrong."""
    INFRASTRUCTURE = "Infrastructure"
    """A node, a peer or the network was lost."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The memory limit or the device's memory was exceeded."""
    APPLICATION = "Application"
    """The trainer failed in a way that nobody foresaw."""
    CONFIGURATION = "Configuration"
    """Spec, data, model or platform are wrong: trying again would change nothing, so it is never retried."""
    STALLED = "Stalled"
    """No step, evaluation or preparation progressed within the stall time-out."""


_CAUSES = {
    ExitCode.BAD_SPEC: Cause.CONFIGURATION,
    ExitCode.BAD_DATA: Cause.CONFIGURATION,
    ExitCode.NOT_FOUND: Cause.CONFIGURATION,
    ExitCode.BUG: Cause.APPLICATION,
    ExitCode.RETRY: Cause.INFRASTRUCTURE,
    ExitCode.DIVERGED: Cause.CONFIGURATION,
    ExitCode.DENIED: Cause.CONFIGURATION,
    ExitCode.PLATFORM: Cause.CONFIGURATION,
    ExitCode.KILLED: Cause.OUT_OF_MEMORY,
    ExitCode.PREEMPTED: Cause.PREEMPTED,
}


def cause_of(exit_code: int) -> Cause:
    """The cause that an exit code alone tells of; a code that is not ours counts as Application."""
    return _CAUSES.get(ExitCode(exit_code), Cause.APPLICATION) if exit_code in _CAUSES else Cause.APPLICATION
