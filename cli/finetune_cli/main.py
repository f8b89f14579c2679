"""The `finetune` command line (also `kubectl finetune`). It imports nothing that a subcommand does not need."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from finetune_cli.cluster import arguments as arguments_of_cluster
from finetune_cli.dashboard.arguments import add_dashboard, run_dashboard

_DESCRIPTION = (
    "Fine-tune a model from one FineTuneJob on this machine, or follow it in a cluster (also kubectl finetune)."
)
_EPILOG = """\
examples:
  finetune validate -f job.yaml            check a job, and say what is wrong with it
  finetune estimate -f job.yaml            say what it takes of memory, and the largest batch that fits a GPU
  finetune run -f job.yaml                 train, evaluate and export; all of it goes to runs/<name>
  finetune run -f job.yaml --set spec.training.epochs=1 --out runs/trial
  finetune status runs/trial               how it stands
  finetune compare runs/a runs/b           in what they differ
  finetune render -f job.yaml              what a cluster would be asked to run
  finetune status reviews -n team-a        how a job in a cluster stands
  finetune logs reviews --follow           what its workers print
  finetune dashboard -n team-a             a page of all jobs and experiments, live

exit codes (sysexits):
  0 done · 2 wrong usage · 64 bad spec · 65 bad data · 66 job, model or data not found · 70 bug
  75 peer or network lost · 76 diverged (NaN) · 77 permission · 78 platform misconfigured
  124 deadline exceeded · 130 interrupted · 137 killed · 143 terminated
"""
_RUN = """\
Run a FineTuneJob on this machine, with the restarts, early stopping and status that it has in a cluster.

Ctrl-C saves and stops; the same command again goes on from there, as it does after a crash. A second Ctrl-C ends it at
once. A finished run is left as it is; one that has failed is tried again. Of an unfinished run spec.distributed and
spec.recovery may be changed: it goes on with, say, another number of processes.

A FineTuneExperiment is run whole: every trial is a run of its own, in DIR/trials.
"""
_VALIDATE = "One line a fault: field, what was found, what is allowed. Exit 64 if any, 66 if a file is missing."
_ESTIMATE = """\
Read a job's data and model, run two small forward and backward passes on the CPU, and say how many parameters are
trained, what weights, gradients, optimizer and activations take of memory, and the largest batch that a GPU takes.
Nothing is trained.
"""
_ESTIMATE_EPILOG = """\
exit codes: as of finetune run

examples:
  finetune estimate -f job.yaml
  finetune estimate -f job.yaml --gpu-memory 80Gi --output json
"""
_RENDER = """\
Print the objects that the operator would make of a job in Kubernetes, as YAML. No cluster is asked: what only a cluster
knows is said in the comment at the head.
"""
_RENDER_EPILOG = """\
exit codes: 0 done · 64 the job is not valid, or its runtime does not allow it · 78 the runtime is not valid

examples:
  finetune render -f job.yaml
  finetune render -f job.yaml --runtime runtime.yaml --namespace team-a | kubectl diff -f -
"""
_AS_IT_IS = argparse.RawDescriptionHelpFormatter
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
_RUN_EPILOG = """\
what lies in the folder afterwards:
  model/  adapter/  report.html  checkpoints/  logs/  status.yaml  events.jsonl

examples:
  finetune run -f job.yaml
  finetune run -f job.yaml --set spec.training.maxSteps=20 --out /tmp/trial
"""


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - a list of commands
    """Run the command; returns its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    match options.command:
        case "run":
            return _run(options)
        case "validate":
            from finetune_cli.validate import validate

            return validate(options.file, tuple(options.set))
        case "estimate":
            return _estimate(options)
        case "render":
            return _render(options)
        case "status":
            return arguments_of_cluster.run_status(options)
        case "dashboard":
            return run_dashboard(options)
        case command if command in arguments_of_cluster.COMMANDS:
            return arguments_of_cluster.run_command(options)
        case _:
            parser.print_help()
            return 0


def _run(options: argparse.Namespace) -> int:
    from finetune_cli.run import Options, run

    return run(Options(options.file, tuple(options.set), options.out, options.cache, options.volumes))


def _estimate(options: argparse.Namespace) -> int:
    from finetune_cli.estimate import Options, estimate

    return estimate(
        Options(options.file, tuple(options.set), options.gpu_memory, options.output, options.cache, options.volumes)
    )


def _render(options: argparse.Namespace) -> int:
    from finetune_cli.render import Options, render

    return render(Options(options.file, tuple(options.set), options.runtime, options.namespace, options.attempt))


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar and its help."""
    name = "kubectl finetune" if arguments_of_cluster.is_plugin() else "finetune"
    parser = argparse.ArgumentParser(prog=name, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_AS_IT_IS)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_validate(commands)
    _add_estimate(commands)
    arguments_of_cluster.add_status(commands)
    _add_render(commands)
    arguments_of_cluster.add_compare(commands)
    add_dashboard(commands)
    arguments_of_cluster.add_others(commands)
    return parser


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run a job or an experiment on this machine",
        description=_RUN,
        epilog=_RUN_EPILOG,
        formatter_class=_AS_IT_IS,
    )
    run.add_argument(
        "-f", "--file", type=Path, required=True, metavar="FILE", help="the FineTuneJob or FineTuneExperiment"
    )
    _add_set(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/<name of the job>)")
    _add_folders(run)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    cache = "folder of prepared data, shared by runs (default: ~/.cache/finetune-operator)"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=cache)
    volumes = "folder in which pvc://claim/path is found as claim/path (default: /volumes)"
    parser.add_argument("--volumes", type=Path, metavar="DIR", help=volumes)


def _add_validate(commands: _Commands) -> None:
    validate = commands.add_parser("validate", help="check jobs without running them", description=_VALIDATE)
    what = "a FineTuneJob; may be repeated"
    validate.add_argument("-f", "--file", type=Path, action="append", required=True, metavar="FILE", help=what)
    _add_set(validate)


def _add_estimate(commands: _Commands) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="say what a job takes of memory",
        description=_ESTIMATE,
        epilog=_ESTIMATE_EPILOG,
        formatter_class=_AS_IT_IS,
    )
    what = "the FineTuneJob, YAML or JSON"
    estimate.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help=what)
    _add_set(estimate)
    room = "memory of the GPU to fit into, for example 80Gi"
    estimate.add_argument("--gpu-memory", metavar="QUANTITY", help=room)
    estimate.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
    _add_folders(estimate)


def _add_render(commands: _Commands) -> None:
    render = commands.add_parser(
        "render",
        help="show what a cluster would run",
        description=_RENDER,
        epilog=_RENDER_EPILOG,
        formatter_class=_AS_IT_IS,
    )
    render.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="the FineTuneJob, YAML or JSON")
    _add_set(render)
    runtime = "the FineTuneRuntime that the job names (default: one of defaults with our own image)"
    render.add_argument("--runtime", type=Path, metavar="FILE", help=runtime)
    render.add_argument("-n", "--namespace", metavar="NAME", help="namespace of the job (default: what its file says)")
    render.add_argument("--attempt", type=_attempt, default=1, metavar="N", help="number of the attempt (default: 1)")


def _attempt(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 1, got {text}")
    return int(text)


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
