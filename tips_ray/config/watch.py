"""Config of checks during a run: the guard of every step, and signs of collapse at logged steps."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from tips_ray.config.schema import Schema


class GuardConfig(Schema):
    """Reaction to a loss or gradient norm that is not finite. All ranks decide alike before the update; the step is
    saved for `tips-ray replay`."""

    policy: Literal["stop", "skip"] = "stop"
    """(D) `stop` ends the run; `skip` leaves weights, averages, centres and teacher unchanged and continues."""
    max_skipped: NonNegativeInt = 10
    """(D) Most steps that `skip` may skip in the whole run, across restarts."""


class HealthConfig(Schema):
    """Signs of collapse and of heads that learn nothing, checked at logged steps after the learning rate's warm-up."""

    stop_on_collapse: bool = True
    """(D) Whether to stop the run with a message; False only logs the metrics."""
    stop_without_information: bool = False
    """(D) Whether to stop the run also where the student of a prototype head predicts its targets worse than their mean
    does (`information` below 0, docs/training.md). The contrastive losses of such a run may still learn."""
    collapse_patience: PositiveInt = 20
    """(D) Logged steps in a row that must show the same sign; the effective rank is in every tenth of them alone."""
