"""The description of a run that each of its processes gets, and the step from which it continues."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tips_ray import storage
from tips_ray.config import RunConfig, override
from tips_ray.runs.checkpoint import checkpoints_of, list_checkpoints, newest_checkpoint
from tips_ray.runs.folder import deciding, read_run_config

DATA = "data.json"
_IN_BATCHES = ("seed", "global_batch_images", "data.window_chunks", "data.sources.*.weight", "data.max_image_*")
_IN_BATCHES += ("views.*", "image.patch_size_px", "text.max_tokens", "captions.per_image", "captions.missing")
"""Keys that decide what a batch holds, beside the data, their captioner and the vocabulary."""


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
    earlier_fingerprint: str = ""
    """Fingerprint that version 1 of the index gave to the same data; empty where they were read otherwise."""
    captioner_fingerprint: str = ""
    """Fingerprint of captions outside the data; empty: the data hold the captions."""
    tracking_uri: str | None = None
    """URI of MLflow; None: no tracking."""
    mlflow_run_id: str = ""
    generation: int = 0
    """Of the lease that this start holds (`runs.lease`); 0: none, as in tests."""
    until_step: int | None = None
    """Step at which this start saves and pauses the run; None: it trains to the end."""

    @property
    def last_step(self) -> int:
        """Optimizer steps that are done when this start ends by itself."""
        return last_step_of(self.config, self.until_step)

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

    def batch_fingerprint(self) -> str:
        """sha256 of what decides the run's batches; the vocabulary is read for it.

        Two runs have the same one if their k-th global batches are equal for every k: the images, crops, masks and
        captions. Such runs differ by what was learned from the batches alone, on any number of workers.
        """
        decided = deciding(self.config.model_dump(mode="json"))
        keys = {key: value for key, value in decided.items() if any(fnmatchcase(key, one) for one in _IN_BATCHES)}
        vocabulary = hashlib.sha256(storage.read_bytes(self.tokenizer_uri)).hexdigest()
        return _digest(
            {**keys, "data": self.data_fingerprint, "captioner": self.captioner_fingerprint, "vocabulary": vocabulary}
        )

    def resumed_step(self) -> int:
        """The step of the newest checkpoint, 0 where there is none; reads manifests alone.

        Raises:
            ValueError: the data or their captioner are not those that it was trained on.
        """
        found = newest_checkpoint(self.checkpoints_uri)
        if found is None:
            return 0
        require_data(self.uri, self.data_fingerprint, self.earlier_fingerprint)
        captioner = found.manifest.get("captioner_fingerprint")
        if captioner and self.captioner_fingerprint and captioner != self.captioner_fingerprint:
            raise ValueError(
                f"{self.uri} was trained on captions of the captioner {captioner} until step {found.step}, and now "
                f"there is {self.captioner_fingerprint}: restore the captioner, or give the run another name"
            )
        return found.step


def last_step_of(config: RunConfig, until_step: int | None) -> int:
    """The step of a pause, which the end of the run precedes."""
    total = config.schedule.total_steps
    return total if until_step is None else min(until_step, total)


def run_at(uri: str) -> Run:
    """The run in a folder, as its files describe it; without an index, so that no data can be read by it.

    Raises:
        NotFoundError: there is no run.
        ValueError: its config is not one of this version.
    """
    config = override(RunConfig, read_run_config(uri), {})
    tokenizer = config.captions.tokenizer or storage.join(uri, "tokenizer.json")
    found = list_checkpoints(checkpoints_of(uri))
    captioner = found[-1].manifest.get("captioner_fingerprint", "") if found else ""
    return Run(config, uri, "", tokenizer, known_data(uri), captioner_fingerprint=captioner)


def require_data(run_uri: str, fingerprint: str, earlier: str = "") -> None:
    """Check that data are those that a run began with.

    Args:
        run_uri: the run folder; a new one has any data.
        fingerprint: of the data's index.
        earlier: what version 1 of the index called the same data.

    Raises:
        ValueError: they are others.
    """
    known = known_data(run_uri)
    if known and known not in (fingerprint, earlier):
        raise ValueError(
            f"the data are not those that {run_uri} began with (fingerprint {known[:12]} -> {fingerprint[:12]}): "
            "restore them, or give the run another name"
        )


def claim_data(run_uri: str, fingerprint: str) -> None:
    """Note the data of a run that has no note of them yet; see `require_data`."""
    storage.create_text(storage.join(run_uri, DATA), json.dumps({"fingerprint": fingerprint}))


def known_data(run_uri: str) -> str:
    """Fingerprint of a run's data by its note, else by its newest checkpoint; empty where there is neither."""
    try:
        return str(json.loads(storage.read_bytes(storage.join(run_uri, DATA)))["fingerprint"])
    except storage.NotFoundError:
        pass  # a new run, or one of an earlier version
    except storage.StorageError:
        raise
    except (ValueError, KeyError, TypeError):
        pass  # damaged
    found = list_checkpoints(checkpoints_of(run_uri))
    return found[-1].manifest.get("data_fingerprint", "") if found else ""


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """sha256 of what a run computes: its config without the keys that only change how fast or how visibly."""
    return _digest(deciding(config))


def _digest(values: Mapping[str, str]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
