"""Which trials come next, and which ones have no hope."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from finetune_api.errors import SpecError
from finetune_api.experiment import TrialStatus, Variant
from finetune_api.experiment_checks import mode_of, proposal_name, trial_job
from finetune_api.job import FineTuneJob
from finetune_operator.experiments.pruning import is_hopeless
from finetune_operator.experiments.scene import Scene, with_variant
from finetune_operator.experiments.search import Proposal, propose
from finetune_operator.experiments.trials import Trial, row_of, unmade_row


def hopeless(scene: Scene) -> Iterator[Trial]:
    """Trials to end: those that the rule says, and their siblings of other seeds."""
    search = scene.search
    rule = search.pruner if search else None
    if rule is None:
        return
    mode = mode_of(scene.experiment)
    finished = [one.points for one in scene.trials if one.value is not None]
    for one in scene.trials:
        if not one.is_active or one.is_pruned:
            continue
        siblings = any(other.is_pruned for other in scene.of(one.variant.name))
        if siblings or is_hopeless(one.points, finished, rule, mode):
            yield one


def with_next(scene: Scene) -> tuple[Scene, list[FineTuneJob]]:
    """As many of the next trials as there is room for; a search's proposals among them, which it then has."""
    create: list[FineTuneJob] = []
    room = scene.experiment.spec.parallelism - sum(one.is_active for one in scene.trials)
    while len(create) < room:
        waiting = next(
            (one for one in scene.trials if one.job is None and not one.is_ended and _is_open(scene, one)), None
        )
        if waiting is None:
            if not _may_propose(scene):
                break
            scene = _with_proposal(scene)
            continue
        scene, job = _make(scene, waiting)
        create += [job] if job is not None else []
    return scene, create


def _is_open(scene: Scene, trial: Trial) -> bool:
    """Nothing speaks against making it: of a proposal without hope no further seed is tried."""
    return scene.search is None or not any(one.is_pruned or one.is_failed for one in scene.of(trial.variant.name))


def _may_propose(scene: Scene) -> bool:
    search = scene.search
    if search is None or len(scene.variants) >= search.proposals:
        return False
    spent = sum(one.row.worker_seconds for one in scene.trials if one.row)
    return search.minutes is None or spent < search.minutes * 60


def _with_proposal(scene: Scene) -> Scene:
    assert scene.search is not None
    known = [_known(variant, scene.of(variant.name)) for variant in scene.variants]
    settings = propose(scene.search, mode_of(scene.experiment), known)
    variant = Variant(name=proposal_name(len(scene.variants)), set=settings)
    return with_variant(scene, variant)


def _known(variant: Variant, trials: Sequence[Trial]) -> Proposal:
    values = [one.value for one in trials if one.value is not None]
    pruned = next((one for one in trials if one.is_pruned and one.is_ended), None)
    return Proposal(
        variant.set,
        value=sum(values) / len(values) if len(values) == len(trials) else None,
        pruned_at={point.step: point.value for point in pruned.points} if pruned else {},
        has_failed=any(one.is_failed for one in trials) or pruned is not None,
    )


def _make(scene: Scene, trial: Trial) -> tuple[Scene, FineTuneJob | None]:
    """The scene with the trial's job; or, if what a search proposed is no valid job, with a trial that has failed."""
    made, row = _job_of(scene, trial)
    known = replace(trial, job=made, row=row)
    return replace(scene, trials=tuple(known if one is trial else one for one in scene.trials)), made


def _job_of(scene: Scene, trial: Trial) -> tuple[FineTuneJob | None, TrialStatus]:
    spec = scene.experiment.spec
    try:
        job = trial_job(scene.experiment, trial.variant, trial.seed)
    except SpecError:
        return None, unmade_row(trial.name, trial.variant.name, trial.seed)
    is_search = spec.search is not None
    return job, row_of(job, trial.variant.name, trial.seed, spec.objective.metric, is_search=is_search)
