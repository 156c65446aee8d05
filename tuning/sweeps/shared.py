"""What all trials of a sweep share, made once before the first: scenes, index, captions, vocabulary."""

from collections.abc import Callable
from math import ceil
from typing import Any

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.data.index_folder import index_of
from tips_ray.errors import Faults
from tips_ray.launch.vocabulary import trained_vocabulary
from tips_ray.runs.mlflow_access import without_credentials
from tips_ray.runs.run import claim_data, require_data
from tips_ray.runs.tracking import Tracking
from tips_ray.scenes.shards import stored_scenes
from tuning.sweeps.queue import Places
from tuning.sweeps.rungs import Rungs
from tuning.sweeps.space import run_of, scenes_uri

SCENES_SEED = 0
"""Seed of the scenes that trials train on; evaluations use others."""
VOCABULARY = {"captions.tokenizer", "text.vocab_size"}
"""Keys of a space with which each trial has a vocabulary of its own."""
CAPTION_COLUMNS = {"web_caption": "web_caption", "synthetic_caption": "synthetic_caption"}


def require_same_captions(config: SweepConfig, base: RunConfig) -> None:
    """
    Raises:
        Faults: captions are made once, and settings would read others.
    """
    differ = [key for key in config.space if key == "global_batch_images" or key.startswith("captions.captioner")]
    why = "captions.source (live) makes captions once for all settings"
    cure = "make them before, by tips-ray caption with the run of each value, and set captions.source=store"
    if differ and base.captions.source == "live":
        raise Faults([f"space.{key}: {why}; {cure}" for key in differ])


def prepared(
    config: SweepConfig, base: RunConfig, uri: str, parent: Tracking, tell: Callable[[str], None]
) -> tuple[Places, RunConfig]:
    """Make scenes, index, captions and vocabulary.

    Args:
        config: of the sweep.
        base: the run that all settings start from.
        uri: the sweep's folder.
        parent: of MLflow, whose database all trials use.
        tell: gets a line about each part.

    Returns:
        The places, and the run with what was made.

    Raises:
        ValueError: the data are wrong, or not those that the sweep began with.
    """
    runs = storage.join(uri, "runs")
    shared: dict[str, Any] = {"tracking.experiment": base.tracking.experiment}
    if parent.uri:
        shared["tracking.mlflow_uri"] = parent.uri
    if config.scenes:
        rate = stored_scenes(scenes_uri(config), SCENES_SEED, config.scenes, CAPTION_COLUMNS)
        tell(f"scenes     {config.scenes:,} {f'rendered, {rate:.0f}/s' if rate else 'are there'}")
    index = index_of(base.data, storage.join(runs, "index"))
    require_data(uri, index.fingerprint, index.earlier)
    claim_data(uri, index.fingerprint)
    tell(f"data       {index.rows:,} rows in {index.shards.num_rows} shards")
    if base.captions.source != "column":
        shared["captions.store"] = base.captions.store or storage.join(base.storage, "captions")
    if base.captions.source == "live":
        _caption(config, run_of(config, {**shared, "storage": runs}), tell)
        shared["captions.source"] = "store"
    base = run_of(config, shared)
    if base.captions.tokenizer is None and not VOCABULARY & config.space.keys():
        shared["captions.tokenizer"] = _vocabulary(base, index, uri)
    tell(f"tracking   {f'MLflow at {without_credentials(parent.uri)}' if parent.uri else 'no MLflow'}")
    tags = {"sweep": config.name, **({"mlflow.parentRunId": parent.run_id} if parent.run_id else {})}
    return Places(uri, shared, tags), run_of(config, shared)


def _caption(config: SweepConfig, base: RunConfig, tell: Callable[[str], None]) -> None:
    """Make the captions that trials read up to the last rung, which the best of them reach: all trials share them.

    A stream reads some windows ahead of its steps.
    """
    import ray

    from tips_ray.launch.data_jobs import caption_data

    is_guest, rungs = ray.is_initialized(), Rungs(config, base)
    window_steps = base.data.window_chunks * base.data.chunk_rows / base.global_batch_images
    ahead = ceil((4 * base.resources.data_cpus + 8) * window_steps)
    steps = min(rungs.steps[-1] + ahead, base.schedule.total_steps)
    try:
        for seed in rungs.seeds:
            caption_data(override(RunConfig, base.model_dump(mode="json"), {"seed": seed}), tell, steps)
    finally:
        if not is_guest:
            ray.shutdown()  # trials need a Ray of other sizes


def _vocabulary(base: RunConfig, index: Any, uri: str) -> str:
    """One vocabulary for all trials, whose batches are then equal."""
    from tips_ray.launch.driver import captions_of

    place = storage.join(uri, "tokenizer.json")
    if not storage.exists(place):
        with captions_of(base, index) as captions:
            storage.write_bytes(place, trained_vocabulary(base, index, captions))
    return place
