"""Where an encoder is found. Does not import torch, which tasks that only read and write do not need."""

from typing import TYPE_CHECKING, NamedTuple

from tips_ray import storage

if TYPE_CHECKING:
    from tips_ray.evaluation.encoders import Encoder

TIMM_PREFIXES = ("timm:", "local-dir:", "hf-hub:")


class EncoderPlace(NamedTuple):
    """Location of an encoder; paths are absolute, because a Ray worker's working directory is not the user's."""

    model: str
    image_size_px: int
    fingerprint: str

    @classmethod
    def of(cls, model: str, encoder: "Encoder") -> "EncoderPlace":
        """Place of an encoder that `load_encoder` has loaded by this name."""
        if encoder.checkpoint_uri:
            model = storage.resolved(encoder.checkpoint_uri)
        elif model.startswith("local-dir:"):
            model = f"local-dir:{storage.resolved(model.removeprefix('local-dir:'))}"
        elif not model.startswith(TIMM_PREFIXES):
            model = storage.resolved(model)
        return cls(model, encoder.image_size_px, encoder.fingerprint)
