"""Where a run stands, by its folder alone: lease, events, the last line of its metrics, checkpoints, disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import isnan
from typing import Any, Literal

from tips_ray import storage
from tips_ray.runs.checkpoint import checkpoints_of, newest_step
from tips_ray.runs.evaluations import PATIENCE, in_words, is_over
from tips_ray.runs.folder import CONFIG, RunFolder, read_run_config
from tips_ray.runs.lease import BEAT_SECONDS, Holder, newest
from tips_ray.runs.loss_health import findings_of
from tips_ray.runs.mlflow_note import MlflowNote, stored_note
from tips_ray.runs.restart import STARTS, wait_for_nodes
from tips_ray.words import ago, bytes_text, table

SILENT_SECONDS = 300.0
"""A start on another machine that has given no sign for so long is called silent; clocks differ by less."""
WIDTH, SHOWN = 120, 4
"""Characters of a reason in the list; parts of the disk that are shown."""
GO_ON = "the command that started it goes on from the newest checkpoint"
NEXT: Mapping[str, str] = {
    "complete": "tips-ray evaluate {uri}; tips-ray runs promote {uri}; tips-ray export {uri} --to transformers OUT",
    "training": "tips-ray runs stop {uri}",
    "starting": "tips-ray runs stop {uri}",
    "waiting": "add nodes, or tips-ray runs stop {uri}",
    "silent": "if its machine is gone: tips-ray runs unlock {uri}, then the command that started it",
    "paused": GO_ON,
    "stopped": GO_ON,
    "failed": f"mend the reason, then {GO_ON}; where the cure is another value of the config, give it another name=",
    "killed": GO_ON,
    "new": "tips-ray pretrain with its config",
}
"""What a person may do, by state."""
AT_ONCE = 16
"""Run folders that are read at a time: on an object store each takes several requests."""
State = Literal["complete", "training", "starting", "waiting", "silent", "paused", "stopped", "failed", "killed", "new",
                "damaged"]  # fmt: skip
ENDS: Mapping[str, State] = {"FINISHED": "complete", "SCHEDULED": "paused", "KILLED": "stopped", "FAILED": "failed"}
"""Status of an `end` event -> state."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    uri: str
    state: State
    why: str
    """Who trains it, or how its last start ended."""
    config: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    last: Mapping[str, Any] | None = None
    """Last line of its metrics."""
    checkpoint: int = -1
    """Step of the newest checkpoint; -1: there is none."""
    bytes: Mapping[str, int] | None = None
    """Disk used, by folder of the run folder."""
    generation: int = 0
    """Of its newest lease; 0: it was never leased."""
    note: MlflowNote | None = None
    """Its MLflow run."""

    @property
    def total_steps(self) -> int | None:
        schedule = self.config.get("schedule")
        return schedule.get("total_steps") if isinstance(schedule, dict) else None

    @property
    def starts(self) -> int:
        return sum(event["kind"] in STARTS for event in self.events)

    @property
    def seen(self) -> str:
        """Time of its last sign: a line of metrics or an event; empty: there is none."""
        return max((line["time"] for line in (*self.events[-1:], self.last) if line), default="")

    @property
    def step(self) -> int:
        """Steps that it has done, as far as it has logged or saved; of a complete run those of its result."""
        logged = self.last["step"] if self.last and self.state != "complete" else 0
        return max(logged, self.checkpoint, 0)


def statuses_below(storage_uri: str) -> list[RunStatus]:
    """Every run folder directly below a folder or s3:// prefix, by name."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(status_of, run_folders_below(storage_uri)))


def run_folders_below(storage_uri: str) -> list[str]:
    """URIs of the run folders directly below a folder or s3:// prefix, by name."""
    folders = sorted(storage.list_folders(storage_uri))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        are_runs = pool.map(lambda uri: storage.exists(storage.join(uri, CONFIG)), folders)
        return [uri for uri, is_run in zip(folders, are_runs, strict=True) if is_run]


def status_of(uri: str) -> RunStatus:
    """The status of the run in a folder; one that cannot be read is `damaged`, with the reason."""
    try:
        return _status(uri)
    except ValueError as error:
        return RunStatus(uri, "damaged", " ".join(str(error).split()).replace(f"{uri}/", ""))


def _status(uri: str) -> RunStatus:
    folder, config = RunFolder(uri), read_run_config(uri)
    events, last = folder.read_events(), folder.last_metrics()
    checkpoint = newest_step(checkpoints_of(uri))
    generation, holder = newest(uri)
    state, why = _state(generation, holder, events, last)
    found = RunStatus(uri, state, why, config, events, last, checkpoint, _bytes(uri), generation, stored_note(uri))
    if state not in ("training", "starting") and is_over(config, uri, checkpoint):
        return replace(found, state="complete", why=why if PATIENCE in why else "")
    return found


def _state(
    generation: int, holder: Holder | None, events: Sequence[Mapping[str, Any]], last: Mapping[str, Any] | None
) -> tuple[State, str]:
    if holder and not holder.is_gone:
        return _held(holder, events, last)
    if holder and not holder.is_released:
        return "killed", f"{holder} is gone without a word"
    end = next((event for event in reversed(events) if event["kind"] == "end"), None)
    if end:
        return ENDS.get(end["status"], "stopped"), end.get("cause") or _failure(end, events)
    if generation and holder is None:
        return "damaged", "its newest lease cannot be read"
    if generation:
        return "stopped", "its start ended before the first step"
    return "new", "nothing has trained it yet"


def _held(holder: Holder, events: Sequence[Mapping[str, Any]], last: Mapping[str, Any] | None) -> tuple[State, str]:
    if not holder.is_here and (silent := _silence(holder)) > SILENT_SECONDS:
        return "silent", f"{holder} has given no sign for {ago(silent)}"
    if recent := wait_for_nodes(events):
        return "waiting", f"for nodes: room for {recent['room']} workers, at least {recent['min_workers']} must train"
    began = next((event["time"] for event in reversed(events) if event["kind"] in STARTS), "")
    is_training = bool(began and last and last["time"] > began >= holder.since[:19])
    return ("training" if is_training else "starting"), str(holder)


def _silence(holder: Holder) -> float:
    """Seconds since its last beat by its own clock."""
    begun = datetime.fromisoformat(holder.since)
    return (datetime.now(UTC) - begun).total_seconds() - holder.beat * BEAT_SECONDS


def _failure(end: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The last error before the end of a start that failed."""
    if end["status"] != "FAILED":
        return ""
    errors = [event["error"] for event in events if event["kind"] == "failure" and event["time"] <= end["time"]]
    return errors[-1] if errors else "no reason was written down"


def _bytes(uri: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in storage.list_files(uri, hidden=True):
        part, _, below = file.uri[len(uri) :].strip("/").partition("/")
        name = part if below else "other files"
        found[name] = found.get(name, 0) + file.bytes
    return found


EXITS: Mapping[State, int] = {"complete": 0, "training": 10, "starting": 10, "waiting": 10, "new": 10}
EXITS |= {"paused": 75, "stopped": 75, "killed": 75, "failed": 1, "silent": 1, "damaged": 1}
"""Exit codes of `tips-ray runs status`: done; under way; the same command goes on; a person must look."""
URGENCY = (0, 10, 75, 1)


def exit_code(statuses: Iterable[RunStatus]) -> int:
    """The most urgent exit code of some runs; 0 where there are none."""
    return max((EXITS[one.state] for one in statuses), key=URGENCY.index, default=0)


def as_json(one: RunStatus) -> dict[str, Any]:
    """What `--json` prints of a run; numbers that are not finite are null, `checkpoint` is -1 where there is none."""
    found = {name: getattr(one, name) for name in ("uri", "state", "why", "step", "total_steps", "checkpoint", "seen")}
    metrics = {name: value for name, value in (one.last or {}).items() if name not in ("step", "time")}
    found |= {"starts": one.starts, "bytes": sum((one.bytes or {}).values())}
    return {**found, "metrics": {name: None if isnan(value) else value for name, value in metrics.items()}}


def status_line(one: RunStatus) -> str:
    """`state step/total uri why`: a line for scripts and for the eye."""
    return f"{one.state} {one.step}/{one.total_steps or '?'} {one.uri} {one.why}".rstrip()


def list_lines(storage_uri: str, statuses: Sequence[RunStatus]) -> Iterator[str]:
    """A table of all runs below a folder or s3:// prefix."""
    if not statuses:
        yield f"{storage_uri} holds no runs; give the storage of their configs"
        return
    heads = ("run", "state", "step", "checkpoint", "loss/total", "last sign", "disk", "why")
    yield table(heads, [_row(one) for one in statuses])


def _row(one: RunStatus) -> list[str]:
    saved = f"{one.checkpoint:,}" if one.checkpoint >= 0 else "none"
    loss = _number(one.last, "loss/total")
    return [one.uri, one.state, _steps(one), saved, loss, _sign(one), _disk(one), one.why[:WIDTH]]


def show_lines(one: RunStatus) -> Iterator[str]:
    """What is known of one run, a line for each kind."""
    uri, folder = one.uri, RunFolder(one.uri)
    yield f"run        {uri}"
    yield f"state      {one.state}{f': {one.why}' if one.why else ''}"
    if one.state == "damaged":
        return
    saved = f"newest checkpoint at {one.checkpoint:,}" if one.checkpoint >= 0 else "no checkpoint"
    yield f"step       {_steps(one)}; {saved}; last sign {_sign(one) or 'none'}"
    losses = [name for name in one.last or {} if name.startswith("loss/")]
    if losses:
        of = f"step {one.last['step']:,}: " if one.last and one.last["step"] != one.step else ""
        yield f"losses     {of}{', '.join(f'{name} {_number(one.last, name)}' for name in losses)}"
    for finding in findings_of(one.config, folder.sampled_metrics()):
        yield f"health     {finding.level:6}{finding.about}: {finding.seen}"
        if finding.cure:
            yield f"           try   {finding.cure}"
    if speed := (one.last or {}).get("images_per_second"):
        yield f"speed      {speed:,.0f} images/s{_left(one, speed)}"
    if evaluated := in_words(one.config, uri):
        yield f"evaluated  {evaluated}"
    yield f"starts     {one.starts}{_changes(one.events)}"
    if rejects := folder.read_rejects():
        yield f"bad rows   {len(rejects)}; {folder.described_rejects()}"
    parts = sorted((one.bytes or {}).items(), key=lambda item: -item[1])
    yield f"disk       {_disk(one)}: {', '.join(f'{name} {bytes_text(size)}' for name, size in parts[:SHOWN])}"
    yield f"next       {NEXT[one.state].format(uri=uri)}"


def _steps(one: RunStatus) -> str:
    return f"{one.step:,}" + (f" of {one.total_steps:,}" if one.total_steps else "")


def _number(line: Mapping[str, Any] | None, name: str) -> str:
    value = line.get(name) if line else None
    return "" if value is None else f"{value:.4g}"


def _sign(one: RunStatus) -> str:
    if not one.seen:
        return ""
    return f"{ago((datetime.now(UTC) - datetime.fromisoformat(one.seen).replace(tzinfo=UTC)).total_seconds())} ago"


def _disk(one: RunStatus) -> str:
    return bytes_text(sum(one.bytes.values())) if one.bytes else ""


def _left(one: RunStatus, images_per_second: float) -> str:
    """Time left at this speed, of a run that trains."""
    if one.state != "training" or not one.total_steps:
        return ""
    images = (one.total_steps - one.step) * one.config.get("global_batch_images", 0)
    return f", about {ago(images / images_per_second)} left"


def _changes(events: Sequence[Mapping[str, Any]]) -> str:
    """What the changes of workers and restarts have cost."""
    changes = [event for event in events if event["kind"] == "change"]
    if not changes:
        return ""
    again, lost = (sum(event[key] for event in changes) for key in ("steps_recomputed", "seconds_lost"))
    return f"; {len(changes)} of them went on, with {again:,} steps again and {ago(lost)} lost"
