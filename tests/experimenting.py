"""A cluster of experiments without processes: jobs train a step a tick, and end with the value that they are told."""

from datetime import UTC, datetime, timedelta

from finetune_api.experiment_checks import parse_experiment
from finetune_api.status import Best, EvaluationPoint, JobStatus, Phase, Progress, Reason, Result
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.experiments.observed import ObservedExperiment
from finetune_operator.experiments.plan import plan_experiment

T0 = datetime(2030, 1, 1, tzinfo=UTC)
TEMPLATE = {
    "task": "text-classification",
    "model": {"source": "hf://a/b"},
    "data": {"source": "file:///d"},
    "distributed": {"workers": 2, "resources": {"gpus": 1}},
}
TWO = [{"name": "full"}, {"name": "head", "set": {"strategy.trainable": "head"}}]


def experiment(**fields):
    spec = {"template": TEMPLATE, "objective": {"metric": "accuracy"}, "seeds": [0, 1, 2], "variants": TWO} | fields
    return parse_experiment(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneExperiment",
            "metadata": {"name": "e"},
            "spec": {name: value for name, value in spec.items() if value is not None},
        }
    )


class World:
    """Applies plans. ``course``: (job, step from 1) → its value at that evaluation; a job takes ``steps`` ticks."""

    def __init__(self, made, course, *, steps=4, fails=()):
        self.experiment, self.course, self.steps, self.fails = made, course, steps, fails
        self.jobs, self.now, self.trained, self.most, self.plans = {}, T0, 0, 0, []
        self.interrupted = False

    def plan(self):
        observed = ObservedExperiment(self.experiment, self.now, dict(self.jobs), self.interrupted)
        made = plan_experiment(observed)
        self.plans.append(made)
        return made

    def reconcile(self):
        """Plan and apply until nothing is left to do at this moment."""
        while not (made := self.plan()).is_empty:
            assert len(self.plans) < 5000, "never at rest"
            self.apply(made)

    def apply(self, made):
        for job in made.create:
            assert job.metadata.name not in self.jobs
            self.jobs[job.metadata.name] = job
        for name, fields in made.change.items():
            job = self.jobs[name]
            self.jobs[name] = job.model_copy(update={"spec": job.spec.model_copy(update=dict(fields))})
        for name in made.delete:
            del self.jobs[name]
        if made.status is not None:
            self.experiment = self.experiment.model_copy(update={"status": made.status})

    def tick(self):
        """Each job that may run trains one step."""
        self.now += timedelta(seconds=60)
        active = [job for job in self.jobs.values() if not is_over(job) and not job.spec.suspend]
        self.most = max(self.most, len(active))
        for job in active:
            self.jobs[job.metadata.name] = job.model_copy(update={"status": self.trained_on(job)})

    def trained_on(self, job):
        status = job.status or JobStatus()
        if job.spec.stop:
            return with_situation(status, Situation(Phase.SUCCEEDED, Reason.PRUNED), self.now, 0)
        if job.metadata.name in self.fails:
            return with_situation(status, Situation(Phase.FAILED, Reason.CONFIGURATION, "broken"), self.now, 0)
        self.trained += 1
        step = (status.progress.step if status.progress else 0) + 1
        value = self.course(job, step)
        points = (*status.evaluations, EvaluationPoint(step=step, value=value))
        best = max(one.value for one in points)
        status = status.model_copy(
            update={
                "progress": Progress(step=step, total_steps=self.steps, epoch=step, percent=50, time=self.now),
                "evaluations": points,
                "best": Best(metric="accuracy", value=best, step=step),
                "running_seconds": status.running_seconds + 60,
            }
        )
        if step < self.steps:
            return with_situation(status, Situation(Phase.RUNNING, Reason.TRAINING), self.now, 0)
        result = Result(reason="Completed", model=f"/runs/{job.metadata.name}/model", metrics={"accuracy": value})
        done = status.model_copy(update={"result": result})
        return with_situation(done, Situation(Phase.SUCCEEDED, Reason.COMPLETED), self.now, 0)

    def run(self, ticks=1000):
        """To its end, or for so many ticks."""
        for _ in range(ticks):
            self.reconcile()
            if self.status.phase in ("Succeeded", "Failed"):
                break
            self.tick()
        return self

    @property
    def status(self):
        return self.experiment.status

    def condition(self, kind):
        return next(one for one in self.status.conditions if one.type == kind)


def is_over(job):
    return job.status is not None and job.status.phase in (Phase.SUCCEEDED, Phase.FAILED)
