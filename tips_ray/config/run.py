"""Config of a whole run: everything an optimizer step depends on, data, captions, resources, storage and tracking."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.captions import CaptionerConfig
from tips_ray.config.schema import Schema, Share, TrainConfig
from tips_ray.config.score import EvaluationConfig
from tips_ray.config.tracking import TrackingConfig
from tips_ray.config.watch import GuardConfig, HealthConfig

Scale = Annotated[
    tuple[PositiveFloat, PositiveFloat], Field(description="smallest and largest share of the image's area")
]


OTHER_NAMES = ("index", "captions", "mlartifacts", "mlflow.db")
"""What lies in a storage beside the folders of its runs."""
WORKERS_PER_READER = CPUS_PER_READER = 8
"""Workers that one reader of a shared stream serves, those of a node with eight GPUs, and CPUs that make views of what
it reads: an image's views cost about eight times as much as reading it."""


class ColumnsConfig(Schema):
    """Column of each field; None: the first common name that the data have (see `data.sources`)."""

    image: str | None = None
    web_caption: str | None = None
    """Column of the web caption; an empty name: rows have none."""
    synthetic_captions: tuple[str, ...] | None = None
    """One or several columns, or one column that holds a list."""
    key: str | None = None


class SourceConfig(Schema):
    """One data set: a folder, tars or Parquet files, local or s3://."""

    uri: str
    """Folder, file, or pattern with `*` and `{000..099}` braces: `s3://bucket/shards/{000..099}.tar`, `photos/`."""
    format: Literal["auto", "webdataset", "parquet", "folder", "selection"] = "auto"
    """`auto`: by the file names. `folder` is images beside one CSV (or TSV) with a file name column, or beside files of
    their names (docs/own-data.md). `selection` is what `tips-ray curate` writes."""
    columns: ColumnsConfig = ColumnsConfig()
    weight: PositiveFloat = 1.0
    """Weight of this source relative to the others; with equal weights, as many rows are drawn from each."""


class DataConfig(Schema):
    """Sources, sample order and what happens to bad rows."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    index: str | None = None
    """Folder of the index; None: `<storage>/index/<fingerprint>`, made if it is missing."""
    chunk_rows: PositiveInt = 64
    """Consecutive rows of a shard that are read together."""
    window_chunks: PositiveInt = 64
    """Chunks, drawn from all of the data, whose rows are shuffled together."""
    max_bad_fraction: Share = 0.01
    """The run stops if a larger share of its rows so far is bad, counted over all workers and restarts.

    Each logged step compares with the larger of the rows so far and min(1,000, rows of the whole run): with 0.01, a run
    of more than a thousand rows never stops before its eleventh bad row. 0 allows none."""
    max_image_bytes: PositiveInt = 64 * 2**20
    """A larger file is a bad row."""
    max_image_pixels: PositiveInt = 64_000_000
    """A larger image is a bad row; its pixels are never decoded."""
    log_samples: bool = False
    """Write the samples of every step and worker to `samples/`; for tests and audits, because the files are large."""


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
    """(D) Smallest and largest share of the image's area in a local crop; DINOv2's public value."""
    flip: Share = 0.5
    """Probability that a crop is mirrored (flips published for TIPSv2, probability D)."""
    mask_ratio: Share = 0.75
    """Share of the global crop's patches that are masked, at random (published)."""


class CaptionsConfig(Schema):
    """Source of synthetic captions, and the tokenizer."""

    source: Literal["column", "store", "live"] = "column"
    """`column`: the data hold the captions. `store`: `tips-ray caption` has made them. `live`: they are made during
    training, in its order."""
    captioner: CaptionerConfig | None = None
    """Captioner that writes the captions of `store` and `live`."""
    imported: str | None = None
    """With `store`: name of captions by another program, given by `tips-ray captions import --captioner`."""
    store: str | None = None
    """Folder or s3:// prefix with captions of any number of captioners; None: `<storage>/captions`."""
    lead_windows: PositiveInt = 8
    """Most windows that `live` captioning may be ahead of training."""
    wait_seconds: PositiveFloat = 600
    """With `live`: longest time that training waits without any new captions."""
    per_image: PositiveInt = 1
    """A, number of synthetic captions per image that training draws from (TIPSv2 alternates between several)."""
    tokenizer: str | None = None
    """SentencePiece or tokenizers file; None: train one on a sample of the data's captions and keep it in the run."""
    missing: Literal["invalid", "empty", "other"] = "invalid"
    """Handling of a row without one of its captions: bad row, an empty text, or the other caption instead."""

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
    """Number of workers, their CPUs and GPUs, and how training reacts to changes of the cluster."""

    workers: PositiveInt = 1
    """Number of training ranks; with `min_workers`, the largest number."""
    min_workers: PositiveInt | None = None
    """Smallest number of training ranks; None: always `workers`. Between the two, the number follows the available
    nodes, rounded down to one that the global batch allows: it grows when a node joins and shrinks when one leaves."""
    replicas: PositiveInt = 1
    """Copies of the weights (HSDP); each copy is sharded over workers / replicas ranks. It must divide `workers`.

    Gathering stays inside a copy, and only gradients travel between copies."""
    gpus_per_worker: NonNegativeFloat = 0
    cpus_per_worker: NonNegativeFloat = 1
    max_failures: NonNegativeInt = 2
    """Most restarts from the newest checkpoint, in a row of which none got farther, after a worker was lost
    (also while it started). An error that would recur (bad rows, a loss that is not finite) stops the run at once."""
    resize_seconds: PositiveFloat = 60
    """(D) Shortest time between two checks of how many workers fit; each change costs a restart."""
    poll_seconds: PositiveFloat = 1
    """(D) Interval between checks of workers, drained nodes and the nodes' resources."""
    placement_seconds: PositiveFloat = 10
    """(D) Longest wait for the resources of all workers, before the nodes are counted again."""
    data_cpus: PositiveInt = 1
    """CPUs that the data stream needs beside the workers; checked before the start."""
    stream: Literal["auto", "split", "shared"] = "auto"
    """How rows reach the workers. `split`: one Ray Data stream, whose one process deals about 100 micro-batches a
    second. `shared`: readers read each window once, and workers take their rows from them; nothing deals. Both give
    the same batches. `auto`: `shared` for more than 8 workers."""
    captioners: PositiveInt = 1
    """Most concurrent captioner actors, with `captions.source: live` and in `tips-ray caption`."""
    cpus_per_captioner: NonNegativeFloat = 1
    gpus_per_captioner: NonNegativeFloat = 0
    leave_seconds: PositiveFloat = 120
    """(D) When nodes are gone, workers are asked to stop and are killed after this time: the data stream may have been
    lost with the nodes, and without it no worker finishes its step."""
    roles: bool = False
    """Place work by custom Ray resources: a worker takes one `train`, each task that makes views one `data`, a
    captioner one `caption`. Nodes offer them with `ray start --resources='{"train": 8}'`."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute dtype; weights are kept and gradients reduced in fp32. `auto`: bf16 where a worker has a GPU, else fp32;
    the run folder keeps which of the two it was."""
    accumulate_unsharded: bool = False
    """Average gradients over workers once, after the last micro-batch of a step, instead of after each.

    This needs less traffic, but every worker's memory holds a whole gradient."""
    keep_embedding_graph: Literal["auto"] | bool = "auto"
    """With several passes in a step: whether clean views and texts, which all passes embed first, keep their graph for
    the backward, instead of being computed twice; a tenth fewer operations for the memory of these graphs.

    `auto`: with `micro_batch_images: auto`, if it fits with at least half as many images per pass; otherwise false."""
    reshard_after_forward: bool | Literal["auto"] = "auto"
    """Whether the student's blocks are freed after their forward and gathered again for their backward, in every pass.
    `auto`: if all gathered blocks take more than 1 GiB; smaller ones stay until the last backward of a step."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to torch.compile every transformer block and the heads. `auto`: where a worker has a GPU."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing: which activations are recomputed instead of kept."""

    @model_validator(mode="after")
    def _auto_is_settled(self) -> Self:
        """From here on nothing is `auto`: what a run began with is compared with what its next start would do."""
        has_gpu = self.gpus_per_worker > 0
        settled = {"dtype": "bf16" if has_gpu else "fp32", "compile": has_gpu}
        for name, value in settled.items():
            if getattr(self, name) == "auto":
                object.__setattr__(self, name, value)  # the class is frozen
        return self

    @model_validator(mode="after")
    def _replicas_divide(self) -> Self:
        if self.workers % self.replicas:
            raise ValueError(f"replicas ({self.replicas}) must divide workers ({self.workers})")
        return self

    @property
    def stream_readers(self) -> int:
        """R, number of readers of a shared stream; 0: Ray Data splits one stream."""
        is_shared = self.stream == "shared" or (self.stream == "auto" and self.workers > WORKERS_PER_READER)
        of_cpus, of_workers = -(-self.data_cpus // CPUS_PER_READER), -(-self.workers // WORKERS_PER_READER)
        return max(of_cpus, of_workers) if is_shared else 0

    @property
    def of_worker(self) -> dict[str, float]:
        """Ray resources of a worker."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.role("train")}

    def role(self, name: Literal["train", "data", "caption"]) -> dict[str, float]:
        """Custom Ray resource of a worker, a task that makes views or a captioner; empty without `roles`."""
        return {name: 1.0} if self.roles else {}

    @model_validator(mode="after")
    def _fewest_are_fewer(self) -> Self:
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most workers ({self.workers})")
        return self


class RunConfig(TrainConfig):
    """One pretraining run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder of the run below `storage`; the same name resumes the run."""
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
    """Images per optimizer step over all workers, independent of the number of workers."""
    micro_batch_images: PositiveInt | Literal["auto"] | None = None
    """Images per worker and forward pass; None: the worker's whole share. `auto`: the largest divisor of the share that
    fits into the worker's memory with at most 120 MiB of views; found before the first step, kept in the run folder."""
    log_every_steps: PositiveInt = 10
    checkpoint_every_steps: PositiveInt = 500
    checkpoint_every_minutes: PositiveFloat | None = 30
    """(D) A checkpoint is also written when the last one is so old, and one minute after each start, so that losses
    soon after a start lose little; None: by steps alone."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are kept for ever, beside the newest; None: none are."""
    evaluate_every_steps: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are evaluated, and the last one; None: none are."""
    evaluation: EvaluationConfig | None = None
    """How they are evaluated."""
    checkpoint_patience_seconds: NonNegativeFloat = 600
    """(D) Longest time that writing a checkpoint file is retried while the storage is away, before the run stops.
    Training continues meanwhile, until the next checkpoint is due."""
    data_prefetch_batches: NonNegativeInt = 2
    """Micro-batches that are kept ready for each worker."""

    def __hash__(self) -> int:
        """Caches have configs as keys; equality looks at all fields, some of which are dictionaries without a hash."""
        return hash((self.name, self.storage, self.seed))

    @model_validator(mode="after")
    def _name_is_free(self) -> Self:
        if self.name in OTHER_NAMES:
            raise ValueError(f"name ({self.name}): the storage keeps other things there; give the run another name")
        return self

    @model_validator(mode="after")
    def _crops_fit_patches(self) -> Self:
        patch = self.image.patch_size_px
        for name, side in (("views.global_px", self.views.global_px), ("views.local_px", self.views.local_px)):
            if side % patch:
                raise ValueError(f"{name} ({side}) must be divisible by image.patch_size_px ({patch})")
        return self

    @model_validator(mode="after")
    def _local_crops_are_no_larger(self) -> Self:
        if self.views.local_crops and self.views.local_px > self.views.global_px:
            raise ValueError(
                f"views.local_px ({self.views.local_px}) is above views.global_px ({self.views.global_px})"
            )
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
    def _evaluated_steps_are_saved(self) -> Self:
        evaluated, saved = self.evaluate_every_steps, self.checkpoint_every_steps
        if evaluated and self.evaluation is None:
            raise ValueError(f"evaluate_every_steps ({evaluated}) needs evaluation.suite: name tasks and data sets")
        if self.evaluation and not evaluated:
            raise ValueError("evaluation needs evaluate_every_steps: a multiple of checkpoint_every_steps")
        if evaluated and evaluated % saved:
            raise ValueError(
                f"evaluate_every_steps ({evaluated}) must be a multiple of checkpoint_every_steps ({saved})"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        workers, total = self.resources.workers, self.global_batch_images
        given = self.micro_batch_images
        micro = given if isinstance(given, int) else max(total // workers, 1) if given is None else 1
        if total % (workers * micro):
            passes = f" x micro_batch_images ({micro})" if isinstance(given, int) else ""
            raise ValueError(
                f"global_batch_images ({total}) must be divisible by resources.workers ({workers}){passes}"
            )
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that may train, in rising order: those that divide the global batch evenly."""
        resources, given = self.resources, self.micro_batch_images
        micro = given if isinstance(given, int) else 1 if given == "auto" else self.images_per_pass
        shares, fewest = self.global_batch_images // micro, resources.min_workers or resources.workers
        counts = range(fewest, resources.workers + 1)
        return tuple(count for count in counts if shares % count == 0 and count % resources.replicas == 0)

    @property
    def most_wait_seconds(self) -> float:
        """Longest time that a rank may wait for another one, which may itself wait for captions or storage."""
        return 1800 + max(self.captions.wait_seconds, self.checkpoint_patience_seconds)

    @property
    def cpus_beside_workers(self) -> float:
        """CPUs of evaluation and the data stream; with `live` captions of its actors, their reader, `data_cpus` again.

        Ray divides CPUs that no stream has asked for evenly between both streams, so training gets its `data_cpus` if
        twice as many are left.
        """
        resources, evaluation = self.resources, self.evaluation.cpus if self.evaluation else 0
        if self.captions.source != "live":
            return resources.data_cpus + evaluation
        return 2 * resources.data_cpus + resources.captioners * resources.cpus_per_captioner + 1 + evaluation

    @property
    def keeps_embedding_graph(self) -> bool:
        """Whether the first passes keep their graph; `auto` is false until `train.micro_batch` has replaced it."""
        return self.resources.keep_embedding_graph is True

    @property
    def images_per_pass(self) -> int:
        """Images per worker and forward pass; `auto` must have been replaced (`train.micro_batch`)."""
        assert self.micro_batch_images != "auto"
        return self.micro_batch_images or self.global_batch_images // self.resources.workers
