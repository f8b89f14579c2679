"""Requests to the API server: JSON in, JSON out, on ``kubernetes.aio``'s connections and credentials.

The generated classes are passed by: turning each answer into objects costs more than the rest of a reconcile. Nothing
is tried again here; whoever asks knows when (the queue's back-off, the next look).

Invariant: every write asks ``may_write`` first, so that a replica that is not (or no longer) the leader writes nothing.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from pydantic_core import from_json

from finetune_operator.errors import ApiError, NotLeading
from finetune_operator.kinds import Kind
from finetune_operator.names import MANAGER

TIMEOUT_SECONDS = 30.0
PAGE = 500
_MESSAGE_CHARACTERS = 800
Document = dict[str, Any]


async def load_configuration() -> Configuration:
    """The service account's in a cluster, the kubeconfig's elsewhere (KUBECONFIG, or its usual place)."""
    # Else aiohttp asks the environment about proxies, twice a request, each time in a thread, and itself about cookies.
    configuration = Configuration(client_session_kwargs={"trust_env": False, "cookie_jar": aiohttp.DummyCookieJar()})
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


class Api:
    """One client for everything that the operator itself asks."""

    def __init__(
        self,
        client: ApiClient,
        *,
        may_write: Callable[[], bool] = lambda: True,
        told: Callable[[str, int], None] = lambda _verb, _status: None,
    ) -> None:
        """Use a client's connections.

        Args:
            client: Of ``kubernetes.aio``.
            may_write: Whether this process may write now.
            told: Called after each request with its verb and HTTP status (0 if there was no answer).
        """
        self._client, self._may_write, self._told = client, may_write, told

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Document:
        """An object.

        Raises:
            ApiError: As every request here.
        """
        return await self._request("GET", kind.path(namespace, name))

    async def pages(self, kind: Kind, namespace: str | None, **query: str) -> AsyncIterator[list[Document]]:
        """All objects of a kind (in a namespace, if one is given), up to PAGE at a time."""
        query = {"limit": str(PAGE), **({"labelSelector": kind.selector} if kind.selector else {}), **query}
        token = ""
        while True:
            asked = {**query, "continue": token} if token else query
            answer = await self._request("GET", kind.path(namespace), query=asked)
            named = {"kind": kind.name, "apiVersion": kind.api_version}
            yield [{**named, **item} for item in answer.get("items") or []]
            token = (answer.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    async def create(self, kind: Kind, namespace: str, manifest: Document) -> Document:
        """The object as made. 409 if there is one of this name."""
        return await self._write("POST", kind.path(namespace), manifest, {"fieldManager": MANAGER})

    async def apply(self, kind: Kind, manifest: Document, *, overwrite: bool) -> Document:
        """Server-side apply over what is there, or, if nothing may be overwritten, a create: 409 if something is.

        A server-side apply cannot be told to leave alone what is there: it merges into a stranger's object of the name.
        """
        metadata = manifest["metadata"]
        if not overwrite:
            return await self.create(kind, metadata["namespace"], manifest)
        path = kind.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._write("PATCH", path, manifest, query, "application/apply-patch+yaml")

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Document) -> Document:
        """Merge patch (RFC 7386)."""
        query = {"fieldManager": MANAGER}
        return await self._write("PATCH", kind.path(namespace, name), patch, query, "application/merge-patch+json")

    async def replace(self, kind: Kind, manifest: Document, subresource: str | None = None) -> Document:
        """PUT; 409 if the object is no longer at the manifest's resourceVersion."""
        metadata = manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"], subresource)
        return await self._write("PUT", path, manifest, {"fieldManager": MANAGER})

    async def delete(self, kind: Kind, namespace: str, name: str, preconditions: Document) -> None:
        """Delete an object that is as ``preconditions`` (uid, resourceVersion) say, else 409; what it owns follows."""
        options = {"propagationPolicy": "Background", "preconditions": preconditions}
        await self._write("DELETE", kind.path(namespace, name), options)

    async def _write(
        self,
        verb: str,
        path: str,
        body: Document,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Document:
        if not self._may_write():
            raise NotLeading(f"{verb} {path}")
        return await self._request(verb, path, body, query, content_type)

    async def _request(
        self,
        verb: str,
        path: str,
        body: Document | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Document:
        client = self._client
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": MANAGER}
        url = client.configuration.host + quote(path) + (f"?{urlencode(query)}" if query else "")
        try:
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            answer = await client.rest_client.request(  # type: ignore[no-untyped-call]
                verb, url, headers=headers, body=body, _request_timeout=timeout
            )
            content = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._told(verb, 0)
            raise ApiError(0, str(error) or type(error).__name__, request=f"{verb} {path}") from error
        self._told(verb, answer.status)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _error(f"{verb} {path}", answer.status, content, answer.headers.get("Retry-After"))
        document: Document = from_json(content)
        return document


def _error(request: str, status: int, content: bytes, retry_after: str | None) -> ApiError:
    try:
        told = from_json(content)
        message, reason = str(told["message"]), str(told.get("reason") or "")
    except (ValueError, KeyError, TypeError):
        message, reason = content.decode(errors="replace").strip() or "no reason given", ""
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
    return ApiError(status, message[:_MESSAGE_CHARACTERS], reason, seconds, request)
