"""The folder of a run, local or s3://: config, metrics, events, rejects, samples of all attempts (docs/formats.md)."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from math import isfinite, nan
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.runs.jsonl import LineLog

log = logging.getLogger(__name__)
MAY_DIFFER = {
    "resources",
    "micro_batch_images",
    "captions.lead_windows",
    "captions.wait_seconds",
    "tracking",
    "guard",
    "health",
    "log_every_steps",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "checkpoint_patience_seconds",
    "keep_last",
    "keep_every_steps",
    "evaluate_every_steps",
    "evaluation",
    "data_prefetch_batches",
    "data.max_bad_fraction",
    "data.log_samples",
    "storage",
    "data.sources.*.uri",
    "data.index",
    "captions.store",
}
"""Keys of the config, with all below them, that change how fast, how visibly or where a run goes, not its numbers.

Wherever the data lie, their fingerprint must be that of the run: see `run.require_data`.
"""
CONFIG = "config.yaml"
DECIDE = {"resources.dtype"}
"""Keys below `MAY_DIFFER` that do change what a run computes."""


def require_run(uri: str) -> None:
    """
    Raises:
        ValueError: there is no run folder at `uri`.
    """
    if not storage.exists(storage.join(uri, CONFIG)):
        raise ValueError(f"{uri} is no run folder: it has no {CONFIG}; give STORAGE/NAME of the run's config")


def read_run_config(run_uri: str) -> dict[str, Any]:
    """The config of a run, as its folder holds it: keys and values in nested dictionaries.

    Raises:
        NotFoundError: there is no run.
        StorageError: the file is empty, cut off or something else.
    """
    uri = storage.join(run_uri, CONFIG)
    return parsed_config(storage.read_text(uri), uri)


def parsed_config(text: str, uri: str) -> dict[str, Any]:
    """The config in the text of the file `uri`; raises as `read_run_config`."""
    try:
        config = yaml.safe_load(text)
        reason = "it is empty" if config is None else "it holds no keys"
    except yaml.YAMLError as error:
        config, reason = None, f"it is no YAML: {' '.join(str(error).split())[:200]}"
    if not isinstance(config, dict):
        raise storage.StorageError(
            f"{uri} is not the config of a run ({reason}); restore it from a copy; --dry-run with another "
            "name= prints such a config"
        )
    return config


def readable_config(config: Mapping[str, Any]) -> RunConfig | None:
    """The config that a run folder holds, as this version reads it; None where it cannot: another version wrote it."""
    try:
        return RunConfig.model_validate(config)
    except ValidationError:
        return None


class RunFolder:
    """One writer's view of the folder at `uri`; metrics, events and samples belong to rank 0 and the driver.

    Lines reach a local file at once, unless the folder is patient. On an object store they wait for `flush`.
    """

    def __init__(self, uri: str, rank: int = 0, is_patient: bool = False) -> None:
        """
        Args:
            uri: folder or s3:// prefix.
            rank: of the writer of rejects.
            is_patient: lines wait for `flush` on a local disk too, so that another thread may write them.
        """
        self.uri = str(uri).rstrip("/")
        of_steps, of_attempt = "attempt-{attempt:04d}-from-{step:08d}", "attempt-{attempt:04d}"
        self._metrics = LineLog(storage.join(self.uri, "metrics"), of_steps, ("step", "time"), is_patient)
        self._samples = LineLog(storage.join(self.uri, "samples"), of_steps, ("step", "rank"), is_patient)
        self._events = LineLog(storage.join(self.uri, "events"), of_attempt, ("kind", "time"), is_patient)
        of_rank = f"rank-{rank:05d}-attempt-{{attempt:04d}}"
        self._rejects = LineLog(storage.join(self.uri, "rejects"), of_rank, ("step", "sample_id"), is_patient)
        self._logs = self._metrics, self._samples, self._events, self._rejects

    def claim(self, config_text: str, step: int = 0) -> Literal["new", "resumed"]:
        """Store `config_text` as the run's config, or compare it with the one that is there: see `config_changes`.

        Users and passwords in its URLs are left out; a resume takes them from the config that it is given.
        """
        config_text = storage.without_credentials(config_text)
        storage.mark_output(self.uri)
        if storage.create_text(self._config_uri, config_text):
            return "new"
        changes = self.config_changes(config_text, step)
        if changes:
            self.log_event("config", None, changes=changes)
            self.flush()
        there = storage.read_text(self._config_uri)
        if changes or there != storage.without_credentials(there):
            storage.write_text(self._config_uri, config_text)
        return "resumed"

    def config_changes(self, config_text: str, step: int) -> dict[str, str]:
        """Keys in which the run's config differs -> `there -> given`; nothing is written.

        `schedule.changes` from `step` on, where the run goes on, may differ as well: nothing was computed with them.

        Raises:
            NotFoundError: there is no run.
            ValueError: the run has another config in a key that is not in `MAY_DIFFER`; all of them are listed.
        """
        text, given = storage.read_text(self._config_uri), yaml.safe_load(storage.without_credentials(config_text))
        there = _completed(parsed_config(storage.without_credentials(text), self._config_uri))
        changes = _changes(_flat(there), _flat(given))
        decided = _changes(deciding(_used(there, step)), deciding(_used(given, step)))
        refused = [f"  {key}: {change}" for key, change in decided.items()]
        if refused:
            raise ValueError("\n".join([f"{self.uri} holds a run with another config (there -> given):", *refused]))
        return changes

    @property
    def _config_uri(self) -> str:
        return storage.join(self.uri, CONFIG)

    def drop_after(self, step: int) -> None:
        """Call it after restoring `step`: what earlier attempts logged of later steps no longer counts.

        Nothing is deleted. Rejects still count; a bad row is returned once however often it was met.
        """
        self._metrics.start_attempt(step)
        self._samples.start_attempt(step)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line; a value that is not finite is stored as null."""
        numbers = {name: float(value) if isfinite(value) else None for name, value in metrics.items()}
        self._metrics.add([{"step": step, "time": _now(), **numbers}])

    def log_event(self, kind: str, step: int | None, **what: Any) -> None:
        """One line about what happened: `start`, `checkpoint`, `resume`, `end`, ..."""
        texts = {key: str(value) for key, value in what.items() if isinstance(value, float) and not isfinite(value)}
        self._events.add([{"time": _now(), "kind": kind, "step": step, **what, **texts}])

    def try_event(self, kind: str, step: int | None, **what: Any) -> None:
        """As `log_event`, written at once. Best effort: a failed write is only logged."""
        try:
            self.log_event(kind, step, **what)
            self.flush()
        except storage.StorageError as error:
            log.warning("%s %s is not in the events: %s", kind, what, error)

    def log_rejects(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows with `step`, `sample_id`, `key` and `reason`; each rank logs its own."""
        self._rejects.add(rows)

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Lines with `step`, `rank`, `positions` and `sample_ids`: what a rank took for that step."""
        self._samples.add(rows)

    def flush(self) -> None:
        """Write what waits; call it at the end."""
        for lines in self._logs:
            lines.flush()

    def seal(self) -> None:
        """As `flush`, and let later lines begin new parts of an object store: call it at every checkpoint."""
        for lines in self._logs:
            lines.seal()

    def flush_if_there(self) -> None:
        """As `flush`; while the storage does not answer, lines wait for the next call."""
        for lines in self._logs:
            lines.flush_if_there()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Lines of all attempts in order, without those that a restart from an earlier step has replaced."""
        return [_with_nan(line) for line in self._metrics.read_attempts(steps_done=0)]

    def sampled_metrics(self) -> list[dict[str, Any]]:
        """`read_metrics` of a short run; of a long one lines at even places and the last, in milliseconds."""
        lines, last = [_with_nan(line) for line in self._metrics.read_sample()], self.last_metrics()
        return [*lines, last] if last and (not lines or last["step"] > lines[-1]["step"]) else lines

    def last_metrics(self) -> dict[str, Any] | None:
        """The last line of `read_metrics`, of which only the end of a file is read; None where there is none."""
        line = self._metrics.read_last()
        return line and _with_nan(line)

    def read_samples(self) -> list[dict[str, Any]]:
        """A line per micro-batch of the steps that count, by step and rank; `step` is the stream's, 0 for the first."""
        lines = self._samples.read_attempts(steps_done=1)
        return sorted(lines, key=lambda line: (line["step"], line["rank"]))

    def read_events(self) -> list[dict[str, Any]]:
        """Events of all attempts, oldest first."""
        return sorted(self._events.read(), key=lambda line: line["time"])

    def final_failures(self) -> list[dict[str, Any]]:
        """Events of errors that all ranks raised alike, and that another start would meet again."""
        return [event for event in self.read_events() if event["kind"] == "failure" and event["is_final"]]

    def read_rejects(self) -> list[dict[str, Any]]:
        """Every bad row once, however often a restart met it again."""
        lines = {(line["step"], line["sample_id"]): line for line in self._rejects.read()}
        return [lines[key] for key in sorted(lines)]

    def described_rejects(self, shown: int = 3) -> str:
        """The commonest reasons, each with its count and an example, and where the table is."""
        found: dict[str, list[str]] = {}  # what follows a colon is about one row
        for row in self.read_rejects():
            found.setdefault(row["reason"].partition(":")[0], []).append(row["key"])
        common = sorted(found.items(), key=lambda item: -len(item[1]))[:shown]
        reasons = ", ".join(f"{reason} ({len(keys)}, e.g. {keys[0]})" for reason, keys in common)
        return f"commonest reasons: {reasons}; all of them: {self._rejects.uri}"


def deciding(config: Mapping[str, Any]) -> dict[str, str]:
    """Config values that decide what a run computes: dotted keys -> JSON. Captions `live` and `store` are the same."""
    flat = {key: value for key, value in _flat(config).items() if not _may_differ(key)}
    if flat.get("captions.source") == '"live"':
        flat["captions.source"] = '"store"'
    return flat


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the defaults of keys that came after it was written: those leave a run as it was without them."""
    readable = readable_config(config)
    return readable.model_dump(mode="json") if readable else config


def _with_nan(line: dict[str, Any]) -> dict[str, Any]:
    return {name: nan if value is None else value for name, value in line.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _may_differ(key: str) -> bool:
    return key not in DECIDE and any(fnmatchcase(f"{key}.", f"{free}.*") for free in MAY_DIFFER)


def _used(config: dict[str, Any], step: int) -> dict[str, Any]:
    """`config` without the schedule's changes from `step` on, which no update before it has seen."""
    schedule = config.get("schedule") or {}
    past = [change for change in schedule.get("changes") or () if change["from_step"] < step]
    return {**config, "schedule": {**schedule, "changes": past}}


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Dotted keys whose values differ -> `before -> after`."""
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in keys}
    return {key: f"{one} -> {other}" for key, (one, other) in pairs.items() if one != other}


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys -> values as JSON."""
    return dict(_leaves(config))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as JSON) of a tree of mappings and lists; an empty one is a value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not items or not tree:
        yield prefix, json.dumps(tree, default=str)
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
