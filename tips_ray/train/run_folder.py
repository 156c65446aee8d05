"""The folder of a run, local or s3://: config, metrics, events, rejects, samples of all attempts (docs/formats.md).

An *attempt* is one process that writes: each takes the next free number, so no object ever has two writers.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from math import isfinite, nan
from typing import Any, Literal

import yaml

from tips_ray import storage

log = logging.getLogger(__name__)
MAY_DIFFER = {
    "resources",
    "tracking",
    "guard",
    "health",
    "log_every_steps",
    "checkpoint_every_steps",
    "checkpoint_patience_seconds",
    "keep_last",
    "keep_every_steps",
    "data_prefetch_batches",
    "data.max_bad_fraction",
    "data.log_samples",
}
"""Keys of the config, with all below them, that change how fast or how visibly a run goes, and not what it computes."""


class RunFolder:
    """One writer's view of the folder at `uri`; metrics, events and samples belong to rank 0 and the driver.

    Lines reach a local file at once. On an object store they wait for `flush`, which writes one part of each kind.
    """

    def __init__(self, uri: str, rank: int = 0) -> None:
        self.uri = str(uri).rstrip("/")
        self._metrics = _Log(storage.join(self.uri, "metrics"), "attempt-{attempt:04d}-from-{step:08d}")
        self._samples = _Log(storage.join(self.uri, "samples"), "attempt-{attempt:04d}-from-{step:08d}")
        self._events = _Log(storage.join(self.uri, "events"), "attempt-{attempt:04d}")
        self._rejects = _Log(storage.join(self.uri, "rejects"), f"rank-{rank:05d}-attempt-{{attempt:04d}}")

    def claim(self, config_text: str, step: int = 0) -> Literal["new", "resumed"]:
        """Store `config_text` as the run's config, or compare it with the one that is there: see `config_changes`."""
        if storage.create_text(self._config_uri, config_text):
            return "new"
        changes = self.config_changes(config_text, step)
        if changes:
            self.log_event("config", None, changes=changes)
            self.flush()
            storage.write_text(self._config_uri, config_text)
        return "resumed"

    def config_changes(self, config_text: str, step: int) -> dict[str, str]:
        """Keys in which the run's config differs -> `there -> given`; nothing is written.

        `schedule.changes` from `step` on, where the run goes on, may differ as well: nothing was computed with them.

        Raises:
            NotFoundError: there is no run.
            ValueError: the run has another config in a key that is not in `MAY_DIFFER`; all of them are listed.
        """
        there, given = yaml.safe_load(storage.read_text(self._config_uri)), yaml.safe_load(config_text)
        changes = _changes(there, given)
        used = _changes(_used(there, step), _used(given, step))
        refused = [f"  {key}: {change}" for key, change in used.items() if not _may_differ(key)]
        if refused:
            raise ValueError("\n".join([f"{self.uri} holds a run with another config (there -> given):", *refused]))
        return changes

    @property
    def _config_uri(self) -> str:
        return storage.join(self.uri, "config.yaml")

    def drop_after(self, step: int) -> None:
        """Call it after restoring `step`: what earlier attempts logged of later steps no longer counts.

        Nothing is deleted. Rejects stay: a bad row is bad, and is read once however often it is met.
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

    def log_rejects(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows with `step`, `sample_id`, `key` and `reason`; each rank logs its own."""
        self._rejects.add(rows)

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Lines with `step`, `rank`, `positions` and `sample_ids`: what a rank took for that step."""
        self._samples.add(rows)

    def flush(self) -> None:
        """Write what waits; call it at every checkpoint and at the end."""
        for log in (self._metrics, self._samples, self._events, self._rejects):
            log.flush()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Lines of all attempts in order, without those that a restart from an earlier step has replaced."""
        return [_with_nan(line) for line in self._metrics.read_attempts(steps_done=0)]

    def read_samples(self) -> list[dict[str, Any]]:
        """One line per step and rank, by step, of the steps that count. `step` is the stream's: 0 for the first."""
        lines = self._samples.read_attempts(steps_done=1)
        return sorted(lines, key=lambda line: (line["step"], line["rank"]))

    def read_events(self) -> list[dict[str, Any]]:
        """Events of all attempts, oldest first."""
        return sorted(self._events.read(), key=lambda line: line["time"])

    def final_failures(self) -> list[dict[str, Any]]:
        """Events of errors that all ranks raised alike, and that another attempt would meet again."""
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


def is_final(error: BaseException) -> bool:
    """Another attempt would meet it again; storage that is away may come back."""
    may_pass = isinstance(error, storage.StorageError) and error.may_pass
    return isinstance(error, (ValueError, FloatingPointError)) and not may_pass


class _Log:
    """JSON lines of one kind: from one writer, read from all."""

    def __init__(self, uri: str, stem: str) -> None:
        self.uri = uri
        self._stem = stem  # a pattern of `attempt` and `step`
        self._is_local = storage.is_local(uri)
        self._waiting: list[str] = []
        self._known: dict[str, list[dict[str, Any]]] = {}  # parts of an object store, which never change, once read
        self.start_attempt(first_step=0)

    def start_attempt(self, first_step: int) -> None:
        self.flush()
        self._first_step, self._parts = first_step, 0
        self._name: str | None = None  # of this attempt's files, once it has one

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._waiting += [json.dumps(line, default=_plain) + "\n" for line in lines]
        if self._is_local:
            self._flush_if_there()

    def _flush_if_there(self) -> None:
        """While the storage is away the lines wait, for the next time."""
        try:
            self.flush()
        except storage.StorageError as error:
            if not error.may_pass:
                raise
            log.warning("%s waits: %s", self.uri, error)

    def flush(self) -> None:
        if not self._waiting:
            return
        text = "".join(self._waiting)
        if self._name is None:
            self._name = self._create(text)
        elif self._is_local:
            _append(self._uri_of(self._name), text)
        else:
            storage.write_text(self._uri_of(self._name), text)
        self._waiting.clear()
        self._parts += 1

    def read(self) -> list[dict[str, Any]]:
        """Lines of all files, by their names."""
        return [line for name in sorted(storage.list_names(self.uri)) for line in self._lines(name)]

    def read_attempts(self, steps_done: int) -> list[dict[str, Any]]:
        """Lines of all attempts in order, without those that a restart from an earlier step has replaced.

        A line counts when its step plus `steps_done` is at most the step that each later attempt restored.
        """
        lines: list[dict[str, Any]] = []
        names = sorted(storage.list_names(self.uri), key=_attempt_and_step)
        for (_, first_step), parts in groupby(names, _attempt_and_step):
            lines = [line for line in lines if line["step"] + steps_done <= first_step]
            lines += [line for name in sorted(parts) for line in self._lines(name)]
        return lines

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines only: a crash while writing leaves a last one without its newline."""
        if name in self._known:
            return self._known[name]
        whole = storage.read_text(storage.join(self.uri, name)).split("\n")[:-1]
        lines = [_parsed(line, f"{self.uri}/{name}, line {number}") for number, line in enumerate(whole, start=1)]
        if not self._is_local:
            self._known[name] = lines
        return lines

    def _create(self, text: str) -> str:
        """Write the first file under the next number that no other writer has."""
        attempt = max(map(_attempt, storage.list_names(self.uri)), default=0)
        while True:
            attempt += 1
            name = self._stem.format(attempt=attempt, step=self._first_step)
            if storage.create_text(self._uri_of(name), text):
                return name

    def _uri_of(self, name: str) -> str:
        """Of the local file, or of the next part on an object store."""
        return storage.join(self.uri, name + (".jsonl" if self._is_local else f".part-{self._parts:06d}.jsonl"))


def _append(path: str, text: str) -> None:
    """All of it or nothing: what a full disk has cut would be no line, and the next try would stand behind it.

    Raises:
        StorageError: it cannot be written.
    """
    content = text.encode()
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise storage.failure(path, error) from error


def _attempt(name: str) -> int:
    return int(name.partition("attempt-")[2].partition("-")[0].partition(".")[0])


def _attempt_and_step(name: str) -> tuple[int, int]:
    return _attempt(name), int(name.partition("-from-")[2].partition(".")[0])


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error


def _with_nan(line: dict[str, Any]) -> dict[str, Any]:
    return {name: nan if value is None else value for name, value in line.items()}


def _plain(value: Any) -> Any:
    """What json does not know: a numpy or torch scalar as its number, the rest as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _may_differ(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in MAY_DIFFER)


def _used(config: dict[str, Any], step: int) -> dict[str, Any]:
    """`config` without the schedule's changes from `step` on, which no update before it has seen."""
    schedule = config.get("schedule") or {}
    past = [change for change in schedule.get("changes") or () if change["from_step"] < step]
    return {**config, "schedule": {**schedule, "changes": past}}


def _changes(old: Any, new: Any) -> dict[str, str]:
    """Dotted keys whose values differ -> `old -> new`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in keys}
    return {key: f"{one} -> {other}" for key, (one, other) in pairs.items() if one != other}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as JSON) of a tree of mappings and lists; an empty one is a value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not items or not tree:
        yield prefix, json.dumps(tree, default=str)
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
