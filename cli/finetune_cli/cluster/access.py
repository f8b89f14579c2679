"""Which cluster is meant, found as kubectl finds it, and with whose credentials.

In this order: ``--kubeconfig``, ``KUBECONFIG`` (one file or several), ``~/.kube/config``, the pod's service account.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import Configuration
from kubernetes.config import ConfigException, load_incluster_config
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

from finetune_cli.cluster.errors import not_configured

_USUAL_PLACE = "~/.kube/config"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECTIONS = 100
"""More than are ever open at a time: each worker whose log is followed has one."""
_HINT = "set KUBECONFIG, give --kubeconfig, or put a kubeconfig at ~/.kube/config"


@dataclass(frozen=True)
class Access:
    """What the user said of the cluster; None where nothing was said."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


def load(access: Access) -> tuple[Configuration, str]:
    """Address and credentials, and the namespace that is meant.

    Raises:
        ClusterError: No kubeconfig leads to a cluster; exit code 78.
    """
    # Nothing is tried again behind our back: whoever waits for something asks again anyway, and says so.
    configuration = Configuration(retries=False)
    configuration.connection_pool_maxsize = _CONNECTIONS
    named = access.kubeconfig or os.environ.get("KUBECONFIG")
    places = named or _USUAL_PLACE
    if access.kubeconfig and not Path(access.kubeconfig).expanduser().exists():
        raise not_configured(f"--kubeconfig {access.kubeconfig}: is not there")
    if not any(Path(place).expanduser().exists() for place in places.split(os.pathsep) if place):
        own = _load_own(configuration, named)
        return configuration, access.namespace or own
    return configuration, _load_kubeconfig(configuration, places, access)


def _load_kubeconfig(configuration: Configuration, places: str, access: Access) -> str:
    merger: Any = KubeConfigMerger(places)  # type: ignore[no-untyped-call]
    try:
        loader: Any = KubeConfigLoader(  # type: ignore[no-untyped-call]
            config_dict=merger.config, active_context=access.context, config_persister=merger.save_changes
        )
        loader.load_and_set(configuration)
    except ConfigException as error:
        raise not_configured(_complaint(merger, places, access.context, error)) from error
    context = loader.current_context.get("context") or {}
    return access.namespace or context.get("namespace") or "default"


def _complaint(merger: Any, places: str, context: str | None, error: ConfigException) -> str:
    known = [one["name"] for one in (merger.config.value.get("contexts") or [])]
    if context is not None and context not in known:
        return f"there is no context {context} in {places}; it has {', '.join(known) or 'none'}"
    if context is None and not merger.config.value.get("current-context"):
        return f"{places} has no current context; give --context, one of {', '.join(known) or 'none'}"
    return f"kubeconfig: {error}"


def _load_own(configuration: Configuration, named: str | None) -> str:
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return _OWN_NAMESPACE.read_text().strip()
    except (ConfigException, OSError) as error:
        where = f" (KUBECONFIG={named} is not there)" if named else ""
        raise not_configured(f"no cluster is configured{where}: {_HINT}") from error
