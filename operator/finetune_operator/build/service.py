"""The headless Service that gives the first workers of some of a namespace's jobs their DNS names.

It belongs to no job, so it is the one object without an owner: it stays until its namespace goes. One for each job
would cost three requests a job (Service, Endpoints, EndpointSlice), and the API server is what limits scale. One for
all would have its Endpoints written anew, with the addresses of all, for each pod that comes or goes: with 600 jobs
that took a fifth of the control plane's time. So each serves one in ``names.SERVICES``. The other workers are nobody's
address.

Kubernetes' controllers hold its selector against each pod of the namespace, several times a job: with 10,000 pods that
was most of what they did. So it is short, and begins (they go by the alphabet) with a key that hardly any pod has.
"""

from typing import Any

from finetune_operator.names import (
    LABEL_INDEX,
    RENDEZVOUS_PORT,
    managed_labels,
    service_label,
    service_name,
)


def build_service(namespace: str, job: str) -> dict[str, Any]:
    """The job's Service. Its worker has a name as soon as its pod has an address: the peers wait until it answers."""
    name = service_name(job)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": managed_labels()},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {service_label(name): "", LABEL_INDEX: "0"},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }
