"""What a plan is made from, and what it says. Bytes, seconds and images per second unless a name says otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tips_ray.planning.machines import Machine


@dataclass(frozen=True)
class Given:
    """What a person enters; None: the plan takes its own figure and says which."""

    images: int
    machine: Machine
    mfu: float | None = None
    images_per_second_per_gpu: float | None = None
    """Of training alone, measured by `benchmarks.train_step` or a run."""
    captions_per_second: float | None = None
    """Of one captioner."""
    views_per_core: float | None = None
    cores_per_node: int | None = None
    node_gbit_per_second: float | None = None
    price_per_gpu_hour: float | None = None
    losses_per_node_hour: float = 0.0
    """Spot: how often a node is taken away."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Median of measured over planned of earlier runs on this kind of machine, by quantity."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one GPU, in bytes."""

    parts: Mapping[str, int]
    """What lives at the moment when most does."""
    phase: str
    peak_bytes: float
    """Their sum, corrected by earlier runs."""
    limit_bytes: float
    """What a step may take."""
    micro_batch_images: int

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.limit_bytes


@dataclass(frozen=True)
class StepPlan:
    """Time of one optimizer step, in seconds."""

    tflop_per_image: float
    rate_source: str
    """Where the rate of computing is from."""
    compute_seconds: float
    network_seconds: float
    """Of all collectives."""
    exposed_seconds: float
    """What the step waits for its network."""
    network_bytes: float
    """Over all collectives: parts of all ranks together."""

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds


@dataclass(frozen=True)
class StoragePlan:
    """What the object store is asked for, and what it keeps."""

    requests_per_second: float
    read_bytes_per_second: float
    caption_bytes: float
    checkpoint_bytes: float
    kept_checkpoints: int


@dataclass(frozen=True)
class Plan:
    """A run on a machine; JSON has the same names."""

    machine: str
    workers: int
    images_seen: int
    epochs: float
    memory: MemoryPlan
    step: StepPlan
    rates: Mapping[str, float]
    """Images/s that each part of the run can give; the least of them is that of the run."""
    needed: Mapping[str, float]
    """What keeps up with training."""
    caption_hours: float
    """Captioning of all images ahead, on the same GPUs; 0: the data have captions."""
    storage: StoragePlan
    wall_seconds: float
    lost_share: float
    """Of the time, to nodes that are taken away."""
    cost: float | None
    """In the currency of the price; None: no price was given."""
    weakest: str
    advice: str
    raw: Mapping[str, float]
    """Planned before earlier runs corrected it, by quantity."""
