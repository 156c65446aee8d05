"""The folder of a sweep: its config and its lease."""

from collections.abc import Iterator
from contextlib import contextmanager

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.sweep import SweepConfig
from tips_ray.runs.folder import parsed_config
from tips_ray.runs.lease import RunIsTrainedError, leased, newest

CONFIG = "sweep.yaml"


def sweep_uri(config: SweepConfig) -> str:
    """The sweep's folder."""
    return storage.resolved(storage.join(config.storage, config.name))


def sweep_config(uri: str) -> SweepConfig:
    """The config of the sweep in a folder.

    Raises:
        ValueError: there is none.
    """
    place = storage.join(uri, CONFIG)
    try:
        return override(SweepConfig, parsed_config(storage.read_text(place), place), {})
    except storage.NotFoundError:
        raise ValueError(f"{uri} is no sweep: it has no {CONFIG}; give STORAGE/NAME of the sweep's config") from None


@contextmanager
def kept_lease(uri: str) -> Iterator[int]:
    """Be the only driver of a sweep during the block; yields the generation of the lease.

    Raises:
        ValueError: another driver works on it.
    """
    generation, holder = newest(uri)
    if generation and holder and holder.is_here and not holder.is_gone:
        raise ValueError(f"{uri}: {holder} works on this sweep; wait for it, or end it with tips-ray sweeps stop")
    try:
        with leased(uri) as generation:
            yield generation
    except RunIsTrainedError:
        raise ValueError(
            f"{uri}: {newest(uri)[1] or 'another driver'} works on this sweep; wait for it, or end it with tips-ray "
            "sweeps stop"
        ) from None
