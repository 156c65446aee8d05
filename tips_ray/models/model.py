"""A whole model to use, export or load: both encoders, the tokenizer and the temperature."""

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
    """A trained TIPS; cosine(image, text) / temperature is the logit.

    Raises:
        ValueError: widths differ, the tokenizer has more ids than the text encoder, or the temperature is not positive.
    """

    image: ImageEncoder
    text: TextEncoder
    tokenizer: Tokenizer | None
    """Tokenizer of the text encoder; None: texts must be given as ids."""
    temperature: float
    """Divisor of cosines."""

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
    """The model to export from a training state; parameters are shared with it, not copied.

    Args:
        student: gives the text encoder and the temperature, which have no average; with `weights="student"` everything.
        teacher: gives the image encoder (D: the average is better). The student's is used if the teacher has none
            (`ema_heads`), or is another, finished model (`frozen`).
        weights: network that gives the image encoder.
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
    """Yield a temporary sibling; rename it to `folder` on success, else delete it. The result is readable by everyone.

    Raises:
        ValueError: `folder` exists and is not an empty folder; nothing is overwritten.
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
    except SafetensorError as error:  # a full disk raises this instead of OSError
        raise OSError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
