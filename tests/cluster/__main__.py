"""The cluster's command line: ``python tests/cluster up|down|env|build``."""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a folder, Python looks for modules in it; the package is looked for beside it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.errors import BuildError, ClusterError
from cluster.keeper import RefusedError
from cluster.programs import build_all
from cluster.running import CHECKOUT, Cluster, Shape, bring_up, take_down


def main() -> int:
    """Do what the command line says; its exit code."""
    arguments = _parser().parse_args()
    shape = Shape(simulated_nodes=arguments.simulated, real_node=arguments.node)
    try:
        match arguments.what:
            case "up":
                print(_export(bring_up(arguments.folder, shape)))
            case "env":
                print(_export(known(arguments.folder)))
            case "down":
                take_down(arguments.folder)
            case "build":
                build_all(tuple(arguments.program or shape.programs()))
    except (BuildError, ClusterError, RefusedError) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def known(folder: Path) -> Cluster:
    """The cluster in ``folder``."""
    kubeconfig = folder.absolute() / "kubeconfig"
    if not kubeconfig.exists():
        raise ClusterError(f"there is no cluster in {folder}: `up` makes one")
    return Cluster(kubeconfig, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description="A Kubernetes cluster on this machine, for tests.")
    parser.add_argument("what", choices=("up", "down", "env", "build"))
    parser.add_argument("program", nargs="*", help="build: only these programs")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "build" / "cluster", help="where all of it lies")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="up: add N simulated nodes (kwok)")
    parser.add_argument("--node", action="store_true", help="up: add a real node (containerd, kubelet); needs root")
    return parser


def _export(cluster: Cluster) -> str:
    return f"export KUBECONFIG={cluster.kubeconfig}"


if __name__ == "__main__":
    sys.exit(main())
