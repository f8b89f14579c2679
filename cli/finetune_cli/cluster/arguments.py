"""The grammar of the commands that follow a job in a cluster, and what is run for each. It imports nothing heavy."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_cli.cluster.api import Cluster
    from finetune_cli.comparison import Subject

COMMANDS = ("describe", "logs", "suspend", "resume", "compare", "report")
"""Beside ``status``, which shows a folder as well."""
INTERRUPTED_EXIT_CODE = 130
USAGE_EXIT_CODE = 2
"""As argparse has it."""
_AS_IT_IS = argparse.RawDescriptionHelpFormatter
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
_STATUS = """\
Show how a job stands: phase, progress, metrics, attempts, and where everything lies; of an experiment its answer and
the table of its variants.

Which job: NAME is the folder of a local run if it has a slash (runs/demo, ./demo) or if there is a folder of that name
here. Else it is a job (or an experiment) in a cluster, and so it always is with -n, --watch, --context or --kubeconfig,
and as kubectl finetune. Without NAME: all jobs of the namespace, as rows.
"""
_STATUS_EPILOG = """\
examples:
  finetune status runs/demo
  finetune status reviews -n team-a --watch
  finetune status -A

--watch follows one job to its end and leaves with its exit code, 0 if it succeeded; without NAME it prints rows as they
change, until Ctrl-C.
"""
_DESCRIBE = "Tell of every attempt what happened, why, which budget that counts against, and what to do next."
_LOGS = """\
Print what the workers of the newest attempt have printed; of several workers each line says whose it is.

--follow goes on with later attempts until the job has finished. Exit code 75: a worker has not begun to print.
"""
_COMPARE = """\
Show runs side by side: the fields of their specs in which they differ, their metrics, and their curves.

NAME is a folder as in finetune status, else a job in a cluster; an experiment stands for all of its trials.
"""
_COMPARE_EPILOG = """\
examples:
  finetune compare runs/full runs/lora
  finetune compare runs/digits-schemes --json
  finetune compare runs/full runs/lora --html compared.html
  finetune compare reviews-full reviews-lora -n team-a
"""
_SUSPEND = "Have a job (or all trials of an experiment) save, stop and free its resources; finetune resume undoes it."
_RESUME = "Let a suspended job, or an experiment's trials, go on from the newest checkpoint."
_REPORT = """\
Write the page of an experiment: its answer, differences and curves drawn, all in numbers. One file that needs no other.
"""


def add_status(commands: _Commands) -> None:
    """``finetune status``, of a folder or a cluster."""
    status = commands.add_parser(
        "status", help="show how a run or job stands", description=_STATUS, epilog=_STATUS_EPILOG,
        formatter_class=_AS_IT_IS,
    )  # fmt: skip
    status.add_argument("name", nargs="?", metavar="NAME", help="folder of a local run, or job of a cluster")
    status.add_argument("-A", "--all-namespaces", action="store_true", help="jobs of all namespaces")
    status.add_argument("-w", "--watch", action="store_true", help="go on for as long as something happens")
    _add_access(status)


def add_others(commands: _Commands) -> None:
    """``describe``, ``logs``, ``report``, ``suspend`` and ``resume``."""
    _add(commands, "describe", "tell the story of a job in a cluster", _DESCRIBE)
    logs = _add(commands, "logs", "print the logs of a job in a cluster", _LOGS)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job has finished")
    logs.add_argument("--worker", type=_count, metavar="N", help="this worker only, 0 for the first")
    logs.add_argument("--attempt", type=_positive, metavar="N", help="this attempt only (default: the newest)")
    logs.add_argument("--tail", type=_count, metavar="N", help="only so many of the last lines of each worker")
    report = _add(commands, "report", "write the page of an experiment in a cluster", _REPORT)
    report.add_argument("--out", type=Path, metavar="FILE", help="where (default: NAME.html)")
    _add(commands, "suspend", "save and stop a job in a cluster", _SUSPEND)
    _add(commands, "resume", "let a suspended job go on", _RESUME)


def add_compare(commands: _Commands) -> None:
    """``finetune compare``, of folders and jobs of a cluster."""
    compare = commands.add_parser(
        "compare", help="show in what runs differ", description=_COMPARE, epilog=_COMPARE_EPILOG,
        formatter_class=_AS_IT_IS,
    )  # fmt: skip
    compare.add_argument("names", nargs="+", metavar="NAME", help="folder of a local run, or job of a cluster")
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with every evaluation")
    form.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the curves, that needs no other file"
    )
    _add_access(compare)


def run_status(options: argparse.Namespace) -> int:
    """``finetune status``."""
    if options.name is not None and options.all_namespaces:
        print("finetune: -A shows the jobs of all namespaces, and goes without a name", file=sys.stderr)
        return USAGE_EXIT_CODE
    if _is_folder(options):
        from finetune_cli.status import show_status

        return show_status(Path(options.name))
    return run_command(options)


def _compare(options: argparse.Namespace, cluster: "Cluster | None" = None) -> int:
    from finetune_cli.compare import compare

    def read(name: str) -> "Iterator[Subject]":
        from finetune_cli.cluster.subjects import subjects_of

        assert cluster is not None
        return subjects_of(cluster, name)

    return compare(options.names, as_json=options.json, read_cluster=read, html=options.html)


def run_command(options: argparse.Namespace) -> int:
    """One of the commands that ask a cluster; returns its exit code."""
    from finetune_api.outcomes import ExitCode

    if options.command == "compare" and all(_means_folder(name) for name in options.names):
        return _compare(options)

    try:
        from finetune_cli.cluster.access import Access
        from finetune_cli.cluster.api import Cluster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes":
            raise
        print("this command needs the package kubernetes: pip install 'kubernetes>=37,<38'", file=sys.stderr)
        return ExitCode.PLATFORM
    from finetune_cli.cluster.errors import ClusterError

    try:
        return _dispatch(Cluster(Access(options.kubeconfig, options.context, options.namespace)), options)
    except ClusterError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE


def _dispatch(cluster: "Cluster", options: argparse.Namespace) -> int:
    match options.command:
        case "status":
            return _status(cluster, options)
        case "compare":
            return _compare(options, cluster)
        case "report":
            from finetune_cli.cluster.experiment_status import write_report

            return write_report(cluster, options.name, options.out or Path(f"{options.name}.html"))
        case "describe":
            from finetune_cli.cluster.describe import describe

            return describe(cluster, options.name)
        case "logs":
            from finetune_cli.cluster.logs import show_logs
            from finetune_cli.cluster.workers import Wanted

            wanted = Wanted(options.worker, options.attempt, options.tail, options.follow)
            return show_logs(cluster, options.name, wanted)
        case _:
            from finetune_cli.cluster.suspension import resume, suspend

            return (suspend if options.command == "suspend" else resume)(cluster, options.name)


def _status(cluster: "Cluster", options: argparse.Namespace) -> int:
    from finetune_cli.cluster.status import show_jobs, show_one

    if options.name is not None:
        return show_one(cluster, options.name, watch=options.watch)
    return show_jobs(cluster, None if options.all_namespaces else cluster.namespace, watch=options.watch)


def _is_folder(options: argparse.Namespace) -> bool:
    """The rule that ``finetune status --help`` tells."""
    if options.name is None or options.watch or is_plugin():
        return False
    if options.namespace or options.context or options.kubeconfig:
        return False
    return _means_folder(options.name)


def _means_folder(name: str) -> bool:
    return "/" in name or Path(name).is_dir()


def is_plugin() -> bool:
    """Whether kubectl called us, as ``kubectl finetune``."""
    return Path(sys.argv[0]).name.startswith("kubectl-")


def _add(commands: _Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=_AS_IT_IS)
    parser.add_argument("name", metavar="NAME", help="the job")
    _add_access(parser)
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAME", help="namespace (default: the context's)")
    add_cluster(parser)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which cluster is meant, as kubectl's flags of the same names say it."""
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: its current one)")
    where = "the kubeconfig (default: $KUBECONFIG, else ~/.kube/config)"
    parser.add_argument("--kubeconfig", metavar="FILE", help=where)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 0, got {text}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 1, got {text}")
    return int(text)
