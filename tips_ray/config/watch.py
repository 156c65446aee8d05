"""Config of what watches over a run: the guard of every step and the health of the logged ones."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from tips_ray.config.schema import Schema


class GuardConfig(Schema):
    """What follows when a step's loss or gradient norm is not finite: judged on all ranks alike before the update, and
    saved for `tips-ray replay`."""

    policy: Literal["stop", "skip"] = "stop"
    """(D) `stop` ends the run; `skip` leaves weights, averages, centres and teacher as they are and goes on."""
    max_skipped: NonNegativeInt = 10
    """(D) Steps that `skip` may leave out in the whole run, across restarts."""


class HealthConfig(Schema):
    """Signs of collapse, judged at logged steps after the learning rate's warm-up."""

    stop_on_collapse: bool = True
    """(D) Stop the run with a sentence; False only logs the metrics."""
    collapse_patience: PositiveInt = 20
    """(D) Logged steps in a row that must show the same sign."""
