"""A run on disk: what it is, its folder, checkpoints and tracking. Imports neither torch nor Ray."""

from tips_ray.runs.checkpoint import CheckpointInfo, checkpoints_of, list_checkpoints, newest_checkpoint
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import leased
from tips_ray.runs.mlflow_handle import TrackingHandle
from tips_ray.runs.run import Run
from tips_ray.runs.tracking import start_tracking

__all__ = [
    "CheckpointInfo",
    "Run",
    "RunFolder",
    "TrackingHandle",
    "checkpoints_of",
    "leased",
    "list_checkpoints",
    "newest_checkpoint",
    "start_tracking",
]
