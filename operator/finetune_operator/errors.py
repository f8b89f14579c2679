"""What can go wrong on the way to the API server.

OperatorError
├── ApiError: it said no, or could not be reached
├── NotLeading: another replica may write, this one may not
├── DeafWatch: it tells lists what it does not tell a watch
└── Obstacle: it does not take a job's objects, and only people can change that
"""

from http import HTTPStatus


class OperatorError(Exception):
    """Anything that a reconcile can fail with and that is no bug."""


class ApiError(OperatorError):
    """A request that failed: ``status`` is the HTTP status, 0 if there was no answer; ``reason`` Kubernetes' word.

    ``message`` is for users, who need not know which request it was; the text of the error tells that as well.
    """

    def __init__(
        self, status: int, message: str, reason: str = "", retry_after_seconds: float = 0.0, request: str = ""
    ) -> None:
        super().__init__(f"{request}: {status or 'no answer'}: {message}".removeprefix(": "))
        self.status, self.message, self.reason = status, message, reason
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_taken(self) -> bool:
        """An object of this name is there already."""
        return self.reason == "AlreadyExists"

    def is_absence_of(self, name: str) -> bool:
        """There is no object of this name; not merely no such kind."""
        return self.status == HTTPStatus.NOT_FOUND and f'"{name}" not found' in self.message

    @property
    def is_refusal(self) -> bool:
        """The request itself is the reason: the same again fails until somebody changes something."""
        passing = (
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.GONE,
            HTTPStatus.REQUEST_TIMEOUT,
            HTTPStatus.TOO_MANY_REQUESTS,
        )
        return HTTPStatus.BAD_REQUEST <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR and self.status not in passing


class NotLeading(OperatorError):  # noqa: N818 - it is no error, but the end of a term
    """A write was about to happen without the lease."""


class DeafWatch(OperatorError):  # noqa: N818 - what it is called
    """A watch is open, and tells of nothing that happens."""


class Obstacle(OperatorError):  # noqa: N818 - the word that the job's condition uses
    """What is in the way of a job's objects, in a sentence for its user."""


def taken(kind: str, name: str, owner: str = "job") -> Obstacle:
    """Somebody else's object is in the place of one of a job's, or of an experiment's."""
    told = f"there is a {kind} {name} that is not this {owner}'s"
    return Obstacle(f"{told}; delete it, or give this {owner} another name")
