"""The `finetune` command line (also `kubectl finetune`). It imports nothing that a subcommand does not need."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

_DESCRIPTION = "Fine-tune a model from one FineTuneJob: on this machine, or validate it for a cluster."
_EPILOG = """\
examples:
  finetune validate -f job.yaml            check a job, and say what is wrong with it
  finetune run -f job.yaml                 train, evaluate and export; all of it goes to runs/<name>
  finetune run -f job.yaml --set spec.training.epochs=1 --out runs/trial
  finetune status runs/trial               how it stands

exit codes (sysexits):
  0 done · 2 wrong usage · 64 bad spec · 65 bad data · 66 model or data not found · 70 bug · 75 peer or network lost
  76 diverged (NaN) · 77 permission · 78 platform misconfigured
  124 deadline exceeded · 130 interrupted · 137 killed · 143 terminated
"""
_RUN = """\
Run a FineTuneJob on this machine, with the restarts, early stopping and status that it has in a cluster.

Ctrl-C saves and stops; the same command again goes on from there, as it does after a crash. A second Ctrl-C ends it at
once. A finished run is left as it is; one that has failed is tried again.
"""
_VALIDATE = "One line a fault: field, what was found, what is allowed. Exit 64 if any, 66 if a file is missing."
_STATUS = "Show how the run in a folder stands: phase, progress, metrics, attempts, and where everything lies."
_AS_IT_IS = argparse.RawDescriptionHelpFormatter
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
_RUN_EPILOG = """\
what lies in the folder afterwards:
  model/  adapter/  report.html  checkpoints/  logs/  status.yaml  events.jsonl

examples:
  finetune run -f job.yaml
  finetune run -f job.yaml --set spec.training.maxSteps=20 --out /tmp/trial
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    match options.command:
        case "run":
            return _run(options)
        case "validate":
            from finetune_cli.validate import validate

            return validate(options.file, tuple(options.set))
        case "status":
            from finetune_cli.status import show_status

            return show_status(options.folder)
        case _:
            parser.print_help()
            return 0


def _run(options: argparse.Namespace) -> int:
    from finetune_cli.run import Options, run

    return run(Options(options.file, tuple(options.set), options.out, options.cache, options.volumes))


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar and its help."""
    parser = argparse.ArgumentParser(
        prog="finetune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_AS_IT_IS
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_validate(commands)
    _add_status(commands)
    return parser


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run", help="run a job on this machine", description=_RUN, epilog=_RUN_EPILOG, formatter_class=_AS_IT_IS
    )
    run.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="the FineTuneJob, YAML or JSON")
    _add_set(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/<name of the job>)")
    cache = "folder of prepared data, shared by runs (default: ~/.cache/finetune-operator)"
    run.add_argument("--cache", type=Path, metavar="DIR", help=cache)
    volumes = "folder in which pvc://claim/path is found as claim/path (default: /volumes)"
    run.add_argument("--volumes", type=Path, metavar="DIR", help=volumes)


def _add_validate(commands: _Commands) -> None:
    validate = commands.add_parser("validate", help="check jobs without running them", description=_VALIDATE)
    what = "a FineTuneJob; may be repeated"
    validate.add_argument("-f", "--file", type=Path, action="append", required=True, metavar="FILE", help=what)
    _add_set(validate)


def _add_status(commands: _Commands) -> None:
    status = commands.add_parser("status", help="show how a run stands", description=_STATUS)
    status.add_argument("folder", type=Path, metavar="DIR", help="folder of the run, for example runs/demo")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field, for example spec.training.epochs=1; may be repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
