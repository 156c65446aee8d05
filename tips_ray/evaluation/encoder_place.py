"""Where an encoder is found: without torch, which tasks that only read and write need not start."""

from typing import TYPE_CHECKING, NamedTuple

from tips_ray import storage

if TYPE_CHECKING:
    from tips_ray.evaluation.encoders import Encoder

TIMM_PREFIXES = ("timm:", "local-dir:", "hf-hub:")


class EncoderPlace(NamedTuple):
    """The same for any process of this machine: a Ray worker does not stand where the user stands."""

    model: str
    image_size_px: int
    fingerprint: str

    @classmethod
    def of(cls, model: str, encoder: "Encoder") -> "EncoderPlace":
        """Of an encoder that `load_encoder` has found by this name."""
        if encoder.checkpoint_uri:
            model = storage.resolved(encoder.checkpoint_uri)
        elif model.startswith("local-dir:"):
            model = f"local-dir:{storage.resolved(model.removeprefix('local-dir:'))}"
        elif not model.startswith(TIMM_PREFIXES):
            model = storage.resolved(model)
        return cls(model, encoder.image_size_px, encoder.fingerprint)

    def load(self, threads: float, gpus: float) -> "Encoder":
        """For an actor or task that holds so many CPUs and GPUs.

        Raises:
            ValueError: it is there no more, or it is another.
        """
        import torch

        from tips_ray.evaluation.load_encoder import load_encoder

        torch.set_num_threads(max(int(threads), 1))
        encoder = load_encoder(self.model, self.image_size_px)
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(f"MODEL ({self.model}) has changed since this command began; run it again")
        for network in encoder.networks:
            network.to("cuda" if gpus else "cpu")
        return encoder
