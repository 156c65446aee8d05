"""Work on a run's data before training: index them, decode every image, caption every image.

Ray is imported only where it is needed: an index is usually built without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.data.index import Index, Job, Scanned
from tips_ray.data.index_folder import index_of, write_index
from tips_ray.data.stream import CaptionAccess
from tips_ray.errors import RunFailedError
from tips_ray.launch import cluster
from tips_ray.launch.captions import caption_store
from tips_ray.launch.checks import require_writable
from tips_ray.launch.progress import tenths

Tell = Callable[[str], None]
"""Shows the user one line."""


def index_data(config: RunConfig, decode: bool, tell: Tell) -> Index:
    """Read or build the index of the data, on Ray where RAY_ADDRESS is set.

    Args:
        config: of the run.
        decode: decode every image, always on Ray, and list the bad ones in the index.
        tell: gets a line for each tenth of the rows that is decoded.

    Raises:
        ValueError: the data are wrong, or there is no cluster at RAY_ADDRESS.
    """
    folder = _index_folder(config)
    with _unwritable_place_named(config):
        index = index_of(config.data, folder, _scan_on_cluster if cluster.address() else None)
    return _decoded(index, config, tell) if decode else index


def _index_folder(config: RunConfig) -> str:
    return storage.join(config.storage, "index")


@contextmanager
def _unwritable_place_named(config: RunConfig) -> Iterator[None]:
    """Say that the place of the index cannot be written, where that is why the block fails."""
    key, place = ("data.index", config.data.index) if config.data.index else ("storage", config.storage)
    try:
        yield
    except storage.StorageError as error:
        if storage.resolved(place) in str(error):
            require_writable(key, place)
        raise


def _scan_on_cluster(function: Callable[[Job], Scanned], shards: list[Job]) -> Iterator[Scanned]:
    """A `Mapper` that joins the cluster only when there are shards to scan."""
    from tips_ray.data.index_pipeline import scan_on_ray
    from tips_ray.launch.failure import root_causes_raised

    cluster.require_cluster()
    cluster.connect()
    with root_causes_raised():
        yield from scan_on_ray(function, shards)


def _decoded(index: Index, config: RunConfig, tell: Tell) -> Index:
    """Add the bad images to the index, and overwrite the one that there is."""
    from tips_ray.data.index_pipeline import with_bad_images
    from tips_ray.launch.failure import root_causes_raised

    is_due = tenths(index.rows)

    def tell_rows(rows: int) -> None:
        if is_due(rows):
            tell(f"decoded {rows:,} of {index.rows:,} rows")

    cluster.require_cluster()
    cluster.connect()
    with root_causes_raised():
        index = with_bad_images(index, config.data, tell_rows)
    return write_index(index, index.uri)


def caption_data(config: RunConfig, tell: Tell, steps: int | None = None) -> str:
    """Caption all images that have no captions yet, in the order in which the run reads them.

    Args:
        config: of the run.
        tell: gets a line about how much there is to do.
        steps: caption what so many steps read; None: all data.

    Returns:
        The folder of the captions.

    Raises:
        ValueError: config, data or captioner are wrong, or there is no room for a captioner.
        RunFailedError: captioning stopped; captions made so far are kept.
    """
    from ray.exceptions import RayError

    from tips_ray.captioning.stream import READ_CPUS, CaptionInputs, due_chunks
    from tips_ray.launch.live_captions import caption_all, why_stopped

    store, captioner = caption_store(config)
    index = index_of(config.data, _index_folder(config))
    due = due_chunks(index, config, store, None if steps is None else steps * config.global_batch_images)
    total, resources = len(index.chunks.rows), config.resources
    if steps is None:
        tell(f"data       {index.rows:,} rows in {total:,} chunks; {total - due.num_rows:,} have their captions")
    elif due.num_rows:
        tell(f"captions   {due.num_rows:,} chunks to make for {steps:,} steps with seed {config.seed}")
    if not due.num_rows:
        return store.folder
    cluster.require_room_for_captioner(config, READ_CPUS)
    if captioner.device == "auto" and not resources.gpus_per_captioner and cluster.address() is None:
        if gpus := cluster.gpus_here():
            tell(f"captions   written on CPUs, though there are {gpus} GPUs: set resources.gpus_per_captioner=1")
    cluster.connect(resources.captioners * resources.cpus_per_captioner + resources.data_cpus)
    try:
        caption_all(CaptionInputs(config, captioner, index.uri, CaptionAccess(store)), due)
    except RayError as error:
        raise RunFailedError(f"{why_stopped(error)}; the same command goes on where it stopped") from None
    return store.folder
