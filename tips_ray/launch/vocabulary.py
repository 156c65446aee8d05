"""The tokenizer of a new run: the given one, or one trained on captions of the data and kept in the run folder."""

from collections.abc import Iterator

import yaml

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.data.captions.join import Waiting, captions_folder, read_captions, with_captions
from tips_ray.data.index import Index, run_order
from tips_ray.data.stream import CaptionAccess
from tips_ray.runs import RunFolder
from tips_ray.runs.run import claim_data, require_data
from tips_ray.tokenizer import train_tokenizer

SAMPLE_CHUNKS = 256
"""Chunks whose captions a tokenizer is trained on."""


def claim(config: RunConfig, index: Index, folder: RunFolder, captions: CaptionAccess | None, step: int = 0) -> str:
    """Claim the run folder for a run that continues at `step`; returns the URI of its tokenizer.

    The vocabulary is trained first: if that fails, the run's name stays free.

    Raises:
        ValueError: the folder holds a run with another config or other data, or no such vocabulary can be trained.
    """
    uri = storage.resolved(config.captions.tokenizer or storage.join(folder.uri, "tokenizer.json"))
    content = None
    if not config.captions.tokenizer and not storage.exists(uri):
        content = trained_vocabulary(config, index, captions)
    require_data(folder.uri, index.fingerprint, index.earlier)
    folder.claim(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), step)
    claim_data(folder.uri, index.fingerprint)
    if content:
        storage.write_bytes(uri, content)
    return uri


def trained_vocabulary(config: RunConfig, index: Index, captions: CaptionAccess | None = None) -> bytes:
    """The file of a tokenizer trained on a sample of the captions.

    Raises:
        ValueError: no vocabulary of this size can be trained.
    """
    return train_tokenizer(_texts(config, index, captions), config.text.vocab_size).source


def _texts(config: RunConfig, index: Index, captions: CaptionAccess | None) -> Iterator[str]:
    """Captions of a sample: chunks from all over the data, or the first that a captioner writes."""
    for rows in _from_store(config, index, captions) if captions else _from_data(index):
        for row in rows:
            yield from (row["web_caption"], *row["synthetic_captions"])


def _from_data(index: Index) -> Iterator[list]:
    chunks = len(index.chunks.rows)
    return map(index.read, range(0, chunks, max(chunks // SAMPLE_CHUNKS, 1)))


def _from_store(config: RunConfig, index: Index, captions: CaptionAccess) -> Iterator[list]:
    order = run_order(index, config.data, config.seed, config.global_batch_images)
    chunks = list(dict.fromkeys(order.window_rows(0).chunk_N.tolist()))
    found = read_captions(index, chunks, captions.store, _waiting(config, captions))
    folders = {chunk: captions_folder(index, chunk, captions.store) for chunk in chunks}
    return (with_captions(index.read(chunk), found[chunk], folders[chunk]) for chunk in chunks)


def _waiting(config: RunConfig, captions: CaptionAccess) -> Waiting | None:
    if captions.coordinator is None:
        return None  # all captions exist
    from tips_ray.data.pipeline import waiting_for  # imports Ray, which makes these captions

    return waiting_for(captions.coordinator, config)
