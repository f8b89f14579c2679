"""What a search proposes next. Nothing is remembered: the study is made anew from the proposals so far, each time.

Invariant: a proposal is a function of the search, of its number and of what is known of the others, for its sampler is
seeded by (seed, number). So a search that is resumed proposes what an uninterrupted one does.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_api.errors import Fault, SpecError
from finetune_api.experiment import Parameter, Search
from finetune_api.metrics import Mode

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Proposal:
    """One proposal, and what is known of it."""

    settings: Mapping[str, Any]
    """Field → value."""
    value: float | None = None
    """Mean of the objective over its seeds, once all of them have ended."""
    pruned_at: Mapping[int, float] = field(default_factory=dict)
    """Step → value of a trial of it that was ended early."""
    has_failed: bool = False


def propose(search: Search, mode: Mode, known: Sequence[Proposal]) -> dict[str, Any]:
    """Field → value of the next proposal, the one after all that are ``known`` (in their order).

    Raises:
        SpecError: Optuna is not installed.
    """
    optuna = optuna_module()
    space = {parameter.field: distribution_of(parameter) for parameter in search.parameters}
    direction = "maximize" if mode == "max" else "minimize"
    study = optuna.create_study(direction=direction, sampler=_sampler(search, len(known)))
    study.add_trials([frozen_trial(one, space) for one in known])
    asked = study.ask(space)
    return {name: asked.params[name] for name in space}


def optuna_module() -> Any:
    """Optuna, which says what goes wrong and nothing else.

    Raises:
        SpecError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        told = "needs optuna, which is not installed: pip install 'finetune-operator[search]'"
        raise SpecError((Fault("spec.search", told),)) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(search: Search, number: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler, TPESampler

    seed = zlib.crc32(f"{search.seed}/{number}".encode())
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=search.startup_proposals)


def distribution_of(parameter: Parameter) -> "BaseDistribution":
    """What a parameter may be, as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.categorical is not None:
        return CategoricalDistribution(parameter.categorical.choices)
    if parameter.int_range is not None:
        range_ = parameter.int_range
        high = range_.high - (range_.high - range_.low) % range_.step
        return IntDistribution(range_.low, high, log=range_.log, step=range_.step)
    if parameter.log_uniform is not None:
        return FloatDistribution(parameter.log_uniform.low, parameter.log_uniform.high, log=True)
    assert parameter.uniform is not None
    return FloatDistribution(parameter.uniform.low, parameter.uniform.high)


def frozen_trial(proposal: Proposal, space: "dict[str, BaseDistribution]") -> "FrozenTrial":
    """A proposal, as Optuna has it; ``space``: field → what it may be."""
    from optuna.trial import TrialState, create_trial

    if proposal.value is not None:
        state = TrialState.COMPLETE
    elif proposal.pruned_at:
        state = TrialState.PRUNED
    else:
        state = TrialState.FAIL if proposal.has_failed else TrialState.RUNNING
    return create_trial(
        params=dict(proposal.settings),
        distributions=space,
        value=proposal.value,
        intermediate_values=dict(proposal.pruned_at),
        state=state,
    )
