"""Flags of ``python -m finetune_operator``."""

import argparse
import socket
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How one replica runs."""

    namespaces: tuple[str, ...] | None
    """Namespaces that are served; None for all."""
    lease_namespace: str
    lease_name: str
    identity: str
    leader_election: bool
    progress_readers: tuple[str, ...]
    health_port: int
    metrics_port: int
    bind_address: str
    log_format: Literal["plain", "json"]
    verbose: bool


def parse_settings(arguments: list[str] | None = None) -> Settings:
    """The settings that a command line asks for; ends the process with 2 if it is wrong."""
    parser = _build_parser()
    given = parser.parse_args(arguments)
    namespaces = _listed(given.namespaces)
    if namespaces and given.all_namespaces:
        parser.error("--namespaces and --all-namespaces exclude each other")
    if not given.no_leader_election and not given.lease_namespace:
        parser.error("--lease-namespace is needed, or --no-leader-election where there is one replica only")
    return Settings(
        namespaces=namespaces or None,
        lease_namespace=given.lease_namespace or "",
        lease_name=given.lease_name,
        identity=given.identity,
        leader_election=not given.no_leader_election,
        progress_readers=_listed(given.progress_readers),
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        bind_address=given.bind_address,
        log_format=given.log_format,
        verbose=given.verbose,
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator",
        description="Runs FineTuneJobs on Kubernetes. The API server is the one of the pod's service account, or of "
        "KUBECONFIG where there is none.",
    )
    add = parser.add_argument
    add("--namespaces", action="append", default=[], metavar="A,B", help="serve these namespaces; may be repeated")
    add("--all-namespaces", action="store_true", help="serve all namespaces (the default)")
    add("--lease-namespace", metavar="NS", help="namespace of the Lease by which replicas elect their leader")
    add("--lease-name", default="finetune-operator", metavar="NAME", help="its name (%(default)s)")
    add("--identity", default=socket.gethostname(), metavar="NAME", help="name of this replica (the host's)")
    add("--no-leader-election", action="store_true", help="write without a Lease: there is one replica only")
    add(
        "--progress-readers",
        action="append",
        default=[],
        metavar="NS1,NS2",
        help="namespaces that may read the workers' progress: the operator's own, and the monitoring's",
    )
    add("--health-port", type=int, default=8081, metavar="PORT", help="/healthz and /readyz (%(default)s)")
    add("--metrics-port", type=int, default=8080, metavar="PORT", help="/metrics (%(default)s)")
    add("--bind-address", default="", metavar="ADDRESS", help="of both (all addresses)")
    add("--log-format", choices=("plain", "json"), default="plain", help="lines for people or for machines")
    add("--verbose", action="store_true", help="log every look at a job")
    return parser


def _listed(values: list[str]) -> tuple[str, ...]:
    """``["a,b", "c"]`` as a, b and c, each once."""
    names = (name.strip() for value in values for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
