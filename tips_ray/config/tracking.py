"""Config of a run's tracking in MLflow."""

import re
from typing import Self

from pydantic import model_validator

from tips_ray.config.schema import Schema

OWN_TAGS = {"run_folder", "batch_fingerprint", "copied_from", "resumed_from_step", "sweep", "sweep_folder"}
OWN_TAGS |= {"command", "host", "working_directory", "git.dirty", "machine", "cluster"}
OWN_PREFIXES = ("mlflow.", "version.", "changed.")
DESCRIPTION = "mlflow.note.content"
TAG_NAME = re.compile(r"[/\w.\- :]{1,250}")


class TrackingConfig(Schema):
    """Tracking in MLflow."""

    mlflow_uri: str | None = None
    """Tracking server; None: `sqlite:///<storage>/mlflow.db` for local storage, no tracking for s3://."""
    experiment: str = "tips_ray"
    tags: dict[str, str] = {}
    """Tags of the MLflow run beside those that every run has; `mlflow.note.content` is its description."""
    system_metrics: bool = True
    """Log the use of processors, memory, disk, network and GPUs of each node every 10 s, under MLflow's own names."""

    def __hash__(self) -> int:
        return hash((self.mlflow_uri, self.experiment, frozenset(self.tags.items()), self.system_metrics))

    @model_validator(mode="after")
    def _tags_are_free(self) -> Self:
        for name in self.tags:
            if name in OWN_TAGS or (name.startswith(OWN_PREFIXES) and name != DESCRIPTION):
                raise ValueError(f"tags ({name}): each run sets this tag itself; give yours another name")
            if not TAG_NAME.fullmatch(name):
                raise ValueError(f"tags ({name}): a name has 1 to 250 letters, digits, spaces and characters of /_-.:")
        return self
