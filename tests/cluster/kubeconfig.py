"""The file that a user speaks to the API server with."""

import base64
from pathlib import Path

import yaml

from cluster.control_plane import ControlPlane


def write_kubeconfig(plane: ControlPlane, name: str, user: str, groups: tuple[str, ...]) -> Path:
    """Write the file ``name`` for ``user`` in ``groups``; its certificate and key are in it."""
    path = plane.kubeconfig(name)
    identity = plane.authority.issue(name, user, groups=groups)
    authority = _inline(plane.authority.root.certificate)
    credentials = {"client-certificate-data": _inline(identity.certificate), "client-key-data": _inline(identity.key)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "cluster",
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": user, "namespace": "default"}}],
        "clusters": [{"name": "cluster", "cluster": {"server": plane.url, "certificate-authority-data": authority}}],
        "users": [{"name": user, "user": credentials}],
    }
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    return path


def _inline(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
