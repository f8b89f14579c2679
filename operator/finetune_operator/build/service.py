"""The headless Service of a namespace, which gives the first workers of all its jobs their DNS names.

It belongs to no job, so it is the one object without an owner: it stays until its namespace goes. One for each job
would cost three requests a job (Service, Endpoints, EndpointSlice), and the API server is what limits scale. The others
are nobody's address: each of them would be one more entry in the Endpoints, which are written anew with each pod.
"""

from typing import Any

from finetune_operator.names import (
    LABEL_COMPONENT,
    LABEL_INDEX,
    RENDEZVOUS_PORT,
    SERVICE,
    WORKER,
    managed_labels,
)


def build_service(namespace: str) -> dict[str, Any]:
    """The Service. A worker has a name as soon as its pod has an address: its peers wait for it to become ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": namespace, "labels": managed_labels()},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {**managed_labels(), LABEL_COMPONENT: WORKER, LABEL_INDEX: "0"},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }
