"""The model that MLflow loads from its registry: MLflow copies this file beside the weights, so nothing is pickled.

Columns `image` (bytes of an image file) and `text`, of which a row may lack one, become `image_embedding` and
`text_embedding`: unit-norm, so that their product is the cosine. It needs transformers, and nothing of tips_ray.
"""

import io
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

ROWS_AT_ONCE = 32


class TipsEmbedding(PythonModel):
    """Embeddings of images and texts."""

    def load_context(self, context: Any) -> None:
        """Load the transformers folder `model`; `cls` of the config is the place of the CLS token of images."""
        folder = context.artifacts["model"]
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self.cls = context.model_config["cls"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A data frame with the same index; a cell is empty where the row lacks the image or text.

        Raises:
            ValueError: there is neither column, or a row holds no image or no text.
        """
        if not {"image", "text"} & set(model_input):
            raise ValueError(f"there is no column image or text, but {', '.join(map(str, model_input))}: name one so")
        found = pd.DataFrame(index=model_input.index)
        for column, embed in (("image", self._images), ("text", self._texts)):
            if column in model_input:
                given = model_input[column].dropna()
                parts = [given.iloc[start : start + ROWS_AT_ONCE] for start in range(0, len(given), ROWS_AT_ONCE)]
                rows = [row for part in parts for row in embed(list(part)).tolist()]
                found[f"{column}_embedding"] = pd.Series(rows, index=given.index, dtype=object)
        return found

    @torch.inference_mode()
    def _images(self, contents: list[bytes]) -> torch.Tensor:
        images = [_image(content) for content in contents]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return F.normalize(self.model.get_image_features(pixels).last_hidden_state[:, self.cls], dim=-1)

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> torch.Tensor:
        inputs = self.processor(text=texts, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)


def _image(content: Any) -> Image.Image:
    if not isinstance(content, bytes):
        raise ValueError(
            f"image: a {type(content).__name__} ({content!r:.60}) is given: give the bytes of an image file"
        )
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        raise ValueError(f"image: its {len(content)} bytes, which begin with {content[:12]!r}, are no image") from error


set_model(TipsEmbedding())
