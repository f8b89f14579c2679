"""The one decision: from what is observed of an experiment to what shall be done about it.

``plan_experiment`` is pure and level-triggered, as a job's plan is: once its plan is applied and nothing new happens
the next plan is empty. Order of its questions: is it finished; may it run; which trials have no hope; which ones are
next; has every one ended.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_api.experiment import ExperimentPhase, ExperimentReason, ExperimentStatus
from finetune_api.experiment_checks import mode_of
from finetune_operator.experiments.answer import best_trial, conclusion, counts, variant_table
from finetune_operator.experiments.course import hopeless, with_next
from finetune_operator.experiments.observed import ExperimentPlan, ObservedExperiment
from finetune_operator.experiments.obstacles import obstacles
from finetune_operator.experiments.scene import Scene, see
from finetune_operator.experiments.standing import Standing, is_finished, with_standing
from finetune_operator.experiments.trials import Trial


def plan_experiment(observed: ObservedExperiment) -> ExperimentPlan:
    """What shall be done now; empty whenever everything is as it should be."""
    made = _plan_finished(observed) if is_finished(observed.status) else _decide(observed)
    return replace(made, status=None) if made.status == observed.status else made


def _plan_finished(observed: ObservedExperiment) -> ExperimentPlan:
    """Keep the models that are to be kept, and go when the time has come."""
    spec, status = observed.experiment.spec, observed.status
    spare = spec.promote == "keepBest" and status.phase is ExperimentPhase.SUCCEEDED and status.best is not None
    best = status.best.trial if status.best else ""
    delete = tuple(name for name in sorted({*observed.jobs, *observed.names}) if name != best) if spare else ()
    if spec.ttl_seconds_after_finished is None or status.completion_time is None:
        return ExperimentPlan(delete=delete)
    left = status.completion_time + timedelta(seconds=spec.ttl_seconds_after_finished) - observed.now
    if left <= timedelta():
        return ExperimentPlan(delete_experiment=True)
    return ExperimentPlan(delete=delete, look_again_seconds=left.total_seconds())


def _decide(observed: ObservedExperiment) -> ExperimentPlan:
    scene = see(observed)
    if observed.refusal is not None:
        standing = Standing(ExperimentPhase.PENDING, ExperimentReason.INVALID, observed.refusal)
        return ExperimentPlan(status=_status(scene, standing))
    if sum(one.is_failed for one in scene.trials) > scene.experiment.spec.max_failed_trials:
        return _plan_failure(scene)
    rest = _wanted_rest(observed)
    if rest is not None:
        # Who is interrupted interrupts its trials itself, and need not remember to let them go.
        active = () if observed.interrupted else scene.trials
        change = {one.name: {"suspend": True} for one in active if one.is_active and not _is_suspended(one)}
        return ExperimentPlan(change=change, status=_status(scene, rest))
    return _plan_on(scene)


def _plan_failure(scene: Scene) -> ExperimentPlan:
    failed = [one.name for one in scene.trials if one.is_failed]
    told = f"{len(failed)} trials have failed, more than spec.maxFailedTrials allows: {', '.join(failed[:8])}"
    if any(one.is_active for one in scene.trials):
        change = {one.name: {"stop": True} for one in scene.trials if one.is_active and not one.is_pruned}
        standing = Standing(ExperimentPhase.RUNNING, ExperimentReason.RUNNING, f"{told}; the others are ended")
        return ExperimentPlan(change=change, status=_status(scene, standing))
    standing = Standing(ExperimentPhase.FAILED, ExperimentReason.TRIALS_FAILED, f"{told}; their own status says why")
    return ExperimentPlan(status=_status(scene, standing).model_copy(update={"completion_time": scene.observed.now}))


def _wanted_rest(observed: ObservedExperiment) -> Standing | None:
    if observed.interrupted:
        told = "Interrupted; the same command goes on from where it is"
        return Standing(ExperimentPhase.SUSPENDED, ExperimentReason.INTERRUPTED, told)
    if observed.experiment.spec.suspend:
        told = "Suspended by spec.suspend; it goes on once that is false"
        return Standing(ExperimentPhase.SUSPENDED, ExperimentReason.SUSPENDED_BY_USER, told)
    return None


def _plan_on(scene: Scene) -> ExperimentPlan:
    """End what has no hope, go on with what was suspended, make what is next; conclude when nothing is left."""
    lost = {one.name for one in hopeless(scene)}
    change: dict[str, Mapping[str, Any]] = {name: {"stop": True} for name in sorted(lost)}
    for one in scene.trials:
        if one.is_active and _is_suspended(one) and one.name not in lost:
            change[one.name] = {"suspend": False}
    # What is in the way of one trial is in the way of the next.
    scene, create = (scene, []) if scene.observed.obstacle is not None else with_next(scene)
    if not create and scene.observed.obstacle is None and not any(one.is_active for one in scene.trials):
        return _plan_end(scene)
    standing = Standing(ExperimentPhase.RUNNING, ExperimentReason.RUNNING, _told(scene, len(create)))
    return ExperimentPlan(tuple(create), change, status=_status(scene, standing))


def _plan_end(scene: Scene) -> ExperimentPlan:
    status = _status(scene, None)
    is_search = scene.search is not None
    end = conclusion(status.variants, status.best, scene.experiment.spec.objective.metric, is_search=is_search)
    status = with_standing(status, end, scene.observed.now, scene.observed.generation)
    made = sum(one.row is not None for one in scene.trials)
    update = {"completion_time": scene.observed.now, "trials": status.trials.model_copy(update={"total": made})}
    return ExperimentPlan(status=status.model_copy(update=update))


def _is_suspended(trial: Trial) -> bool:
    return trial.job is not None and trial.job.spec.suspend


def _status(scene: Scene, standing: Standing | None) -> ExperimentStatus:
    """The status that follows from the trials as they are; in ``standing``, or where it stood before."""
    observed, spec, mode = scene.observed, scene.experiment.spec, mode_of(scene.experiment)
    table = variant_table(scene.variants, scene.trials, mode, is_search=spec.search is not None)
    rows = tuple(one.row for one in scene.trials if one.row is not None)
    total = len(spec.seeds) * (spec.search.proposals if spec.search else len(scene.variants))
    status = observed.status.model_copy(
        update={
            "start_time": observed.status.start_time or (observed.now if rows else None),
            "trials": counts(scene.trials, total),
            "variants": table,
            "trial_table": rows,
            "best": best_trial(table, scene.trials, mode) or observed.status.best,
        }
    )
    return with_standing(status, standing, observed.now, observed.generation) if standing else status


def _told(scene: Scene, created: int) -> str:
    ended = sum(one.is_ended for one in scene.trials)
    running = sum(one.is_active for one in scene.trials)
    told = f"{ended} trials have ended, {running} run" if created or running else f"{ended} trials have ended"
    return "; ".join([told, *obstacles(scene)])
