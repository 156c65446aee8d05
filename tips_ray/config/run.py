"""The config of a whole run: what one optimizer step depends on, and where data come from and results go."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.captions import CaptionerConfig
from tips_ray.config.schema import Schema, Share, TrainConfig
from tips_ray.config.watch import GuardConfig, HealthConfig

Scale = Annotated[
    tuple[PositiveFloat, PositiveFloat], Field(description="smallest and largest share of the image's area")
]


class ColumnsConfig(Schema):
    """Which column holds what; None: the first common name that the data have (see `data.sources`)."""

    image: str | None = None
    web_caption: str | None = None
    """An empty name: rows have none, and none is looked for."""
    synthetic_captions: tuple[str, ...] | None = None
    """One or several columns, or one column that holds a list."""
    key: str | None = None


class SourceConfig(Schema):
    """One data set: a folder, tars or Parquet files, local or s3://."""

    uri: str
    """Folder, file, or pattern with `*` and `{000..099}` braces: `s3://bucket/shards/{000..099}.tar`, `photos/`."""
    format: Literal["auto", "webdataset", "parquet", "folder"] = "auto"
    """`auto`: by the file names. `folder` is images beside one CSV (or TSV) with a file name column."""
    columns: ColumnsConfig = ColumnsConfig()
    weight: PositiveFloat = 1.0
    """Share of this source beside the first; 1.0 draws as many rows of both."""


class DataConfig(Schema):
    """Sources, sample order and what happens to bad rows."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    index: str | None = None
    """Folder of the index; None: `<storage>/index/<fingerprint>`, made when it is not there."""
    chunk_rows: PositiveInt = 64
    """Consecutive rows of a shard that are read together."""
    window_chunks: PositiveInt = 64
    """Chunks, drawn from all over the data, whose rows are shuffled together."""
    max_bad_fraction: Share = 0.01
    """The run stops when a larger share of its rows so far was bad, counted over all workers and restarts.

    Judged at every logged step against the larger of the rows so far and min(1,000, rows of the whole run): with 0.01
    no run of more than a thousand rows ends before its eleventh bad row. 0 allows none."""
    max_image_bytes: PositiveInt = 64 * 2**20
    """A larger file is a bad row."""
    max_image_pixels: PositiveInt = 64_000_000
    """A larger image is a bad row; its pixels are never decoded."""
    log_samples: bool = False
    """Write down in `samples/` which samples every step held on each worker; for tests and audits, it is much."""


class ViewsConfig(Schema):
    """Crops, flips and masks of one image."""

    global_px: PositiveInt = 224
    """Side of the global crop (published for v1 training files and TIPSv2)."""
    global_scale: Scale = (0.32, 1.0)
    """(D) Smallest and largest share of the image's area in the global crop; DINOv2's public value."""
    local_crops: PositiveInt = 6
    """M, local crops per image (TIPSv2)."""
    local_px: PositiveInt = 98
    """Side of a local crop (TIPSv2: 98 beside 224, 140 beside 448)."""
    local_scale: Scale = (0.05, 0.32)
    """(D) The same for a local crop; DINOv2's public value."""
    flip: Share = 0.5
    """Probability that a crop is mirrored (flips published for TIPSv2, probability D)."""
    mask_ratio: Share = 0.75
    """Share of the global crop's patches that are masked, at random (published)."""


class CaptionsConfig(Schema):
    """Where synthetic captions come from and how text becomes ids."""

    source: Literal["column", "store", "live"] = "column"
    """`column`: the data hold them. `store`: `tips-ray caption` has made them. `live`: made beside training, in its
    order."""
    captioner: CaptionerConfig | None = None
    """Who writes the captions of `store` and `live`."""
    imported: str | None = None
    """With `store`: captions of another program, by the name that `tips-ray captions import --captioner` gave them."""
    store: str | None = None
    """Folder or s3:// prefix with captions of any number of captioners; None: `<storage>/captions`."""
    lead_windows: PositiveInt = 8
    """Windows that `live` captioning may be ahead of what training reads."""
    wait_seconds: PositiveFloat = 600
    """With `live`: longest time without any new captions that training waits for some."""
    per_image: PositiveInt = 1
    """A, synthetic captions of an image that training draws from (TIPSv2 alternates between several)."""
    tokenizer: str | None = None
    """SentencePiece or tokenizers file; None: one is trained on a sample of the data's captions and kept in the run."""
    missing: Literal["invalid", "empty", "other"] = "invalid"
    """A row without one of its captions is a bad row, gets an empty text, or gets the other caption."""

    @model_validator(mode="after")
    def _captions_have_a_writer(self) -> Self:
        if self.imported and self.source != "store":
            raise ValueError(f"imported ({self.imported}) are captions of a store: set source=store, not {self.source}")
        if self.source == "column" or self.imported:
            return self
        if self.captioner is None:
            raise ValueError(f"source ({self.source}) needs captioner: name a PaliGemma in captioner.model")
        written = len(self.captioner.prompts) * self.captioner.captions_per_prompt
        if self.per_image > written:
            raise ValueError(
                f"per_image ({self.per_image}) must be at most the captions that the captioner writes ({written})"
            )
        return self


class ResourcesConfig(Schema):
    """Workers and what each holds."""

    workers: PositiveInt = 1
    """Ranks that train; with `min_workers` the most of them."""
    min_workers: PositiveInt | None = None
    """Fewest that train; None: always `workers`. In between their number follows the nodes that there are, rounded down
    to one that the global batch allows: they grow when a node joins and go on with what is left when one goes."""
    replicas: PositiveInt = 1
    """Copies of the weights (HSDP): each is cut over workers / replicas of them, instead of one over all.

    Gathering then stays inside a copy, and only gradients travel between copies. It must divide `workers`."""
    gpus_per_worker: NonNegativeFloat = 0
    cpus_per_worker: NonNegativeFloat = 1
    max_failures: NonNegativeInt = 2
    """Times in a row, without a new checkpoint in between, that the workers start again from the newest one after one
    of them was lost, also in its start, before the run stops. An error that would come again (bad rows, a loss that is
    not finite) stops it at once."""
    resize_seconds: PositiveFloat = 60
    """(D) Shortest time between two looks at how many workers there is room for; each change costs a restart."""
    poll_seconds: PositiveFloat = 1
    """(D) How often workers, drained nodes and what nodes offer are looked at."""
    placement_seconds: PositiveFloat = 10
    """(D) Longest wait for the places of all workers, before the nodes are counted again."""
    data_cpus: PositiveInt = 1
    """CPUs that the data stream needs beside the workers; checked before the start."""
    captioners: PositiveInt = 1
    """Most captioner actors at a time, with `captions.source: live` and in `tips-ray caption`."""
    cpus_per_captioner: NonNegativeFloat = 1
    gpus_per_captioner: NonNegativeFloat = 0
    leave_seconds: PositiveFloat = 120
    """(D) Longest wait for workers that are to leave since nodes are gone, before they are stopped: the nodes may have
    taken the data stream with them, without which no worker comes to the end of its step."""
    roles: bool = False
    """Nodes are told apart by Ray resources of these names: a worker takes one `train`, each task that makes views one
    `data`, a captioner one `caption`. `ray start --resources='{"train": 8}'` offers them."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Compute type; weights are kept and gradients reduced in fp32."""
    accumulate_unsharded: bool = False
    """Average gradients over workers once, after the last micro-batch of a step, instead of after each.

    Less traffic, for a whole gradient in every worker's memory."""
    compile: bool = False
    """torch.compile of every transformer block."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again instead of kept."""

    @model_validator(mode="after")
    def _replicas_divide(self) -> Self:
        if self.workers % self.replicas:
            raise ValueError(f"replicas ({self.replicas}) must divide workers ({self.workers})")
        return self

    @property
    def of_worker(self) -> dict[str, float]:
        """What a worker takes of a node, by Ray's names."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.role("train")}

    def role(self, name: Literal["train", "data", "caption"]) -> dict[str, float]:
        """What a worker, a task or a captioner takes of a node to be placed there."""
        return {name: 1.0} if self.roles else {}

    @model_validator(mode="after")
    def _fewest_are_fewer(self) -> Self:
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most workers ({self.workers})")
        return self


class TrackingConfig(Schema):
    """MLflow."""

    mlflow_uri: str | None = None
    """Tracking server; None: `sqlite:///<storage>/mlflow.db` for a local storage, none for s3://."""
    experiment: str = "tips_ray"


class RunConfig(TrainConfig):
    """One pretraining run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder of the run below `storage`; the same name resumes."""
    storage: str = "out/runs"
    """Folder or s3:// prefix that holds all runs."""
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    guard: GuardConfig = GuardConfig()
    health: HealthConfig = HealthConfig()
    global_batch_images: PositiveInt
    """Images per optimizer step over all workers; fixed, whatever the number of workers."""
    micro_batch_images: PositiveInt | Literal["auto"] | None = None
    """Images per worker and forward pass; None: the worker's whole share. `auto`: the largest divisor of it that fits
    into the worker's memory with at most 120 MiB of views, tried before the first step and kept in the run folder."""
    log_every_steps: PositiveInt = 10
    checkpoint_every_steps: PositiveInt = 500
    keep_last: PositiveInt = 2
    """Newest checkpoints that stay."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints whose step is a multiple of it stay for ever, beside the newest; None: none do."""
    checkpoint_patience_seconds: NonNegativeFloat = 600
    """(D) Longest that writing a file of a checkpoint is tried again while the storage is away, before the run stops.
    Training goes on meanwhile, until the next checkpoint is due."""
    data_prefetch_batches: NonNegativeInt = 2
    """Micro-batches that wait ready in front of each worker."""

    @model_validator(mode="after")
    def _crops_fit_patches(self) -> Self:
        patch = self.image.patch_size_px
        for name, side in (("views.global_px", self.views.global_px), ("views.local_px", self.views.local_px)):
            if side % patch:
                raise ValueError(f"{name} ({side}) must be divisible by image.patch_size_px ({patch})")
        return self

    @model_validator(mode="after")
    def _teacher_is_somewhere(self) -> Self:
        if self.objective.teacher == "frozen" and self.objective.frozen_teacher is None:
            raise ValueError("objective.teacher (frozen) needs objective.frozen_teacher: name the run that trained it")
        return self

    @model_validator(mode="after")
    def _kept_steps_are_saved(self) -> Self:
        kept, saved = self.keep_every_steps, self.checkpoint_every_steps
        if kept and kept % saved:
            raise ValueError(f"keep_every_steps ({kept}) must be a multiple of checkpoint_every_steps ({saved})")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        workers, total = self.resources.workers, self.global_batch_images
        given = self.micro_batch_images
        micro = given if isinstance(given, int) else max(total // workers, 1) if given is None else 1
        if total % (workers * micro):
            raise ValueError(
                f"global_batch_images ({total}) must be divisible by resources.workers ({workers}) x "
                f"micro_batch_images ({micro})"
            )
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that may train, the fewest first: those among which the global batch can be shared out."""
        resources, given = self.resources, self.micro_batch_images
        micro = given if isinstance(given, int) else 1 if given == "auto" else self.images_per_pass
        shares, fewest = self.global_batch_images // micro, resources.min_workers or resources.workers
        counts = range(fewest, resources.workers + 1)
        return tuple(count for count in counts if shares % count == 0 and count % resources.replicas == 0)

    @property
    def cpus_beside_workers(self) -> float:
        """Of the data stream, and of captioning beside training: its actors, a reader for them, and `data_cpus` again.

        Ray divides what no stream has asked for evenly between the two: training gets its `data_cpus` when twice as
        many are left.
        """
        resources = self.resources
        if self.captions.source != "live":
            return resources.data_cpus
        return 2 * resources.data_cpus + resources.captioners * resources.cpus_per_captioner + 1

    @property
    def images_per_pass(self) -> int:
        """Images per worker and forward pass, once `auto` is found (`train.micro_batch`)."""
        assert self.micro_batch_images != "auto"
        return self.micro_batch_images or self.global_batch_images // self.resources.workers
