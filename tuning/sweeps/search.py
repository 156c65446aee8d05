"""Proposes the next setting of a sweep: from a list or grid, at random, or by Optuna, whose study is of the record.

A proposal is a pure function of the sweep's config and its record, so that a killed sweep proposes the same again. We
ask Optuna ourselves: Ray's OptunaSearch forgets paused trials when its driver dies, and knows one space for ever.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tips_ray.config.space import DomainConfig
from tips_ray.config.sweep import SweepConfig
from tuning.sweeps.record import Setting
from tuning.sweeps.rungs import Rungs
from tuning.sweeps.space import (
    Values,
    active_values,
    are_equal,
    grid,
    is_active,
    is_valid,
    lies_in,
    prior_values,
    random_values,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

STARTUP = 10
"""(D) Settings drawn at random before Optuna proposes any."""
ONE_IN = 4
"""(D) One in so many later ones is drawn at random too, so that a search that has narrowed too soon can recover."""
TRIES = 20


def next_values(
    config: SweepConfig, rungs: Rungs, settings: Sequence[Setting], earlier: Sequence[Values] = ()
) -> tuple[Values, str] | None:
    """The next setting and who proposes it; None: the space has no other.

    Args:
        config: of the sweep.
        rungs: of the sweep.
        settings: all that lie in the space, in the order in which they were proposed.
        earlier: settings of earlier work, to come before those of the search.
    """
    known = [one.values for one in settings]  # 1 equals 1.0
    if config.listed:
        left = ((values, name) for name, values in config.listed.items())
        return next((one for one in left if not any(are_equal(config, one[0], values) for values in known)), None)
    if config.search == "grid":
        values = next((values for values in grid(config) if values not in known), None)
        return None if values is None else (values, "grid")
    believed = prior_values(config)
    if believed is not None and believed not in known:
        return believed, "prior"
    for values in earlier:
        if values not in known and lies_in(config, values) and is_valid(config, values):
            return values, "earlier"
    number = len(settings)
    if config.search == "tpe" and number >= STARTUP and number % ONE_IN:
        for attempt in range(TRIES):
            values = proposed_by_optuna(config, rungs, settings, attempt)
            if values is not None and values not in known:
                return values, "tpe"
    return _random_one(config, number, known)


def proposals(config: SweepConfig, rungs: Rungs, earlier: Sequence[Values] = ()) -> Iterator[tuple[Values, str]]:
    """The first settings of a new sweep, as far as no score decides them."""
    settings: list[Setting] = []
    while config.settings is None or len(settings) < config.settings:
        found = next_values(config, rungs, settings, earlier)
        if found is None or found[1] == "tpe":
            return
        settings.append(Setting(len(settings), *found))
        yield found


def _random_one(config: SweepConfig, number: int, known: Sequence[Values]) -> tuple[Values, str] | None:
    for attempt in range(TRIES):
        values = random_values(config, number + attempt * 1_000_003)
        if values not in known:
            return values, "random"
    return None


def proposed_by_optuna(
    config: SweepConfig, rungs: Rungs, settings: Sequence[Setting], attempt: int = 0
) -> Values | None:
    """What Optuna proposes next; None where the run's schema refuses it."""
    import optuna

    seed = int(np.random.default_rng([config.seed, len(settings), attempt]).integers(2**31))
    study = study_of(config, rungs, settings)
    has_conditions = any(domain.when for domain in config.space.values())
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):  # of `group`
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, group=has_conditions)
    values = _asked(config, study.ask())
    return values if is_valid(config, values) else None


def _asked(config: SweepConfig, trial: "BaseTrial") -> Values:
    values: Values = {}
    for key, domain in config.in_order():
        if is_active(domain, values):
            values[key] = _suggested(trial, key, domain)
    return active_values(config, values)


def _suggested(trial: "BaseTrial", key: str, domain: DomainConfig) -> Any:
    if domain.choice is not None:
        return domain.choice[trial.suggest_categorical(key, range(len(domain.choice)))]
    low, high = domain.ends
    if domain.integer is not None:
        return trial.suggest_int(key, int(low), int(high))
    number = trial.suggest_float(key, low, high, log=domain.loguniform is not None)
    return domain.at(domain.share_of(number))  # to six digits


def study_of(config: SweepConfig, rungs: Rungs, settings: Sequence[Setting], storage: Any = None) -> "Study":
    """Optuna's study of the sweep: settings with scores as complete trials, others as running ones.

    Scores are compared at one rung: the highest at which there are enough. A setting that has collapsed or diverged
    has its last score and a violated constraint.

    Args:
        config: of the sweep.
        rungs: of the sweep.
        settings: those of the space.
        storage: of Optuna, for its dashboard; None: in memory.
    """
    import optuna

    for name in ("optuna", "optuna.samplers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    directions: list[Any] = ["minimize" if score.better == "lower" else "maximize" for score in config.scores]
    study = optuna.create_study(storage=storage, study_name=config.name, directions=directions)
    step = _compared_at(config, rungs, settings)
    for setting in settings:
        study.add_trial(_frozen(config, rungs, setting, step))
    return study


def write_study(config: SweepConfig, rungs: Rungs, settings: Sequence[Setting], path: Path) -> None:
    """Write Optuna's study as a journal, which optuna-dashboard shows; it is made anew and read by nothing of ours."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.unlink(missing_ok=True)
    study_of(config, rungs, settings, JournalStorage(JournalFileBackend(str(path))))


def _compared_at(config: SweepConfig, rungs: Rungs, settings: Sequence[Setting]) -> int:
    """The highest rung with more scores than the space has keys, or the first: a model needs some settings."""
    enough = len(config.space) + 2
    found = [step for step in rungs.steps if len(rungs.ranked(settings, step)) >= enough]
    return found[-1] if found else rungs.steps[0]


def _frozen(config: SweepConfig, rungs: Rungs, setting: Setting, step: int) -> Any:
    import optuna

    violation, score = setting.violation(rungs.seeds), setting.score(step, rungs.seeds)
    if score is None and violation:
        last = setting.last_score(rungs.seeds)
        score = last[1] if last else tuple(_worst(one.better) for one in config.scores)
    state = optuna.trial.TrialState.COMPLETE if score is not None else optuna.trial.TrialState.RUNNING
    parameters = {key: value for key, value in setting.values.items() if key in config.space}
    return optuna.trial.create_trial(
        state=state,
        values=score,
        params={key: _stored(config.space[key], value) for key, value in parameters.items()},
        distributions={key: _distribution(config.space[key]) for key in parameters},
        user_attrs={"setting": setting.number, "rung": step, **_named(config, setting)},
        constraints={"collapsed or diverged": float(bool(violation))} if score is not None else None,
    )


def _named(config: SweepConfig, setting: Setting) -> Mapping[str, Any]:
    """Choices, which Optuna knows by their place, as they are."""
    return {key: str(value) for key, value in setting.values.items() if key in config.space}


def _stored(domain: DomainConfig, value: Any) -> Any:
    return domain.choice.index(value) if domain.choice is not None else value


def _distribution(domain: DomainConfig) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.choice is not None:
        return CategoricalDistribution(range(len(domain.choice)))
    low, high = domain.ends
    if domain.integer is not None:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=domain.loguniform is not None)


def _worst(better: str) -> float:
    return 1e30 if better == "lower" else -1e30
