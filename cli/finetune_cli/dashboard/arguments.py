"""The grammar of ``finetune dashboard``, and what is run for it. It imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from finetune_cli.cluster.arguments import USAGE_EXIT_CODE, add_cluster

if TYPE_CHECKING:
    from finetune_cli.dashboard.cluster_source import Post

_LOOPBACK = "127.0.0.1"
_HIGHEST_PORT = 65_535
_NEEDED = ("aiohttp", "kubernetes")
_AS_IT_IS = argparse.RawDescriptionHelpFormatter
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
_DESCRIPTION = """\
Serve a page that shows jobs and experiments, live: where each stands and why, how far it is, curves, attempts.

With DIR: the runs in that folder (runs, or one run, or one experiment). Without: the jobs of a cluster, with your own
rights; it lists and watches finetunejobs and finetuneexperiments. The page changes nothing. It is served until Ctrl-C.
"""
_EPILOG = """\
who may see it:
  The page is served on this machine alone, at an address with a secret in it: whoever has that sees what you see.
  From elsewhere, bring the port here (ssh -L 8080:localhost:8080 HOST, with --port 8080).

exit codes: 0 it was ended · 66 no such folder · 78 no cluster is configured, or the address cannot be listened on

examples:
  finetune dashboard                       the namespace of the kubeconfig's context
  finetune dashboard -n team-a -n team-b
  finetune dashboard -A --port 8080
  finetune dashboard runs
"""


def add_dashboard(commands: _Commands) -> None:
    """``finetune dashboard``, of a folder or a cluster."""
    parser = commands.add_parser(
        "dashboard",
        help="serve a page of jobs and experiments",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_AS_IT_IS,
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, metavar="DIR", help="folder of local runs")
    add("-n", "--namespace", action="append", default=[], metavar="NAME",
        help="namespace (default: the context's); may be repeated")  # fmt: skip
    add("-A", "--all-namespaces", action="store_true", help="all namespaces")
    add_cluster(parser)
    add("--port", type=_port, default=0, metavar="N", help="port to listen on (default: any that is free)")
    add("--address", default=_LOOPBACK, help="address to listen on, '' for all (default: %(default)s)")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="serve by this name as well, beside localhost and addresses; may be repeated")  # fmt: skip
    add("--no-secret", action="store_true",
        help="leave the secret out of the address: something that knows its users stands before it")  # fmt: skip


def run_dashboard(options: argparse.Namespace) -> int:
    """``finetune dashboard``; returns its exit code."""
    wrong = _misuse(options)
    if wrong:
        print(f"finetune: {wrong}", file=sys.stderr)
        return USAGE_EXIT_CODE
    from finetune_api.outcomes import ExitCode

    try:
        from finetune_cli.cluster.errors import ClusterError
        from finetune_cli.dashboard.serve import Door, new_secret, serve
        from finetune_cli.dashboard.server import Site
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        needed = " and ".join(_NEEDED)
        print(f"finetune dashboard needs the packages {needed}: pip install 'finetune-operator[dashboard]'",
              file=sys.stderr)  # fmt: skip
        return ExitCode.PLATFORM
    try:
        start, title = _folder(options) if options.folder else _cluster(options)
    except ClusterError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return error.code
    names = tuple(name.lower() for name in options.allow_host)
    secret = "" if options.no_secret else new_secret()
    site = Site(title, "folder" if options.folder else "namespace", names, secret)
    return serve(start, site, Door(options.address, options.port))


def _misuse(options: argparse.Namespace) -> str:
    if options.namespace and options.all_namespaces:
        return "-A shows all namespaces, and goes without -n"
    if options.folder and (options.namespace or options.all_namespaces or options.context or options.kubeconfig):
        return "a folder is shown without a cluster: leave out -n, -A, --context and --kubeconfig"
    return ""


def _folder(options: argparse.Namespace) -> "tuple[Callable[[Post], None], str]":
    from finetune_api.outcomes import ExitCode
    from finetune_cli.cluster.errors import ClusterError
    from finetune_cli.dashboard import folder_source

    root = options.folder.resolve()
    if not root.is_dir():
        raise ClusterError(ExitCode.NOT_FOUND, f"{options.folder}: there is no such folder")
    return (lambda post: folder_source.start(root, post)), f"Runs in {root}"


def _cluster(options: argparse.Namespace) -> "tuple[Callable[[Post], None], str]":
    from finetune_cli.cluster.access import Access
    from finetune_cli.cluster.api import Cluster
    from finetune_cli.dashboard import cluster_source

    cluster = Cluster(Access(options.kubeconfig, options.context))
    namespaces = None if options.all_namespaces else tuple(options.namespace) or (cluster.namespace,)
    if namespaces is None:
        told = "All namespaces"
    else:
        told = f"{'Namespace' if len(namespaces) == 1 else 'Namespaces'} {', '.join(namespaces)}"
    return (lambda post: cluster_source.start(cluster, namespaces, post)), f"{told} of {cluster.host}"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to {_HIGHEST_PORT}, got {text}")
    return int(text)
