"""What can go wrong between the command and a cluster, as one line and an exit code."""

from finetune_api.outcomes import ExitCode


class ClusterError(Exception):
    """One line that says what went wrong and what to do; ``status`` is the HTTP status, 0 if there was no answer."""

    def __init__(self, code: ExitCode, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def not_configured(message: str) -> ClusterError:
    """The kubeconfig leads to no cluster."""
    return ClusterError(ExitCode.PLATFORM, message)


def not_reached(host: str, why: object) -> ClusterError:
    """Nobody answered; the same again may well succeed."""
    return ClusterError(ExitCode.RETRY, f"the cluster at {host} does not answer: {why}")
