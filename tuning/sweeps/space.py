"""Settings of a sweep: values for the keys of its space, drawn at random, by a grid, or given."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.space import DomainConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.errors import Faults

Values = dict[str, Any]
"""Dotted keys that have a value of their own in a setting."""
CHANGES = "schedule.changes"
"""Key of the values that a child of population-based training has from some step on."""
BELIEF = 0.5
"""(D) Share of the random values that are drawn near a prior."""
SPREAD = 0.15
"""(D) Standard deviation of those, as a share of the way from the smallest to the largest value."""
TRIES = 100
"""Draws in a row that the run's schema refuses before the space is called too narrow."""


def run_of(config: SweepConfig, values: Mapping[str, Any], name: str = "setting", seed: int | None = None) -> RunConfig:
    """The run of one setting and seed, by default that of the config, not yet placed in a sweep's folder.

    Raises:
        Faults: the values give no valid run.
    """
    own = {"name": name, **({} if seed is None else {"seed": seed})}
    scenes = {"data.sources": [{"uri": scenes_uri(config)}]} if config.scenes else {}
    return override(RunConfig, config.run, {**scenes, **values, **own})


def scenes_uri(config: SweepConfig) -> str:
    """Where the sweep's rendered scenes lie."""
    return storage.join(config.storage, config.name, "scenes", f"train-{config.scenes}")


def require_valid(config: SweepConfig) -> RunConfig:
    """Check the run, and every key of the space with each choice or both ends; returns the run.

    Raises:
        Faults: the run's schema refuses a value, whatever the other keys are; each is named.
    """
    base = _base_of(config)
    config.all_rungs(base)
    faults = _faults_of_list(config)
    for key, domain in config.space.items():
        if isinstance(value_at(base, key), dict) or any(isinstance(value, dict) for value in domain.choice or ()):
            place = f"{'listed: ' if config.listed else 'space.'}{key}"
            below = _below(base, key)
            faults.append(f"{place} is a section of the config: name one of its keys, such as {key}.{below}")
            continue
        for value in () if config.listed else domain.examples():
            try:
                run_of(config, {key: value})
            except Faults as error:
                if not _is_valid_beside_others(config, key, value):
                    faults += [f"space.{key} ({value}): {sentence}" for sentence in error.sentences]
                    break
    if faults:
        raise Faults(faults)
    return base


def _faults_of_list(config: SweepConfig) -> list[str]:
    faults = []
    for name, values in config.listed.items():
        try:
            run_of(config, values)
        except Faults as error:
            faults += [f"listed.{name}: {sentence}" for sentence in error.sentences]
    return faults


def _base_of(config: SweepConfig) -> RunConfig:
    try:
        return run_of(config, {})
    except Faults as error:
        raise Faults([f"run.{sentence}" for sentence in error.sentences]) from None


def _below(base: RunConfig, key: str) -> str:
    section = value_at(base, key)
    return next(iter(section)) if isinstance(section, dict) and section else "KEY"


def whole_values(config: SweepConfig, values: Mapping[str, Any]) -> Values:
    """A setting with the run's value for every key of the space that it lacks and whose condition holds."""
    base = run_of(config, {})
    return active_values(config, {key: values.get(key, value_at(base, key)) for key in config.space})


def _is_valid_beside_others(config: SweepConfig, key: str, value: Any) -> bool:
    """Whether some random setting takes the value; alone it is refused."""
    for attempt in range(TRIES):
        values = {**_drawn(config, np.random.default_rng([config.seed, attempt])), key: value}
        try:
            run_of(config, active_values(config, values))
            return True
        except Faults:
            continue
    return False


def random_values(config: SweepConfig, number: int) -> Values:
    """The values of setting `number` of a random search: a pure function of space, `seed` and number.

    Raises:
        ValueError: the run's schema refuses all of many draws.
    """
    refused: Exception | None = None
    for attempt in range(TRIES):
        shares = np.random.default_rng([config.seed, number, attempt])
        values = _drawn(config, shares)
        try:
            run_of(config, values)
            return values
        except Faults as error:
            refused = error
    raise ValueError(f"space: the run's schema refuses {TRIES} random settings in a row, the last since {refused}")


def _drawn(config: SweepConfig, random: np.random.Generator) -> Values:
    drawn = {key: _near_or_far(domain, random) for key, domain in config.space.items()}  # whether they count or not
    return active_values(config, drawn)


def _near_or_far(domain: DomainConfig, random: np.random.Generator) -> Any:
    """A value of a domain; half of all values lie near the prior, if there is one."""
    share, is_near, distance = random.random(), random.random() < BELIEF, random.standard_normal()
    if domain.prior is None or not is_near:
        return domain.at(share)
    if domain.choice is not None:
        return domain.prior
    near = domain.share_of(domain.prior) + SPREAD * distance
    return domain.at(near if 0 <= near <= 1 else share)


def is_active(domain: DomainConfig, values: Mapping[str, Any]) -> bool:
    """Whether a key has a value of its own, given those of the keys before it."""
    when = domain.when
    return when is None or (when.key in values and when.holds(values[when.key]))


def grid(config: SweepConfig) -> Iterator[Values]:
    """All settings of the grid, the last key changing fastest; each once, although conditions may hide keys."""
    seen: set[str] = set()
    keys = list(config.space)
    for combination in product(*(config.space[key].grid() for key in keys)):
        all_values = dict(zip(keys, combination, strict=True))
        values = active_values(config, all_values)
        if repr(values) not in seen:
            seen.add(repr(values))
            yield values


def settings_of(config: SweepConfig) -> int:
    """Number of settings: those asked for, or all that there are, if these are fewer."""
    if config.listed:
        return min(config.settings or len(config.listed), len(config.listed))
    is_finite = all(domain.choice is not None or domain.integer is not None for domain in config.space.values())
    most = sum(1 for _ in grid(config)) if config.search == "grid" or is_finite else None
    return min(filter(None, (config.settings, most)))


def active_values(config: SweepConfig, values: Mapping[str, Any]) -> Values:
    """The values without those of keys whose condition does not hold."""
    active: Values = {}
    for key, domain in config.in_order():
        if key in values and is_active(domain, active):
            active[key] = values[key]
    return {key: active[key] for key in config.space if key in active}


def prior_values(config: SweepConfig) -> Values | None:
    """The setting of all priors, with the run's own values elsewhere; None without a prior, or where it is invalid."""
    base = run_of(config, {})
    if all(domain.prior is None for domain in config.space.values()):
        return None
    known = {key: value_at(base, key) if one.prior is None else one.prior for key, one in config.space.items()}
    values = active_values(config, {key: value for key, value in known.items() if config.space[key].contains(value)})
    return values if is_valid(config, values) and lies_in(config, values) else None


def lies_in(config: SweepConfig, values: Mapping[str, Any]) -> bool:
    """Whether a setting, perhaps of an earlier space, is one of this space or list.

    A key that the setting lacks has the run's value, which must lie in its domain. A key that the space lacks must have
    the run's value.
    """
    if config.listed:
        return any(are_equal(config, values, one) for one in config.listed.values())
    if CHANGES in values and config.scheduler != "pbt":
        return False
    base = run_of(config, {})
    whole = {key: values.get(key, value_at(base, key)) for key in config.space}
    outside = {key: value for key, value in values.items() if key not in config.space and key != CHANGES}
    active = active_values(config, whole)
    return all(config.space[key].contains(value) for key, value in active.items()) and all(
        _equal(value, value_at(base, key)) for key, value in outside.items()
    )


def are_equal(config: SweepConfig, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings give the same run: a key that one of them lacks has the run's value."""
    if any(not _equal(one[key], other[key]) for key in one.keys() & other.keys()):
        return False
    lacking = {**one, **other}.keys() - (one.keys() & other.keys())
    base = run_of(config, {}) if lacking else None
    return base is None or all(_equal({**one, **other}[key], value_at(base, key)) for key in lacking)


def name_in_list(config: SweepConfig, values: Mapping[str, Any]) -> str:
    """The name that a list gives a setting now; empty: the sweep has no list, or no such setting in it."""
    return next((name for name, one in config.listed.items() if are_equal(config, values, one)), "")


def is_valid(config: SweepConfig, values: Mapping[str, Any]) -> bool:
    """Whether the run's schema takes the values."""
    try:
        run_of(config, values)
        return True
    except Faults:
        return False


def value_at(run: RunConfig, dotted_key: str) -> Any:
    """The run's value of a dotted key; None where a part of the way is missing."""
    found: Any = run.model_dump(mode="json")
    for part in dotted_key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
