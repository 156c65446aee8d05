"""Names of the metrics that a run logs, for commands that are given one before a run has logged anything."""

_OF_CLS = ("cosine", "effective_rank")
_OF_CAPTION = ("image_to_text", "text_to_image")
_OF_HEAD = (
    "target_entropy",
    "target_entropy_share",
    "prototype_usage",
    "center_norm",
    "information",
    "mutual_information",
)
CAPTIONS, HEADS = ("web", "synthetic"), ("distillation", "masked_image")

LOGGED_METRICS = (
    "loss/total",
    *(f"loss/contrastive_{caption}" for caption in CAPTIONS),
    *(f"loss/{head}" for head in HEADS),
    *(f"health/contrastive_{caption}/{name}" for caption in CAPTIONS for name in _OF_CAPTION),
    *(f"health/cls_{caption}/{name}" for caption in CAPTIONS for name in _OF_CLS),
    *(f"health/{head}/{name}" for head in HEADS for name in _OF_HEAD),
    "health/temperature",
    "health/memory_peak_gib",
    "grad_norm",
    "data/bad_fraction",
    "guard/skipped",
    "images_per_second",
    "data_wait_share",
    "mfu",
    "checkpoint_stall_ms",
)
"""A run logs those of them whose loss its config has; `mfu` where the peak of its device is known."""
