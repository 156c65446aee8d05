"""Config of the captioner. Fields that change the text are part of its fingerprint (`captioning.fingerprint`)."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from tips_ray.config.schema import Schema


class CaptionerConfig(Schema):
    """A PaliGemma (v1 or v2) and its decoding. The paper's captioner is PaliGemma; prompt and decoding are (D)."""

    model: str
    """Name on the Hugging Face hub (`google/paligemma-3b-mix-224`), a folder, or an s3:// folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; None: its main branch."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("caption en",)
    """(D) Prompts; an image gets captions for each of them, in this order."""
    captions_per_prompt: PositiveInt = 1
    """(D) Captions per image and prompt; more than one needs a `temperature` above 0."""
    temperature: NonNegativeFloat = 0.0
    """(D) 0: always the likeliest token. Above 0: tokens are drawn, keyed by the image's bytes, not batch or worker."""
    max_new_tokens: PositiveInt = 64
    """(D) Longest caption; longer ones are cut."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """(D) Compute dtype. In fp32 a caption is the same in every batch; in bf16 rounding may change a word."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: cuda if available; of a run's captioners, if `resources.gpus_per_captioner` gives them one."""
    batch_images: PositiveInt = 32
    """Captions written at a time; halved automatically if memory is short. Does not change the text in fp32."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.captions_per_prompt > 1 and self.temperature == 0:
            raise ValueError(
                f"captions_per_prompt ({self.captions_per_prompt}) must be 1 at temperature 0: all would be equal; "
                "raise temperature or add prompts"
            )
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts ({', '.join(self.prompts)}) must differ; leave out what is there twice")
        return self
