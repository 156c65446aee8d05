"""Images of whole chunks -> their captions in the store, by a captioner that stays."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from tips_ray.captioning.captioner import Captioned, Captioner
from tips_ray.captioning.chunks import ChunkCaptions, image_sha256
from tips_ray.captioning.model_folder import fingerprint, model_folder
from tips_ray.captioning.stream import CaptionInputs
from tips_ray.data.captions.join import place_of
from tips_ray.data.decode import BadImage, decode
from tips_ray.data.index import opened_index

DECODERS = 4
_MADE = pa.schema(
    [("chunk", pa.int64()), ("images", pa.int64()), ("bad_images", pa.int64()), ("seconds", pa.float64())]
)


class CaptionActor:
    """A captioner that fills the store; whatever it does may be done again without harm."""

    def __init__(self, inputs: CaptionInputs, is_over: Callable[[], bool]) -> None:
        """`is_over`: nobody needs more captions; what still waits for this actor is left undone.

        Raises:
            ValueError: the model on this machine is another than that of the store.
        """
        _require_its_store(inputs)
        torch.set_num_threads(max(int(inputs.config.resources.cpus_per_captioner), 1))
        self.captioner, self.inputs, self.is_over = Captioner(inputs.captioner), inputs, is_over
        self.index = opened_index(inputs.index_uri)

    def __call__(self, table: pa.Table) -> pa.Table:
        started, rows = time.perf_counter(), [] if self.is_over() else table.to_pylist()
        hashes = [image_sha256(row["images"]) for row in rows]
        captioned = iter(self._captions([image for row in rows for image in row["images"]], sum(hashes, [])))
        bad = []
        for row, sha256 in zip(rows, hashes, strict=True):
            found = [next(captioned) for _ in sha256]
            errors = [own or made.error for own, made in zip(row["errors"], found, strict=True)]
            shard, number = place_of(self.index, row["chunk"])
            texts = [made.captions for made in found]
            self.inputs.access.store.write(
                shard, number, ChunkCaptions(self.index.chunk(row["chunk"]).row, sha256, texts, errors)
            )
            if self.inputs.access.pace:
                self.inputs.access.pace.add_made.remote(1)
            bad.append(sum(map(bool, errors)))
        seconds = (time.perf_counter() - started) / max(len(rows), 1)
        columns = [[row["chunk"] for row in rows], [len(row["images"]) for row in rows], bad, [seconds] * len(rows)]
        return pa.table(columns, schema=_MADE)

    def _captions(self, images: list[bytes], hashes: list[bytes]) -> list[Captioned]:
        """In the images' order. A drawn caption depends on the image's bytes alone, not on where it is kept."""
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = list(pool.map(self._decoded, images))
        good = [(pixels, sha) for pixels, sha in zip(decoded, hashes, strict=True) if isinstance(pixels, np.ndarray)]
        keys = [int.from_bytes(sha[:8], signed=True) for _, sha in good]
        made = iter(self.captioner([pixels for pixels, _ in good], keys))
        return [next(made) if isinstance(pixels, np.ndarray) else Captioned([], pixels) for pixels in decoded]

    def _decoded(self, image: bytes) -> np.ndarray | str:
        """Pixels, or why there are none."""
        data = self.inputs.config.data
        try:
            return decode(image, data.max_image_bytes, data.max_image_pixels)
        except BadImage as error:
            return str(error)


def _require_its_store(inputs: CaptionInputs) -> None:
    """A folder of the same name may hold other files here; the store has one captioner for good."""
    found, wanted = fingerprint(inputs.captioner, model_folder(inputs.captioner)), inputs.access.store.fingerprint
    if not found.startswith(wanted):
        raise ValueError(
            f"captions.captioner.model ({inputs.captioner.model}) on {socket.gethostname()} differs from that of the "
            f"program that started captioning: its captions would be kept as {found[: len(wanted)]}, not {wanted}; put "
            "the same files on every machine, or give an s3:// prefix"
        )
