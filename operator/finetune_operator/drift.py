"""Which objects of a job are not (or no longer) as they were built."""

import json
from typing import Any

from finetune_operator.build.children import build_lasting
from finetune_operator.errors import Obstacle, taken
from finetune_operator.kinds import CLAIM, SERVICE
from finetune_operator.names import service_name
from finetune_operator.records import LastingRecord
from finetune_operator.resolved import Resolved
from finetune_operator.schedule import Key
from finetune_operator.store import Store


def find_drift(
    store: Store, resolved: Resolved, progress_readers: tuple[str, ...]
) -> list[tuple[dict[str, Any], LastingRecord | None]]:
    """Manifests to apply, each with what is there in its place.

    Raises:
        Obstacle: One is there that belongs to another job, most likely to a namesake that is being deleted, or that
            bears our labels and belongs to nobody.
    """
    lasting = store.children_of(Key(resolved.namespace, resolved.name)).lasting
    service = Key(resolved.namespace, service_name(resolved.name))
    drifted = []
    for manifest in build_lasting(resolved, progress_readers):
        kind = manifest["kind"]
        known = store.services.get(service) if kind == SERVICE.name else lasting.get(kind)
        if known is not None and kind != SERVICE.name and known.owner != resolved.uid:
            raise _obstacle(kind, manifest["metadata"]["name"], known)
        if known is None or not _is_as_built(manifest, known):
            drifted.append((manifest, known))
    return drifted


def _obstacle(kind: str, name: str, known: LastingRecord) -> Obstacle:
    if known.owner is None:
        return taken(kind, name)
    return Obstacle(f"{kind} {name} of an earlier job is still being deleted")


def _is_as_built(manifest: dict[str, Any], known: LastingRecord) -> bool:
    """A claim is right as long as it is there: its spec is fixed, but for a size that a user may let grow."""
    if manifest["kind"] == CLAIM.name:
        return True
    actual = json.loads(known.document)
    labels = {"labels": manifest["metadata"]["labels"]}
    return is_part(labels, actual["metadata"]) and is_part(manifest["spec"], actual["spec"])


def is_part(wanted: Any, actual: Any) -> bool:
    """Whether every field that is wanted is there as it is wanted; lists must be the same, item by item."""
    if wanted == actual:
        return True
    if isinstance(wanted, dict):
        return isinstance(actual, dict) and all(
            name in actual and is_part(value, actual[name]) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        same = isinstance(actual, list) and len(actual) == len(wanted)
        return same and all(is_part(*pair) for pair in zip(wanted, actual, strict=True))
    return False
