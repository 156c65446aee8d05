"""An evaluation suite: data sets, and tasks on a frozen encoder.

TIPS names its probes and not their settings: learning rates, steps, batch and the like are DINOv2's where it publishes
them, else ours (D).
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.schema import Schema

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "there is a {} in the scene.", "a {}.")
"""(D) A few of those of CLIP."""


class ScenesConfig(Schema):
    """The rendered world: exact labels, depth, captions of both kinds; made when it is needed."""

    kind: Literal["scenes"] = "scenes"
    train: PositiveInt = 256
    test: PositiveInt = 128


class LabelledFolderConfig(Schema):
    """`train/images`, `train/labels`, `val/images`, `val/labels`: pictures, and PNG of one class per pixel."""

    kind: Literal["labelled_folder"] = "labelled_folder"
    folder: str | None = None
    """None: its tasks are skipped."""
    class_names: tuple[str, ...]
    """Class 0 first."""
    ignore_index: int | None = None
    """Label of pixels that do not count."""


class GeometryFolderConfig(Schema):
    """`train/images`, `train/depth`, `train/normals`, and the same below `val`; one of depth and normals is enough.

    Depth is a 16-bit PNG, or `.npy` of metres, 0 or NaN where there is none; normals are `.npy` [height, width, 3] of
    unit vectors, other vectors where there is none.
    """

    kind: Literal["geometry_folder"] = "geometry_folder"
    folder: str | None = None
    """None: its tasks are skipped."""
    depth_unit_m: PositiveFloat = 0.001
    """Metres of 1 in a PNG of depth."""


class CaptionedFolderConfig(Schema):
    """`images` beside `captions.csv`, whose columns are `image` and `caption`; an image may have several lines."""

    kind: Literal["captioned_folder"] = "captioned_folder"
    folder: str | None = None
    """None: its tasks are skipped."""


class ClassFolderConfig(Schema):
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`: the class of an image is its folder. Without `train`: zero-shot."""

    kind: Literal["class_folder"] = "class_folder"
    folder: str | None = None
    """None: its tasks are skipped."""
    class_names: dict[str, str] = {}
    """What texts call a folder's class, such as `n01440764: tench`; default: the folder's name."""


class TrainingConfig(Schema):
    """How what is trained on frozen features goes through them."""

    steps: PositiveInt
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the rate rises; then it falls linearly to 0."""
    batch_images: PositiveInt


class ProbeConfig(TrainingConfig):
    """How linear maps are trained; one for each learning rate, side by side on the same batches."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9."""
    learning_rates: tuple[PositiveFloat, ...] = (3e-3, 3e-2, 3e-1)
    """(D) At the end of warmup; the best on the images held out of training is reported.

    DINOv2 has 1e-3 for a hundred times as many steps, with which these probes have hardly moved.
    """
    weight_decay: NonNegativeFloat = 1e-4
    steps: PositiveInt = 400
    """(D) DINOv2: 40,000 for segmentation, 38,400 for depth, 12,500 for classification."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.04
    batch_images: PositiveInt = 16
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """(D) Share of the training images that choose the learning rate. The test images never do."""


class DecoderConfig(TrainingConfig):
    """A DPT decoder and how it is trained."""

    hidden: PositiveInt = 128
    """(D) Channels; Probe3D has 512."""
    learning_rate: PositiveFloat = 5e-4
    """At the end of warmup, Probe3D's."""
    weight_decay: NonNegativeFloat = 0.01
    steps: PositiveInt = 300
    """(D) Probe3D: ten epochs."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    batch_images: PositiveInt = 8


class _TaskConfig(Schema):
    learns: ClassVar[bool] = True
    """Whether it needs images to learn from."""
    reads_patches: ClassVar[bool] = False
    """Whether it reads what an encoder says of patches beside its embeddings."""
    data: str
    """Name of one of the suite's data sets."""
    published: dict[str, dict[str, float]] = {}
    """Beside which each score is shown: by score, by model, in the score's own unit."""


class SegmentationConfig(_TaskConfig):
    """BatchNorm and a linear map on patches; logits bilinearly upsampled, cross-entropy, mIoU."""

    reads_patches = True
    kind: Literal["segmentation"] = "segmentation"
    probe: ProbeConfig = ProbeConfig()
    train_size_px: PositiveInt = 112
    """(D) Side of the labels in training; scores are always those of the labels' own size."""


class BinsConfig(_TaskConfig):
    """Depth as a weighted mean of bins; RMSE in metres."""

    train_size_px: PositiveInt = 112
    """(D) As for segmentation."""
    num_bins: PositiveInt = 256
    min_depth_m: PositiveFloat = 0.001
    max_depth_m: PositiveFloat = 10.0
    """Farther pixels do not count."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(f"min_depth_m ({self.min_depth_m}) must be below max_depth_m ({self.max_depth_m})")
        return self


class DepthConfig(BinsConfig):
    """A linear map on [patch, CLS] into the bins; SigLoss and gradient loss."""

    reads_patches = True
    kind: Literal["depth"] = "depth"
    probe: ProbeConfig = ProbeConfig(weight_decay=0.01, learning_rates=(1e-2, 3e-2, 1e-1))


class DptDepthConfig(BinsConfig):
    """A DPT decoder on four layers into the bins; the same losses."""

    kind: Literal["dpt_depth"] = "dpt_depth"
    decoder: DecoderConfig = DecoderConfig()


class NormalsConfig(_TaskConfig):
    """A DPT decoder on four layers; angular RMSE in degrees."""

    kind: Literal["normals"] = "normals"
    decoder: DecoderConfig = DecoderConfig()
    train_size_px: PositiveInt = 112
    """(D) As for segmentation."""


class NeighboursConfig(_TaskConfig):
    """k-NN classification of each embedding."""

    kind: Literal["neighbours"] = "neighbours"
    neighbours: tuple[PositiveInt, ...] = (10, 20, 100, 200)
    """More than there are training images are left out."""
    temperature: PositiveFloat = 0.07


class ClassificationConfig(_TaskConfig):
    """A linear map on each embedding."""

    kind: Literal["classification"] = "classification"
    probe: ProbeConfig = ProbeConfig(
        optimizer="sgd", weight_decay=0.0, warmup=0.0, batch_images=128, learning_rates=(1e-3, 1e-2, 1e-1, 1.0)
    )


class RetrievalConfig(_TaskConfig):
    """Image to text and text to image, for each embedding that meets texts and each kind of caption."""

    learns = False
    kind: Literal["retrieval"] = "retrieval"
    ranks: tuple[PositiveInt, ...] = (1, 5, 10)


class ZeroShotClassificationConfig(_TaskConfig):
    """The class whose text is nearest; a class's text is the mean over templates."""

    learns = False
    kind: Literal["zero_shot_classification"] = "zero_shot_classification"
    templates: tuple[str, ...] = TEMPLATES


class ZeroShotSegmentationConfig(_TaskConfig):
    """The class whose text is nearest to each patch; patches by the values trick, scores bilinearly upsampled."""

    learns = False
    kind: Literal["zero_shot_segmentation"] = "zero_shot_segmentation"
    templates: tuple[str, ...] = TEMPLATES
    windows: PositiveInt = 1
    """(D) Along each side; 1: the whole image at once. 3: nine windows of the encoder's size, neighbours share half."""


DatasetConfig = Annotated[
    ScenesConfig | LabelledFolderConfig | GeometryFolderConfig | CaptionedFolderConfig | ClassFolderConfig,
    Field(discriminator="kind"),
]
TaskConfig = Annotated[
    SegmentationConfig
    | DepthConfig
    | DptDepthConfig
    | NormalsConfig
    | NeighboursConfig
    | ClassificationConfig
    | RetrievalConfig
    | ZeroShotClassificationConfig
    | ZeroShotSegmentationConfig,
    Field(discriminator="kind"),
]


class RayConfig(Schema):
    """Who works on a suite on Ray: a Ray task for each data set, and for its images a pool of actors."""

    actors: PositiveInt = 1
    """Most encoders that work at a time on a data set."""
    cpus_per_actor: PositiveInt = 1
    """Threads of each of them."""
    gpus_per_actor: NonNegativeFloat = 0
    cpus_per_task: PositiveInt = 1
    """Threads of what trains and scores on the features of a data set."""


class SuiteConfig(Schema):
    """What `tips-ray evaluate` does."""

    data: dict[str, DatasetConfig]
    tasks: dict[str, TaskConfig]
    """By the names that results carry."""
    image_size_px: PositiveInt | None = None
    """Side to which images are squashed; None: the encoder's own."""
    batch_images: PositiveInt = 16
    """Images that the encoder takes at a time."""
    ray: RayConfig | None = None
    """None: this process does it all."""
    seed: int = 0
    """Of the probes' start and batches."""
    mlflow_uri: str | None = None
    """Tracking server or `sqlite:///FILE` that gets the scores; None: none."""
    experiment: str = "tips_ray evaluation"
    """Of MLflow."""
    scratch: str | None = None
    """Folder on this machine where features of patches lie meanwhile; None: the system's temporary one."""
    patch_dtype: Literal["fp32", "fp16"] = "fp32"
    """Of these: images x patches x width x 4 bytes, or half of it."""

    @model_validator(mode="after")
    def _data_is_named(self) -> Self:
        for name, task in self.tasks.items():
            if task.data not in self.data:
                raise ValueError(f"tasks.{name}.data ({task.data}) must be one of {', '.join(self.data)}")
        return self
