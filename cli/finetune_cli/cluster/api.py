"""Requests to a cluster's API server: JSON in, JSON out.

Invariant: whatever goes wrong leaves here as a ``ClusterError``: one line, and an exit code.
"""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes.client import ApiClient, ApiException

from finetune_api.base import GROUP
from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.access import Access, load
from finetune_cli.cluster.errors import ClusterError, not_configured, not_reached
from finetune_operator.kinds import Kind

NAME = "kubectl-finetune"
"""The field manager of what is patched."""
CONNECT_SECONDS, ANSWER_SECONDS = 10, 30
QUIET_SECONDS = 60
"""A stream that says nothing for so long is opened anew: its other end may be gone."""
_CHUNK_BYTES = 65_536
_WATCH_SECONDS = 300
Document = dict[str, Any]
_Where = tuple[str | None, str | None, str | None]
"""Namespace, name and subresource."""
_JSON = "application/json"
_MERGE = "application/merge-patch+json"


class Cluster:
    """A cluster, and the namespace that is meant."""

    def __init__(self, access: Access) -> None:
        """Find it; nothing is asked of it yet.

        Raises:
            ClusterError: No kubeconfig leads to a cluster.
        """
        self._configuration, self.namespace = load(access)
        self._client = ApiClient(self._configuration)

    @property
    def host(self) -> str:
        """Where its API server is, without the scheme."""
        return str(self._configuration.host).partition("://")[2]

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Document:
        """An object."""
        return self._json("get", kind, namespace or self.namespace, name)

    def read_all(self, kind: Kind, namespace: str | None, **query: str) -> Document:
        """The list of all objects (of every namespace, if none is given), with its resourceVersion."""
        pages = [self._json("list", kind, namespace, query={"limit": "500", **query})]
        while token := (pages[-1].get("metadata") or {}).get("continue"):
            pages.append(self._json("list", kind, namespace, query={"limit": "500", **query, "continue": token}))
        return {**pages[0], "items": [item for page in pages for item in page.get("items") or []]}

    def patch(self, kind: Kind, name: str, body: Document) -> Document:
        """Merge patch (RFC 7386); a resourceVersion or uid in it must be that of the object, else status 409."""
        return self._json("patch", kind, self.namespace, name, query={"fieldManager": NAME}, body=body)

    def watch(
        self, kind: Kind, namespace: str | None, version: str, seconds: int = _WATCH_SECONDS
    ) -> Iterator[Document]:
        """Events after a resourceVersion, until the API server ends the stream: after so many seconds, or earlier."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            "allowWatchBookmarks": "true",
        }
        quiet_seconds = seconds + min(30, seconds)
        for line in self._lines("watch", kind, (namespace, None, None), query, quiet_seconds=quiet_seconds):
            yield json.loads(line)

    def read_log(self, kind: Kind, name: str, **query: str) -> Iterator[str]:
        """Lines of a pod's log, without their ends; with ``follow``, until it is quiet for a while or ends."""
        where, quiet = (self.namespace, name, "log"), QUIET_SECONDS if "follow" in query else None
        for line in self._lines("get", kind, where, query, quiet_seconds=quiet):
            yield line.decode(errors="replace").removesuffix("\r")

    def _json(
        self,
        verb: str,
        kind: Kind,
        namespace: str | None,
        name: str | None = None,
        query: dict[str, str] | None = None,
        body: Document | None = None,
    ) -> Document:
        answer = self._ask(verb, kind, (namespace, name, None), query or {}, body, ANSWER_SECONDS)
        try:
            document: Document = json.loads(answer.data)
        except (ValueError, urllib3.exceptions.HTTPError, OSError) as error:
            raise not_reached(self._configuration.host, error) from error
        return document

    def _lines(
        self, verb: str, kind: Kind, where: _Where, query: dict[str, str], *, quiet_seconds: int | None
    ) -> Iterator[bytes]:
        """Lines as they come. A stream that is quiet for ``quiet_seconds`` counts as ended; None: that is a fault."""
        answer = self._ask(verb, kind, where, query, None, quiet_seconds or ANSWER_SECONDS)
        rest = b""
        try:
            while chunk := answer.read1(_CHUNK_BYTES):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if not isinstance(error, urllib3.exceptions.ReadTimeoutError) or quiet_seconds is None:
                raise not_reached(self._configuration.host, _why(error)) from error
        finally:
            answer.close()
        if rest:
            yield rest

    def _ask(
        self,
        verb: str,
        kind: Kind,
        where: _Where,
        query: dict[str, str],
        body: Document | None,
        seconds: int,
    ) -> Any:
        method = "PATCH" if verb == "patch" else "GET"
        path = quote(kind.path(*where))
        headers = {"Accept": "*/*", "Content-Type": _MERGE if body else _JSON, "User-Agent": NAME}
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            timeout = (CONNECT_SECONDS, seconds)
            answer = self._client.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout
            ).response
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise _error(verb, kind, where, answer.status, answer.data)
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise not_reached(self._configuration.host, _why(error)) from error
        return answer


def _error(verb: str, kind: Kind, where: _Where, status: int, content: bytes) -> ClusterError:
    """What the API server's refusal comes to."""
    told = _message(content)
    if status == HTTPStatus.UNAUTHORIZED:
        return ClusterError(ExitCode.DENIED, "the cluster does not know you (401): log in again", status)
    if status == HTTPStatus.FORBIDDEN:
        return ClusterError(ExitCode.DENIED, _forbidden(verb, kind, where, told), status)
    if status == HTTPStatus.NOT_FOUND and kind.group == GROUP and told is None:
        return not_configured(f"this cluster knows no {kind.name}s: the operator is not installed (docs/cluster.md)")
    if status == HTTPStatus.NOT_FOUND:
        return ClusterError(ExitCode.NOT_FOUND, told or "not found", status)
    passing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (
        HTTPStatus.CONFLICT,
        HTTPStatus.GONE,
        HTTPStatus.TOO_MANY_REQUESTS,
    )
    code = ExitCode.RETRY if passing else ExitCode.BAD_SPEC
    return ClusterError(code, f"the cluster refuses ({status}): {told or 'no reason given'}", status)


def _forbidden(verb: str, kind: Kind, where: _Where, told: str | None) -> str:
    namespace, _, subresource = where
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    group = f" of {kind.group}" if kind.group else ""
    place = f"in namespace {namespace}" if namespace else "in all namespaces"
    missing = f"you may not {verb} {resource}{group} {place}: a {'Role' if namespace else 'ClusterRole'} must grant it"
    _, found, who = (told or "").partition('User "')
    return f'{missing} to user "{who.partition(chr(34))[0]}"' if found else missing


def _message(content: bytes) -> str | None:
    """Of the Status that the API server answers with; None if it is none, as for a path that nobody serves."""
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _why(error: Exception) -> object:
    """The last of what a nested error says, in one line."""
    text = str(getattr(error, "reason", None) or error)
    return text.rpartition(": ")[2].strip("()'\n ") or type(error).__name__
