"""Population-based training: at each rung children of the best settings take the places of the worst.

A child takes its donor's checkpoint and history, and one more entry of `schedule.changes`. Its config alone, trained
once from the start, therefore gives its whole curve. All members have the same seed, and so the same batches.

Source: arXiv:1711.09846, with truncation selection and perturbation by a factor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tips_ray import storage
from tips_ray.config.sweep import CHANGEABLE, SweepConfig
from tips_ray.runs.checkpoint import MANIFEST, checkpoint_at, checkpoints_of
from tips_ray.runs.run import DATA
from tuning.sweeps.record import Record, Setting
from tuning.sweeps.rungs import Rungs
from tuning.sweeps.space import CHANGES, Values, run_of, value_at

REPLACED = 4
"""(D) One in so many members is replaced at a rung, at least one."""
FACTOR = 1.2
"""(D) A child's value is its donor's times or over this, within the domain."""


def next_generation(
    config: SweepConfig, rungs: Rungs, settings: Sequence[Setting], record: Record, run_uri: Callable[[int], str]
) -> bool:
    """Begin the next generation, if all members have reached the end of this one; returns whether it was begun.

    Call it while nothing trains. Checkpoints are copied before the record says that there are children: a driver that
    is killed between the two copies them again.
    """
    alive = [one for one in settings if not one.ended]
    reached = min((one.granted for one in alive), default=0)
    ranked = rungs.ranked([one for one in alive if one.granted == reached], reached)
    if reached not in rungs.steps[:-1] or not ranked:
        return False
    step = rungs.steps[rungs.steps.index(reached) + 1]
    fallen = [one for one in settings if one.violation(rungs.seeds) and not _has_child(one)]
    count = max(len(ranked) // REPLACED, 1)
    losers = [*fallen, *(one for one in ranked[-count:] if one is not ranked[0])]
    children = []
    for place, loser in enumerate(losers):
        donor, number = ranked[place % count], len(record.settings) + place
        _copy_history(run_uri(donor.number), run_uri(number), reached)
        values = child_values(config, donor, number, reached)
        children.append({"values": values, "donor": donor.number, "instead_of": loser.number})
    record.replace(step, [one for one in ranked if one not in losers], children)
    return True


def _has_child(setting: Setting) -> bool:
    return setting.ended.startswith("replaced")


def child_values(config: SweepConfig, donor: Setting, number: int, step: int) -> Values:
    """The donor's values, with others from a step on; a pure function of sweep and child."""
    random, now = np.random.default_rng([config.seed, number]), current_values(config, donor.values)
    change: dict[str, Any] = {"from_step": step}
    for key, domain in config.space.items():
        low, high = domain.ends
        factor = FACTOR if random.random() < 0.5 else 1 / FACTOR
        change[CHANGEABLE[key]] = min(max(float(f"{now[key] * factor:.6g}"), low), high)
    return {**donor.values, CHANGES: [*donor.values.get(CHANGES, ()), change]}


def current_values(config: SweepConfig, values: Mapping[str, Any]) -> Values:
    """Values of the space's keys after all changes."""
    base = run_of(config, {})
    now = {key: values.get(key, value_at(base, key)) for key in config.space}
    for change in values.get(CHANGES, ()):
        now |= {key: change[CHANGEABLE[key]] for key in now if CHANGEABLE.get(key) in change}
    return now


def _copy_history(donor_uri: str, child_uri: str, step: int) -> None:
    """Copy the donor's checkpoint of a step, its metrics and the note of its data."""
    checkpoint = checkpoint_at(checkpoints_of(donor_uri), step).uri
    place = storage.join(checkpoints_of(child_uri), checkpoint.rpartition("/")[2])
    _copy(donor_uri, child_uri, DATA)
    for name in storage.list_names(storage.join(donor_uri, "metrics")):
        _copy(storage.join(donor_uri, "metrics"), storage.join(child_uri, "metrics"), name)
    for name in sorted(storage.list_names(checkpoint), key=lambda name: name == MANIFEST):  # it makes it whole
        _copy(checkpoint, place, name)


def _copy(source: str, target: str, name: str) -> None:
    storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))
