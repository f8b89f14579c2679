"""``finetune render``: the objects that the operator makes of a job, as YAML, without a cluster.

Invariant: what stands on stdout is what the operator's own builders made; what cannot be known without a cluster is
said in the comment at its head. Nothing is on stdout when the job is refused.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from finetune_api.errors import Fault, SpecError
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_job, read_job, read_runtime
from finetune_api.outcomes import ExitCode
from finetune_api.runtime import FineTuneRuntime, RuntimeMetadata, RuntimeSpec
from finetune_cli.printing import say
from finetune_operator.build.children import build_children
from finetune_operator.observed import Refusal
from finetune_operator.resolve import resolve

_PROGRESS_READERS = ("finetune-operator", "monitoring")
"""Where the operator and Prometheus usually run."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    file: Path
    overrides: tuple[str, ...] = ()
    runtime: Path | None = None
    """File of a FineTuneRuntime. None: ``default_runtime``."""
    namespace: str | None = None
    """None: the one that the file names."""
    attempt: int = 1


def render(options: Options) -> int:
    """Print the children of the job.

    Returns:
        0; 64 if the job is not valid or its runtime refuses it; 78 if the runtime is not valid or not the one it names.
    """
    try:
        job = _read_job(options)
    except SpecError as error:
        return _refuse(ExitCode.BAD_SPEC, options.file, error.faults)
    try:
        runtime = _read_runtime(options.runtime, job.spec.runtime)
    except SpecError as error:
        return _refuse(ExitCode.PLATFORM, options.runtime or options.file, error.faults)
    resolved = resolve(job, runtime, assumed_labels(runtime))
    if isinstance(resolved, Refusal):
        return _refuse(ExitCode.BAD_SPEC, options.file, [resolved.message])
    children = build_children(resolved, options.attempt, _PROGRESS_READERS)
    head = "".join(f"# {line}\n" for line in _head(job, runtime, options))
    documents = yaml.safe_dump_all(children, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)
    say(head + documents.rstrip("\n"))
    return ExitCode.DONE


def default_runtime(name: str) -> FineTuneRuntime:
    """The runtime that stands in for one that is not at hand: everything at its default, and our own image."""
    image = f"finetune-trainer:{version('finetune-operator')}"
    return FineTuneRuntime(metadata=RuntimeMetadata(name=name), spec=RuntimeSpec(image=image))


def assumed_labels(runtime: FineTuneRuntime) -> dict[str, str]:
    """Labels that the namespace is taken to have: those that the runtime asks for."""
    return dict((runtime.spec.namespaces and runtime.spec.namespaces.match_labels) or {})


def _read_job(options: Options) -> FineTuneJob:
    job = read_job(options.file, options.overrides)
    if options.namespace is None:
        return job
    document = job.to_wire()
    return parse_job({**document, "metadata": {**document["metadata"], "namespace": options.namespace}})


def _read_runtime(path: Path | None, name: str) -> FineTuneRuntime:
    if path is None:
        return default_runtime(name)
    runtime = read_runtime(path)
    if runtime.metadata.name != name:
        raise SpecError((Fault("metadata.name", f"is {runtime.metadata.name}, but spec.runtime of the job is {name}"),))
    return runtime


def _head(job: FineTuneJob, runtime: FineTuneRuntime, options: Options) -> Iterator[str]:
    metadata = job.metadata
    whose = f"attempt {options.attempt} of FineTuneJob {metadata.name} in namespace {metadata.namespace}"
    yield f"What the operator makes for {whose}, in this order."
    if options.runtime is None:
        yield f"No --runtime given: FineTuneRuntime {runtime.metadata.name} of defaults, image {runtime.spec.image}."
    else:
        yield f"FineTuneRuntime {runtime.metadata.name} from {options.runtime}, image {runtime.spec.image}."
    for key, value in assumed_labels(runtime).items():
        yield f"Taken for granted: the namespace has the label {key}={value}."
    readers = " and ".join(_PROGRESS_READERS)
    yield f"Namespaces that may read progress depend on the installation; here {readers}."
    if "uid" not in (metadata.model_extra or {}):
        yield "Only a cluster knows the job's uid, which owns these objects and ends the run's folder's name (subPath)."


def _refuse(code: ExitCode, path: Path, faults: Iterable[Fault | str]) -> int:
    for fault in faults:
        print(f"{path}: {fault}", file=sys.stderr)
    return code
