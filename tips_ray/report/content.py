"""Content of a report as plain data. Images are uint8 [H, W, 3]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tips_ray.runs.evaluations import Evaluation
from tips_ray.runs.loss_health import Finding, Trivial


@dataclass(frozen=True)
class CaptionedImage:
    """One training image with its texts; an empty one is not shown."""

    image: np.ndarray
    web_caption: str = ""
    synthetic_caption: str = ""


@dataclass(frozen=True)
class PatchFeatures:
    """Patch features of a few images. B images, H x W patches, D channels."""

    images: Sequence[np.ndarray]
    student_BHWD: np.ndarray | None = None
    teacher_BHWD: np.ndarray | None = None


@dataclass(frozen=True)
class TextQuery:
    """A caption and the images nearest to it, best first."""

    caption: str
    images: Sequence[np.ndarray]
    is_hit: Sequence[bool]
    """Whether each image is the one that the caption describes."""


@dataclass(frozen=True)
class ImageQuery:
    """An image and the captions nearest to it, best first."""

    image: np.ndarray
    captions: Sequence[str]
    is_hit: Sequence[bool]


@dataclass(frozen=True)
class ProbeScore:
    """One score of the encoder before training (random weights) and after."""

    name: str
    before: float | None
    after: float
    higher_is_better: bool = True


@dataclass(frozen=True)
class Report:
    """Content of a report. Only the name is required; the page leaves out empty parts."""

    name: str
    headline: str = ""
    """The result in one sentence."""
    key_scores: Mapping[str, Any] = field(default_factory=dict)
    """Three to six numbers for the top of the page."""
    created: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the run: steps, batch, sizes, time."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    """Speed of each stage: rendering, captioning, training, embedding."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of `RunFolder.read_metrics`."""
    findings: Sequence[Finding] = ()
    """Whether the losses are healthy: `loss_health.loss_findings`."""
    trivial: Mapping[str, Trivial] = field(default_factory=dict)
    """Metric of a loss -> the value that it has when nothing is learned."""
    gallery: Sequence[CaptionedImage] = ()
    features: PatchFeatures | None = None
    text_queries: Sequence[TextQuery] = ()
    image_queries: Sequence[ImageQuery] = ()
    probes: Sequence[ProbeScore] = ()
    evaluations: Sequence[Evaluation] = ()
    """Evaluated checkpoints, by step."""
    task_pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Pictures of evaluation tasks, by title."""
    events: Sequence[Mapping[str, Any]] = ()
    """Lines of `RunFolder.read_events`."""
    rejects: Sequence[Mapping[str, Any]] = ()
    """Lines of `RunFolder.read_rejects`."""
    config: str = ""
    """The resolved config as YAML."""
    next_commands: Mapping[str, str] = field(default_factory=dict)
    """Command -> what it does."""
