"""What every rank of a run is told, and the step from which it goes on; without torch."""

from dataclasses import dataclass

from tips_ray.config import RunConfig
from tips_ray.runs.checkpoint import checkpoints_of, newest_checkpoint
from tips_ray.runs.tracking import TrackingHandle


@dataclass(frozen=True)
class RunInputs:
    """What every rank of a run is told; picklable."""

    config: RunConfig
    uri: str
    """Run folder."""
    fingerprints: dict[str, str]
    tracking: TrackingHandle | None

    @property
    def checkpoints_uri(self) -> str:
        return checkpoints_of(self.uri)


def resumed_step(run: RunInputs) -> int:
    """The step of the newest checkpoint that verifies, 0 where there is none.

    Raises:
        ValueError: the data are not those that it was trained on.
    """
    found = newest_checkpoint(run.checkpoints_uri)
    if found is None:
        return 0
    given, trained = run.fingerprints["data_fingerprint"], found.manifest["data_fingerprint"]
    if given != trained:
        raise ValueError(
            f"the data of {run.uri} have changed since step {found.step} (fingerprint {trained[:12]} -> "
            f"{given[:12]}): restore them, or give the run another name"
        )
    return found.step
