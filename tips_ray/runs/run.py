"""The description of a run that each of its processes gets, and the step from which it continues."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tips_ray.config import RunConfig
from tips_ray.runs.checkpoint import checkpoints_of, newest_checkpoint
from tips_ray.runs.folder import deciding


@dataclass(frozen=True)
class Run:
    """Config and URIs that the driver gives every process of a run. Picklable and hashable; holds no open resources."""

    config: RunConfig
    uri: str
    """URI of the run folder."""
    index_uri: str
    tokenizer_uri: str
    data_fingerprint: str
    """Fingerprint of the index."""
    captioner_fingerprint: str = ""
    """Fingerprint of captions outside the data; empty: the data hold the captions."""
    tracking_uri: str | None = None
    """URI of MLflow; None: no tracking."""
    mlflow_run_id: str = ""
    generation: int = 0
    """Of the lease that this start holds (`runs.lease`); 0: none, as in tests."""

    @property
    def checkpoints_uri(self) -> str:
        """Folder of the run's checkpoints."""
        return checkpoints_of(self.uri)

    @property
    def config_fingerprint(self) -> str:
        """`config_fingerprint` of this run's config."""
        return config_fingerprint(self.config.model_dump(mode="json"))

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint's manifest says of data, config and captions."""
        found = {"data_fingerprint": self.data_fingerprint, "config_fingerprint": self.config_fingerprint}
        return {**found, "captioner_fingerprint": self.captioner_fingerprint} if self.captioner_fingerprint else found

    def resumed_step(self) -> int:
        """The step of the newest checkpoint, 0 where there is none; reads manifests alone.

        Raises:
            ValueError: the data are not those that it was trained on.
        """
        found = newest_checkpoint(self.checkpoints_uri)
        if found is None:
            return 0
        trained = found.manifest["data_fingerprint"]
        if self.data_fingerprint != trained:
            raise ValueError(
                f"the data of {self.uri} have changed since step {found.step} (fingerprint {trained[:12]} -> "
                f"{self.data_fingerprint[:12]}): restore them, or give the run another name"
            )
        return found.step


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """sha256 of what a run computes: its config without the keys that only change how fast or how visibly."""
    canonical = json.dumps(deciding(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
