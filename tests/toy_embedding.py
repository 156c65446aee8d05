"""A source with bad rows, a toy model, and its embeddings by a plain loop."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import torch
from PIL import Image
from toy_model import toy_model
from toy_run import scene_row, write_scenes

from tips_ray.config import override
from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.evaluation.load_encoder import load_encoder

BAD = {3: {"image": b"no image"}, 5: {"caption": ""}, 9: {"image": b""}}
SIDE = 56


def write_model(folder: Path, **sizes: Any) -> str:
    return str(toy_model(**sizes).export_transformers(folder))


def embedding_config(source: str, **values: Any) -> EmbeddingConfig:
    """Chunks of four; `__` stands for the dot."""
    keys = {"chunk_rows": 4, **{key.replace("__", "."): value for key, value in values.items()}}
    return override(EmbeddingConfig, {"source": {"uri": source}}, keys)


def write_source(folder: Path, rows: int) -> str:
    return write_scenes(folder, rows, BAD)


def write_place(folder: Path, rows: int) -> Path:
    """Write `model` and `data` below the folder."""
    write_model(folder / "model")
    write_source(folder / "data", rows)
    return folder


def rows_of(out: str | Path) -> list[dict[str, Any]]:
    """Rows in the order in which pyarrow reads the folder."""
    return ds.dataset(f"{out}/embeddings").to_table().to_pylist()


def plain_features(model: str, number: int):
    """Features of one scene, without any of our pipeline."""
    with Image.open(io.BytesIO(scene_row(number)["image"])) as image:
        pixels = np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return load_encoder(model).features(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
