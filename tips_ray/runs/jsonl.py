"""JSON lines of one kind in a folder of files, local or s3://. Each file has one writer; reading covers all files.

An *attempt* is one process that writes: each takes the next free number, so no object ever has two writers. Objects
cannot be appended to. So an attempt writes parts: the newest grows by being written anew, until `seal` begins another.
"""

import json
import logging
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby
from typing import Any

from tips_ray import storage

log = logging.getLogger(__name__)
TAIL_BYTES = 64 * 1024
"""More than any line has."""
WHOLE_BYTES = 1 << 20
"""Files of together at most so many bytes are read whole by `read_sample`."""
PLACE_BYTES = 16 * 1024
"""Bytes that `read_sample` reads at a place, to find a whole line."""
AT_ONCE = 16
"""Places or parts that are read at a time: on an object store each is a request."""
PART_BYTES = 1 << 20
"""A part that has so many bytes is written no more."""


class LineLog:
    """One writer's view; reading covers all writers. One thread may add lines while another one writes them."""

    def __init__(self, uri: str, stem: str, keys: tuple[str, ...], is_patient: bool = False) -> None:
        """
        Args:
            uri: folder of the files.
            stem: pattern of their names, of `attempt` and `step`.
            keys: every line has these.
            is_patient: lines wait for `flush` on a local disk too.
        """
        self.uri, self._keys, self._stem = uri, keys, stem
        self._is_local = storage.is_local(uri)
        self._is_patient = is_patient or not self._is_local
        self._waiting: list[str] = []
        self._part = ""  # an object store's newest part, as it was written
        self._writing = threading.Lock()
        self._known: dict[str, tuple[str, list[dict[str, Any]]]] = {}  # parts of an object store by ETag, once read
        self.start_attempt(first_step=0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_writing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _writing=threading.Lock())

    def start_attempt(self, first_step: int) -> None:
        """Write what waits; later lines belong to a new attempt, which has restored `first_step`."""
        self.flush()
        self._first_step, self._parts, self._part = first_step, 0, ""
        self._name: str | None = None  # of this attempt's files, once it has one

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines. They reach a local file at once unless the log is patient; elsewhere they wait for `flush`."""
        self._waiting += [json.dumps(line, default=_plain) + "\n" for line in lines]
        if not self._is_patient:
            self.flush_if_there()

    def flush_if_there(self) -> None:
        """As `flush`, but while the storage does not answer the lines wait for the next call.

        Raises:
            StorageError: the failure will not pass by itself.
        """
        try:
            self.flush()
        except storage.StorageError as error:
            if not error.may_pass:
                raise
            log.warning("%s waits: %s", self.uri, error)

    def flush(self) -> None:
        """Write what waits; on an object store as the end of the newest part.

        Raises:
            StorageError: the write fails; the lines wait for the next call.
        """
        with self._writing:
            count = len(self._waiting)  # more may come meanwhile
            if count == 0:
                return
            text = "".join(self._waiting[:count])
            if self._name is None:
                self._name = self._create(text)
            elif self._is_local:
                _append(self._uri_of(self._name), text)
            else:
                storage.write_text(self._uri_of(self._name), self._part + text)
            del self._waiting[:count]
            self._part += "" if self._is_local else text
            if len(self._part) > PART_BYTES:
                self._begin_part()

    def seal(self) -> None:
        """Write what waits; later lines come into another part, so that this one is complete. Raises as `flush`."""
        self.flush()
        with self._writing:
            if self._part:
                self._begin_part()

    def _begin_part(self) -> None:
        self._parts, self._part = self._parts + 1, ""

    def read(self) -> list[dict[str, Any]]:
        """Lines of all files, by their names."""
        names = sorted(storage.list_names(self.uri))
        return [line for lines in self._lines_of(names) for line in lines]

    def read_attempts(self, steps_done: int) -> list[dict[str, Any]]:
        """Lines of all attempts in order, without those that a restart from an earlier step has replaced.

        A line counts when its step plus `steps_done` is at most the step that each later attempt restored.
        """
        lines: list[dict[str, Any]] = []
        names = sorted(storage.list_names(self.uri), key=_attempt_and_step)
        for (_, first_step), parts in groupby(names, _attempt_and_step):
            lines = [line for line in lines if line["step"] + steps_done <= first_step]
            lines += [line for found in self._lines_of(sorted(parts)) for line in found]
        return lines

    def read_last(self) -> dict[str, Any] | None:
        """The last line of the newest attempt that has one; reads only the end of its file."""
        for name in sorted(storage.list_names(self.uri), key=lambda name: (_attempt(name), name), reverse=True):
            uri = storage.join(self.uri, name)
            whole = storage.read_bytes(uri, max(storage.stat(uri).bytes - TAIL_BYTES, 0)).split(b"\n")[:-1]
            if whole:
                return self._parsed(whole[-1], f"the last line of {uri}")
        return None

    def read_sample(self, places: int = 128) -> list[dict[str, Any]]:
        """As `read_attempts` of completed steps; of large files only one line at each of `places` even places."""
        sizes = self._sizes()
        if sum(sizes.values()) <= WHOLE_BYTES:
            return self.read_attempts(steps_done=0)
        names, starts = zip(*_even_places(sizes, places), strict=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            lines = list(pool.map(self._line_at, names, starts))
        attempts = {_attempt_and_step(name) for name in sizes}
        found = [(_attempt_and_step(name), line) for name, line in zip(names, lines, strict=True) if line]
        kept = {line["step"]: line for attempt, line in found if not _is_replaced(line["step"], attempt, attempts)}
        return [kept[step] for step in sorted(kept)]

    def _sizes(self) -> dict[str, int]:
        """Name -> bytes of all files, oldest attempt first."""
        names = sorted(storage.list_names(self.uri), key=lambda name: (_attempt_and_step(name), name))
        files = storage.list_files(self.uri, hidden=True) if names else []
        sizes = {file.uri.rpartition("/")[2]: file.bytes for file in files}
        return {name: sizes[name] for name in names}

    def _line_at(self, name: str, start: int) -> dict[str, Any] | None:
        """The first whole line from byte `start` on; None where none is near."""
        uri = storage.join(self.uri, name)
        parts = storage.read_bytes(uri, start, start + PLACE_BYTES).split(b"\n")
        whole = parts[1 if start else 0 : -1]
        return self._parsed(whole[0], f"the line after byte {start} of {uri}") if whole else None

    def _lines_of(self, names: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Lines of each file. On an object store, parts that are as when they were last read are not read again."""
        if self._is_local or not names:
            return [self._lines(name) for name in names]
        etags = {file.uri.rpartition("/")[2]: file.etag for file in storage.list_files(self.uri, hidden=True)}
        news = [name for name in names if name not in self._known or self._known[name][0] != etags.get(name)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._known |= {
                name: (etags.get(name, ""), lines)
                for name, lines in zip(news, pool.map(self._lines, news), strict=True)
            }
        return [self._known[name][1] for name in names]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines only: a crash while writing leaves a last one without its newline."""
        whole = storage.read_bytes(storage.join(self.uri, name)).split(b"\n")[:-1]
        return [self._parsed(line, f"{self.uri}/{name}, line {number}") for number, line in enumerate(whole, start=1)]

    def _parsed(self, line: bytes, place: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
            lacking = [key for key in self._keys if key not in found]
            reason = f"it lacks {', '.join(lacking)}" if lacking else ""
        except (ValueError, TypeError) as error:
            found, reason = {}, str(error)
        if reason or not isinstance(found, dict):
            raise ValueError(
                f"{place} is no line that a run has written ({reason or 'it holds no fields'}): restore the file from "
                "a copy, or delete the line"
            )
        return found

    def _create(self, text: str) -> str:
        """Write the first file under the next number that no other writer has."""
        attempt = max(map(_attempt, storage.list_names(self.uri)), default=0)
        while True:
            attempt += 1
            name = self._stem.format(attempt=attempt, step=self._first_step)
            if storage.create_text(self._uri_of(name), text):
                return name

    def _uri_of(self, name: str) -> str:
        """URI of the local file, or of the next part on an object store."""
        return storage.join(self.uri, name + (".jsonl" if self._is_local else f".part-{self._parts:06d}.jsonl"))


def _append(path: str, text: str) -> None:
    """Append all of `text` or nothing: otherwise the next try would follow a line that a full disk has cut.

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


def _even_places(sizes: Mapping[str, int], places: int) -> list[tuple[str, int]]:
    """File and byte of evenly spaced places in all files, one after the other."""
    ends = list(accumulate(sizes.values()))
    starts = [ends[-1] * place // places for place in range(places)]
    files = [(list(sizes)[index], start - ends[index]) for start in starts for index in [bisect_right(ends, start)]]
    return [(name, sizes[name] + before_end) for name, before_end in files]


def _is_replaced(step: int, attempt: tuple[int, int], attempts: Iterable[tuple[int, int]]) -> bool:
    """A later attempt has restored an earlier step."""
    return any(later > attempt and step > later[1] for later in attempts)


def _plain(value: Any) -> Any:
    """Values that json does not know: a numpy or torch scalar as its number, the rest as text."""
    return value.item() if hasattr(value, "item") else str(value)
