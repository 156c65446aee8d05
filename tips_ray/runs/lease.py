"""One start at a time trains a run: it holds the newest `lease/<generation>.json` of the run folder (docs/formats.md).

A start takes the next generation by a conditional write and changes its file every `BEAT_SECONDS`. Another start may
take the run over when the holder has released it, when the holder's process is gone from this machine, or when nothing
has changed for `STILL_SECONDS` by the other start's own clock. Clocks of two machines are never compared.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tips_ray import storage
from tips_ray.console import tell
from tips_ray.runs.folder import RunFolder

BEAT_SECONDS, STILL_SECONDS, POLL_SECONDS = 10.0, 60.0, 2.0
SETTLE_SECONDS = 2.0
"""Wait before a lease on an object store is read again: some stores let several conditional writers win."""
log = logging.getLogger(__name__)


class RunIsTrainedError(ValueError):
    """Another start trains the run."""

    exit_code = 3


class LeaseLostError(storage.StorageError):
    """Another start has taken the run over; this one must write no checkpoint any more."""


@dataclass(frozen=True)
class Holder:
    """The start that holds a lease, as its file says."""

    token: str
    """Random; tells two starts apart."""
    place: str
    """Host, boot and process namespace: only there does `process` mean anything."""
    host: str
    process: int
    process_start: str
    since: str
    beat: int = 0
    is_released: bool = False

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """It runs, or ran, where this process can look for it."""
        return self.place == _place()

    @property
    def is_alive(self) -> bool:
        """Its process exists; ask only where it `is_here`."""
        return _process_start(self.process) == self.process_start

    @property
    def is_gone(self) -> bool:
        """It has released the lease, or its process has ended on this machine; of other machines nothing is known."""
        return self.is_released or (self.is_here and not self.is_alive)


@contextmanager
def leased(run_uri: str, leaves: Holder | None = None) -> Iterator[int]:
    """Hold the lease of a run during the block; yields the generation.

    Args:
        run_uri: the run folder.
        leaves: holder that the lease names after the block; None: this start, which has released it.

    Raises:
        RunIsTrainedError: another start trains the run.
    """
    generation, own = take(run_uri)
    is_over = threading.Event()
    beating = threading.Thread(target=_beat, args=(run_uri, generation, own, is_over), name="lease", daemon=True)
    beating.start()
    try:
        yield generation
    finally:
        is_over.set()
        beating.join()
        with suppress(storage.StorageError):  # the process ends, or is silent for a minute: then the lease is free too
            _write(run_uri, generation, leaves or replace(own, is_released=True))


@contextmanager
def borrowed(run_uri: str) -> Iterator[None]:
    """Hold a lease that nobody holds, so that no start takes it; afterwards it names the last holder as before.

    Raises:
        RunIsTrainedError: as `require_free`, or another start takes the run at this moment.
    """
    with leased(run_uri, require_free(run_uri)):
        yield


def require_free(run_uri: str) -> Holder | None:
    """The last holder of a lease that nobody holds; None if the run was never leased. Does not wait.

    Raises:
        RunIsTrainedError: its holder lives, or is on another machine and may live.
    """
    generation, holder = newest(run_uri)
    if generation and not (holder and holder.is_gone):
        whom = holder or "another start, whose lease is damaged"
        raise RunIsTrainedError(f"{run_uri} is held by {whom}; if nothing trains it, tips-ray runs unlock frees it")
    return holder


def old_leases(run_uri: str) -> list[str]:
    """URIs of the leases of earlier starts."""
    names = [name for name in storage.list_names(_folder(run_uri)) if name.removesuffix(".json").isdigit()]
    return [storage.join(_folder(run_uri), name) for name in sorted(names)[:-1]]


def take(run_uri: str) -> tuple[int, Holder]:
    """Take the next generation of the lease once the newest is free; waits up to a minute for a silent holder.

    Raises:
        RunIsTrainedError: another start trains the run.
    """
    own = _own()
    while True:
        generation, holder = newest(run_uri)
        if generation and not _is_free(run_uri, generation, holder):
            raise RunIsTrainedError(
                f"{run_uri} is being trained by {holder or 'another start'}: wait for it, end it with tips-ray runs "
                "stop, or give this run another name; if nothing trains it, tips-ray runs unlock frees it"
            )
        if _is_taken(run_uri, generation + 1, own):
            return generation + 1, own


def newest(run_uri: str) -> tuple[int, Holder | None]:
    """The newest generation, 0 if the run was never leased, and its holder, None where the file is no lease."""
    names = [name.removesuffix(".json") for name in storage.list_names(_folder(run_uri))]
    generation = max((int(name) for name in names if name.isdigit()), default=0)
    return generation, _holder(_content(run_uri, generation)) if generation else None


def require_newest(run_uri: str, generation: int) -> None:
    """
    Raises:
        LeaseLostError: a start with a newer generation has taken the run over.
    """
    found, holder = newest(run_uri)
    if found > generation:
        raise LeaseLostError(
            f"{run_uri} was taken over by {holder or 'another start'}: this start was silent for a minute or was "
            "unlocked, and writes no checkpoint any more"
        )


def unlock(run_uri: str) -> str:
    """Free a run whose holder is not to be waited for, and keep it from writing checkpoints; returns what was done.

    Raises:
        ValueError: the holder's process is alive on this machine.
        NotFoundError: there is no lease.
    """
    generation, holder = newest(run_uri)
    if not generation:
        raise storage.NotFoundError(f"{run_uri} has no lease: nothing has trained it, or the URI is no run folder")
    if holder and holder.is_released:
        return f"{run_uri} is free: {holder} has released it"
    if holder and holder.is_here and holder.is_alive:
        raise ValueError(f"{run_uri} is being trained by {holder}: end it with tips-ray runs stop, or kill it")
    storage.create_text(_uri(run_uri, generation + 1), json.dumps(asdict(replace(_own(), is_released=True))))
    RunFolder(run_uri).try_event("end", None, status="KILLED", cause=f"unlocked: {holder or 'its holder'} gave no sign")
    return f"{run_uri} is free: {holder or 'its holder'} can write no checkpoint any more"


def _is_free(run_uri: str, generation: int, holder: Holder | None) -> bool:
    if holder and (holder.is_released or holder.is_here):
        return holder.is_gone
    who = holder or "another start"
    tell("lease", f"{'lease':10} {who} trained this run last: waiting up to a minute for a sign of it")
    before, deadline = _content(run_uri, generation), time.monotonic() + STILL_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if (now := _content(run_uri, generation)) != before:
            found = _holder(now)
            return bool(found and found.is_released)
    return True


def _is_taken(run_uri: str, generation: int, own: Holder) -> bool:
    """Write the lease; False if another start has it."""
    if not storage.create_text(_uri(run_uri, generation), json.dumps(asdict(own))):
        return False
    if storage.is_local(storage.resolved(run_uri)):
        return True
    time.sleep(SETTLE_SECONDS)
    found = _holder(_content(run_uri, generation))
    return found is not None and found.token == own.token


def _beat(run_uri: str, generation: int, own: Holder, is_over: threading.Event) -> None:
    while not is_over.wait(BEAT_SECONDS):
        own = replace(own, beat=own.beat + 1)
        try:
            _write(run_uri, generation, own)
        except storage.StorageError as error:
            log.warning("the lease of %s is not renewed: %s", run_uri, error)


def _write(run_uri: str, generation: int, holder: Holder) -> None:
    storage.write_text(_uri(run_uri, generation), json.dumps(asdict(holder)))


def _folder(run_uri: str) -> str:
    return storage.join(run_uri, "lease")


def _uri(run_uri: str, generation: int) -> str:
    return storage.join(_folder(run_uri), f"{generation:08d}.json")


def _content(run_uri: str, generation: int) -> bytes:
    return storage.read_bytes(_uri(run_uri, generation))


def _holder(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # cut off by a kill, or by hand
        return None


def _own() -> Holder:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(uuid.uuid4().hex, _place(), socket.gethostname(), os.getpid(), _process_start(os.getpid()), since)


def _place() -> str:
    """Containers of one machine share its boot id, and may have one host name; their process namespaces differ."""
    boot = _or_empty(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    namespace = _or_empty(lambda: os.readlink("/proc/self/ns/pid"))
    return f"{socket.gethostname()} {boot} {namespace}"


def _process_start(process: int) -> str:
    """When a process of this machine began, since ids are used again; empty if there is none."""
    if Path("/proc/self/stat").exists():
        return _or_empty(lambda: Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    return "unknown"


def _or_empty(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:  # not Linux, or the process has ended
        return ""
