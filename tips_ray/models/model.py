"""Both encoders, the tokenizer and the temperature as one thing to use, export or load."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from tips_ray.models.networks import Student, Teacher
from tips_ray.models.text import TextEncoder
from tips_ray.models.vision import ImageEncoder
from tips_ray.tokenizer import Tokenizer


@dataclass
class TipsModel:
    """What a user needs of a trained TIPS: cosine(image, text) / temperature is the logit.

    Raises:
        ValueError: widths differ, the tokenizer has more ids than the text encoder, or the temperature is not positive.
    """

    image: ImageEncoder
    text: TextEncoder
    tokenizer: Tokenizer | None
    """None: texts must come as ids."""
    temperature: float
    """A divisor of cosines."""

    def __post_init__(self) -> None:
        width, text = self.image.config.width, self.text.config
        if text.width != width:
            raise ValueError(f"text width ({text.width}) must equal image width ({width}): there is no projection")
        if self.tokenizer and self.tokenizer.vocab_size > text.vocab_size:
            raise ValueError(
                f"tokenizer has {self.tokenizer.vocab_size} ids; the text encoder's vocab_size ({text.vocab_size}) "
                "must not be smaller"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature ({self.temperature}) must be positive: it divides cosines")

    def export_transformers(self, folder: Path | str) -> Path:
        """See `tips_ray.models.transformers_folder.export_transformers`."""
        from tips_ray.models.transformers_folder import export_transformers

        return export_transformers(self, folder)

    def export_timm(self, folder: Path | str) -> Path:
        """See `tips_ray.models.timm_folder.export_timm`."""
        from tips_ray.models.timm_folder import export_timm

        return export_timm(self, folder)


def exported(
    student: Student,
    teacher: Teacher,
    weights: Literal["teacher", "student"] = "teacher",
    tokenizer: Tokenizer | None = None,
) -> TipsModel:
    """The part of a training state that leaves the trainer; parameters are shared with it, not copied.

    Args:
        student: gives the text encoder and the temperature, which have no average, and with `weights="student"` all.
        teacher: gives the image encoder (D: its average is the better one). Where it has none of its own (`ema_heads`)
            the student's is the teacher's; a `frozen` teacher is another, finished model, so the student is exported.
        weights: whose image encoder.
        tokenizer: the vocabulary of the run.

    Raises:
        ValueError: `weights` is neither of the two.
    """
    if weights not in ("teacher", "student"):
        raise ValueError(f"weights ({weights!r}) must be 'teacher' or 'student'")
    averaged = None if student.config.teacher == "frozen" else teacher.image
    image = averaged if weights == "teacher" and averaged is not None else student.image
    return TipsModel(image, student.text, tokenizer, student.log_temperature.detach().exp().item())


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` if the block ends well and vanishes if not; readable by everyone.

    Raises:
        ValueError: `folder` exists and is not an empty folder: nothing is ever overwritten.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: choose another one or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except SafetensorError as error:  # no OSError, though it tells of a full disk
        raise OSError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
