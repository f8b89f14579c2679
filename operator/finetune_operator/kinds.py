"""The kinds that the operator reads and writes, and where the API server has them."""

from dataclasses import dataclass

from finetune_api.base import GROUP, VERSION
from finetune_operator.names import LABEL_MANAGED_BY, MANAGER


@dataclass(frozen=True)
class Kind:
    """One kind of object."""

    name: str
    group: str
    """Empty for the core group."""
    version: str
    plural: str
    namespaced: bool = True
    selector: str = ""
    """Labels by which it is listed and watched."""

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of an object, or of all objects (of a namespace, if one is given)."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural]
        return "/".join([*parts, *([name] if name else []), *([subresource] if subresource else [])])

    @property
    def api_version(self) -> str:
        """As manifests have it."""
        return f"{self.group}/{self.version}" if self.group else self.version


_OURS = f"{LABEL_MANAGED_BY}={MANAGER}"
FINE_TUNE_JOB = Kind("FineTuneJob", GROUP, VERSION, "finetunejobs")
FINE_TUNE_EXPERIMENT = Kind("FineTuneExperiment", GROUP, VERSION, "finetuneexperiments")
RUNTIME = Kind("FineTuneRuntime", GROUP, VERSION, "finetuneruntimes", namespaced=False)
JOB = Kind("Job", "batch", "v1", "jobs", selector=_OURS)
POD = Kind("Pod", "", "v1", "pods", selector=_OURS)
NETWORK_POLICY = Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies", selector=_OURS)
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", selector=_OURS)
SERVICE = Kind("Service", "", "v1", "services", selector=_OURS)
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases")
EVENT = Kind("Event", "events.k8s.io", "v1", "events")
CORE_EVENT = Kind("Event", "", "v1", "events")
"""The same objects under the name by which they can be asked for by what they are about."""
NAMESPACE = Kind("Namespace", "", "v1", "namespaces", namespaced=False)

WATCHED = (RUNTIME, FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB, JOB, POD, NETWORK_POLICY, CLAIM, SERVICE)
"""What is watched, in the order in which it is first read: owners before what they own."""
BY_NAME = {kind.name: kind for kind in WATCHED}
