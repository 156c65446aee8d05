"""Config of an evaluation suite: tasks on a frozen encoder; `evaluation_data.py` has the data sets.

TIPS names its probes but not their settings: learning rates, steps, batch and the like are DINOv2's if published, else
ours (D).
"""

from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.evaluation_data import DatasetConfig, ScenesConfig
from tips_ray.config.protocols import PROTOCOLS, with_protocols
from tips_ray.config.schema import ObjectiveConfig, Schema

CAPTION_TOKENS = {"web": "cls_web", "synthetic": "cls_synthetic"}
"""CLS token that is trained on each kind of caption, in a run with both kinds."""
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "there is a {} in the scene.", "a {}.")
"""(D) Some of CLIP's templates."""


class TrainingConfig(Schema):
    """Settings of training on frozen features."""

    steps: PositiveInt
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises; then it falls linearly to 0."""
    batch_images: PositiveInt


class ProbeConfig(TrainingConfig):
    """Training of linear maps, one per learning rate, side by side on the same batches."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9."""
    learning_rates: tuple[PositiveFloat, ...] = (3e-3, 3e-2, 3e-1)
    """(D) Learning rates at the end of warmup; the best on held-out training images is reported.

    DINOv2 has 1e-3 and a hundred times as many steps; with 1e-3, these probes hardly move.
    """
    weight_decay: NonNegativeFloat = 1e-4
    steps: PositiveInt = 400
    """(D) DINOv2: 40,000 for segmentation, 38,400 for depth, 12,500 for classification."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.04
    batch_images: PositiveInt = 16
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """(D) Share of the training images that are held out to choose the learning rate. Test images never choose it."""


class DecoderConfig(TrainingConfig):
    """A DPT decoder and how it is trained."""

    hidden: PositiveInt = 128
    """(D) Channels; Probe3D has 512."""
    learning_rate: PositiveFloat = 5e-4
    """Learning rate at the end of warmup, as in Probe3D."""
    weight_decay: NonNegativeFloat = 0.01
    steps: PositiveInt = 300
    """(D) Probe3D: ten epochs."""
    epochs: PositiveInt | None = None
    """Passes over the training images, instead of `steps`."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    batch_images: PositiveInt = 8


class _TaskConfig(Schema):
    learns: ClassVar[bool] = True
    """Whether the task needs training images."""
    reads_patches: ClassVar[bool] = False
    """Whether the task reads patch features beside the embeddings."""
    reads_layers: ClassVar[bool] = False
    """Whether the task reads patch features of four layers."""
    data: str
    """Name of one of the suite's data sets."""
    protocol: str | None = None
    """Published protocol, such as `nyu_depth@dinov2`: it sets what the task and its data set leave open."""
    published: dict[str, dict[str, float]] = {}
    """Published values to show beside each score: score -> model -> value, in the score's unit."""

    @property
    def protocol_words(self) -> str:
        """The protocol, and whether the task sets some of its keys itself; empty without one."""
        if self.protocol is None:
            return ""
        own = {"data": self.data, "protocol": self.protocol, "published": self.published}
        is_whole = type(self).model_validate({**PROTOCOLS[self.protocol].task, **own}) == self
        return self.protocol if is_whole else f"{self.protocol}, changed"


class SegmentationConfig(_TaskConfig):
    """BatchNorm and a linear map on patches; logits bilinearly upsampled, cross-entropy, mIoU."""

    reads_patches = True
    kind: Literal["segmentation"] = "segmentation"
    probe: ProbeConfig = ProbeConfig()
    train_size_px: PositiveInt = 112
    """(D) Side of the labels in training; scores are always at the labels' original size."""


class BinsConfig(_TaskConfig):
    """Depth as a weighted mean of bins; RMSE in metres."""

    train_size_px: PositiveInt = 112
    """(D) As for segmentation."""
    num_bins: PositiveInt = 256
    min_depth_m: PositiveFloat = 0.001
    max_depth_m: PositiveFloat = 10.0
    """Largest depth; pixels that are farther away do not count."""
    eval_crop: Literal["none", "eigen"] = "none"
    """Part of the test maps that counts. eigen: rows 45 to 470 and columns 41 to 600 of 480 x 640, for NYUv2."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(f"min_depth_m ({self.min_depth_m}) must be below max_depth_m ({self.max_depth_m})")
        return self


class DepthConfig(BinsConfig):
    """A linear map on [patch, CLS], or on patches, into the bins; SigLoss and gradient loss."""

    reads_patches = True
    kind: Literal["depth"] = "depth"
    with_cls: bool = True
    """Whether each patch has CLS beside it: DINOv2 and TIPS, not DINOv3."""
    flip: bool = False
    """Whether predictions are the mean over each test image and its mirror image, which is encoded too."""
    probe: ProbeConfig = ProbeConfig(weight_decay=0.01, learning_rates=(1e-2, 3e-2, 1e-1))


class DptDepthConfig(BinsConfig):
    """A DPT decoder on four layers into the bins; the same losses."""

    reads_layers = True
    kind: Literal["dpt_depth"] = "dpt_depth"
    decoder: DecoderConfig = DecoderConfig()


class NormalsConfig(_TaskConfig):
    """A DPT decoder on four layers; angular RMSE in degrees."""

    reads_layers = True
    kind: Literal["normals"] = "normals"
    decoder: DecoderConfig = DecoderConfig()
    train_size_px: PositiveInt = 112
    """(D) As for segmentation."""


class NeighboursConfig(_TaskConfig):
    """k-NN classification of each embedding."""

    kind: Literal["neighbours"] = "neighbours"
    neighbours: tuple[PositiveInt, ...] = (10, 20, 100, 200)
    """Values of k; those above the number of training images are left out."""
    temperature: PositiveFloat = 0.07


class ClassificationConfig(_TaskConfig):
    """A linear map on each embedding."""

    kind: Literal["classification"] = "classification"
    probe: ProbeConfig = ProbeConfig(
        optimizer="sgd", weight_decay=0.0, warmup=0.0, batch_images=128, learning_rates=(1e-3, 1e-2, 1e-1, 1.0)
    )


class RetrievalConfig(_TaskConfig):
    """Image to text and text to image, for each embedding comparable with texts and each kind of caption."""

    learns = False
    kind: Literal["retrieval"] = "retrieval"
    ranks: tuple[PositiveInt, ...] = (1, 5, 10)


class InstanceRetrievalConfig(_TaskConfig):
    """Image to image: R@1 and mMP@k over images of the same class and domain, for each embedding."""

    learns = False
    kind: Literal["instance_retrieval"] = "instance_retrieval"
    index: tuple[Literal["merged", "separate"], ...] = ("merged", "separate")
    """Images that a query searches: those of all domains, or of its own. UnED's standard is `merged`."""
    mmp_at: PositiveInt = 5


class ZeroShotClassificationConfig(_TaskConfig):
    """Zero-shot: the class with the nearest text embedding, which is the mean over templates."""

    learns = False
    kind: Literal["zero_shot_classification"] = "zero_shot_classification"
    templates: tuple[str, ...] = TEMPLATES


class ZeroShotSegmentationConfig(_TaskConfig):
    """Zero-shot: the class whose text is nearest to each patch (values trick); scores bilinearly upsampled."""

    learns = False
    kind: Literal["zero_shot_segmentation"] = "zero_shot_segmentation"
    templates: tuple[str, ...] = TEMPLATES
    windows: PositiveInt = 1
    """(D) Windows along each side. 1: the whole image; 3: nine windows of the encoder's size, neighbours share half."""


TaskConfig = Annotated[
    SegmentationConfig
    | DepthConfig
    | DptDepthConfig
    | NormalsConfig
    | NeighboursConfig
    | ClassificationConfig
    | RetrievalConfig
    | InstanceRetrievalConfig
    | ZeroShotClassificationConfig
    | ZeroShotSegmentationConfig,
    Field(discriminator="kind"),
]


class RayConfig(Schema):
    """Resources of a suite on Ray: one Ray task per data set, and a pool of actors for its images."""

    actors: PositiveInt = 1
    """Most concurrent encoders of a data set."""
    cpus_per_actor: PositiveInt = 1
    """CPU threads of each encoder."""
    gpus_per_actor: NonNegativeFloat = 0
    cpus_per_task: PositiveInt = 1
    """CPU threads of a data set's task, which trains and scores on the features."""


class SuiteConfig(Schema):
    """Config of `tips-ray evaluate`."""

    data: dict[str, DatasetConfig]
    data_root: str | None = None
    """Folder with data sets in their owners' layouts, below their usual names; a data set's `folder` comes first."""
    tasks: dict[str, TaskConfig]
    """Tasks by name; results carry the same names."""
    image_size_px: PositiveInt | None = None
    """Side to which images are squashed; None: the encoder's native size."""
    batch_images: PositiveInt = 16
    """Images per forward pass of the encoder."""
    ray: RayConfig | None = None
    """Resources on Ray; None: everything runs in this process."""
    seed: int = 0
    """Seed of the probes' initial weights and batches."""
    mlflow_uri: str | None = None
    """Tracking server or `sqlite:///FILE` that gets the scores; None: no tracking."""
    experiment: str = "tips_ray evaluation"
    """Name of the MLflow experiment."""
    scratch: str | None = None
    """Folder on this machine for temporary patch features; None: the system's temporary folder."""
    patch_dtype: Literal["fp32", "fp16"] = "fp32"
    """Dtype of patch features: they take images x patches x width x 4 bytes (fp16: 2)."""

    @model_validator(mode="before")
    @classmethod
    def _follows_protocols(cls, tree: Any) -> Any:
        return with_protocols(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _data_is_named(self) -> Self:
        for name, task in self.tasks.items():
            if task.data not in self.data:
                raise ValueError(f"tasks.{name}.data ({task.data}) must be one of {', '.join(self.data)}")
        return self

    @model_validator(mode="after")
    def _scenes_suffice(self) -> Self:
        """Of scenes the number is known before a run trains for hours, and the task would fail only then."""
        for name, task in self.tasks.items():
            data = self.data[task.data]
            needed = min(task.neighbours) if isinstance(task, NeighboursConfig) else 2 if task.learns else 0
            if isinstance(data, ScenesConfig) and data.train < needed:
                raise ValueError(
                    f"data.{task.data}.train ({data.train}) must be at least {needed}, which tasks.{name} needs"
                )
        return self


def trained_tokens(objective: ObjectiveConfig) -> dict[str, str]:
    """CLS token to score for each kind of caption."""
    if not objective.synthetic_weight:
        return {"web": "cls_web", "synthetic": "cls_web"}
    if not objective.web_weight:
        return {"web": "cls_synthetic", "synthetic": "cls_synthetic"}
    return CAPTION_TOKENS


def caption_tokens_in(score: str) -> set[str]:
    """Names in braces in the name of a score."""
    return {name for _, name, _, _ in Formatter().parse(score) if name is not None}
