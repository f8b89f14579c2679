"""``finetune validate``: says of each file whether it is valid, without torch, a network or a cluster.

Invariant: one line a valid file on stdout, one line a fault on stderr; a fault names its file and field.
"""

import sys
from pathlib import Path
from urllib.parse import unquote

from finetune_api.errors import Fault, SpecError
from finetune_api.experiment_checks import read_experiment
from finetune_api.job import JobSpec
from finetune_api.load import kind_in, read_job
from finetune_api.outcomes import ExitCode


def validate(paths: list[Path], overrides: tuple[str, ...]) -> int:
    """Check every file and print what was found.

    Args:
        paths: Files with one FineTuneJob each.
        overrides: ``spec.training.epochs=1`` each, set in every one of them.

    Returns:
        64 if a file is no valid FineTuneJob, else 66 if a file or a ``file://`` source is not there, else 0.
    """
    codes = {_validate_file(path, overrides) for path in paths}
    return next((code for code in (ExitCode.BAD_SPEC, ExitCode.NOT_FOUND) if code in codes), ExitCode.DONE)


def _validate_file(path: Path, overrides: tuple[str, ...]) -> ExitCode:
    if not path.exists():
        _print_faults(path, (Fault("", "is not there"),))
        return ExitCode.NOT_FOUND
    try:
        spec, summary = _read(path, overrides)
    except SpecError as error:
        _print_faults(path, error.faults)
        return ExitCode.BAD_SPEC
    absent = absent_sources(spec)
    if absent:
        _print_faults(path, absent)
        return ExitCode.NOT_FOUND
    print(f"{path}: valid: {summary}")
    return ExitCode.DONE


def _read(path: Path, overrides: tuple[str, ...]) -> tuple[JobSpec, str]:
    """The spec whose sources are to be there, and the file in a few words."""
    if kind_in(path) != "FineTuneExperiment":
        job = read_job(path, overrides)
        return job.spec, _summary(job.spec)
    spec = read_experiment(path, overrides).spec
    what = f"{len(spec.variants)} variants" if spec.variants else "a search"
    return spec.template, f"{what}, {len(spec.seeds)} seeds each, of {_summary(spec.template)}"


def absent_sources(spec: JobSpec) -> tuple[Fault, ...]:
    """A fault for each ``file://`` source that is not on this machine."""
    return tuple(
        Fault(field, f"{path} is not there; put it there, or name where it is")
        for field, source in spec.sources.items()
        if (path := _local_path(source)) and not path.exists()
    )


def _local_path(source: str) -> Path | None:
    scheme, _, rest = source.partition("://")
    return Path(unquote(rest)) if scheme == "file" else None


def _summary(spec: JobSpec) -> str:
    model = spec.model
    start = model.source or f"a new {(model.config or {}).get('model_type', 'model')}"
    return f"{spec.task} of {start} on {spec.data.source}"


def _print_faults(path: Path, faults: tuple[Fault, ...]) -> None:
    for fault in faults:
        print(f"{path}: {fault}", file=sys.stderr)
