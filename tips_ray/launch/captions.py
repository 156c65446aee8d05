"""Where a run finds the captions that its data do not hold."""

from pathlib import Path

from tips_ray import storage
from tips_ray.captioning.model_folder import fingerprint, model_folder
from tips_ray.config import CaptionerConfig, RunConfig
from tips_ray.data.captions.store import CaptionStore, imported_store


def caption_store(config: RunConfig) -> tuple[CaptionStore, CaptionerConfig]:
    """The captioner's caption store, and the captioner with a model path that every process of this machine can open.

    Raises:
        ValueError: there is no captioner in the config, or no such model.
    """
    captioner = config.captions.captioner
    if captioner is None:
        raise ValueError("captions.captioner is not set: name a PaliGemma in captions.captioner.model")
    folder = model_folder(captioner)
    store = CaptionStore(_store_uri(config), fingerprint(captioner, folder))
    if Path(captioner.model).is_dir():  # a path relative to the user's folder, unknown to Ray workers
        captioner = CaptionerConfig.model_validate({**captioner.model_dump(), "model": str(folder.resolve())})
    return store, captioner


def store_of(config: RunConfig) -> CaptionStore:
    """The store of captions that were made or imported before the run.

    Raises:
        ValueError: as `caption_store`; or nothing was imported under that name.
    """
    name = config.captions.imported
    if name is None:
        return caption_store(config)[0]
    store = imported_store(_store_uri(config), name)
    if not store.description():
        raise ValueError(
            f"captions.imported ({name}): {store.folder} is empty; first run tips-ray captions import --captioner "
            f"{name}"
        )
    return store


def _store_uri(config: RunConfig) -> str:
    return config.captions.store or storage.join(config.storage, "captions")
