"""Caption coordinator of training and captioning beside it: how far each may go, how long each waited. An actor."""

import asyncio
import time
from contextlib import suppress
from typing import NamedTuple


class News(NamedTuple):
    """State of captioning, for readers that wait for captions."""

    made: int
    """Chunks captioned so far."""
    failure: str
    """Why no more captions will be written; empty: more will be."""


FINISHED = "captioning is done with what was missing when the run began; the same command again makes the rest"


class CaptionCoordinator:
    """How far training is, and how far captioning and the reading of rows may therefore go."""

    def __init__(self, lead_windows: int) -> None:
        self.lead_windows, self._wanted, self._moved = lead_windows, 0, asyncio.Event()
        self._made, self._failure, self._is_over = 0, "", False
        self._waited_seconds, self._held_seconds = 0.0, 0.0
        self._captioned_window: int | None = None

    async def want(self, window: int) -> None:
        """The next steps of training end in this window."""
        self._wanted = max(self._wanted, window)
        self._move()

    async def admit(self, window: int) -> bool:
        """Return True once a window is due, False once captioning is over."""
        while window > self._wanted + self.lead_windows and not self._is_over:
            await self._moved.wait()
        return not self._is_over

    async def end(self, failure: str = "") -> None:
        """End captioning: the run is over, or (with a reason) captioning failed."""
        self._is_over, self._failure = True, failure
        self._move()

    async def finish(self) -> None:
        """All that was missing when the run began is captioned. No further captions will be written; waiters fail."""
        self._failure = self._failure or FINISHED
        self._move()

    async def is_over(self) -> bool:
        """No more captions are needed."""
        return self._is_over

    async def add_made(self, chunks: int) -> None:
        """Count `chunks` more chunks that have their captions."""
        self._made += chunks

    async def reached(self, window: int) -> None:
        """Captioning, which goes by the order of the samples, has come to this window."""
        self._captioned_window = window

    async def windows_ahead(self) -> int | None:
        """Windows from what training needs next to what was captioned last, below 0 where training waits.

        None before the first captions of this start, and when all are made.
        """
        if self._captioned_window is None or self._failure or self._is_over:
            return None
        return self._captioned_window - self._wanted

    async def news(self, wait_seconds: float = 0.0) -> News:
        """The news after `wait_seconds`, or as soon as no more captions will be written."""
        deadline = time.monotonic() + wait_seconds
        while not self._failure and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), left)
        return News(self._made, self._failure)

    async def add_waited(self, seconds: float) -> None:
        """Add time that training waited for rows."""
        self._waited_seconds += seconds

    async def add_held(self, seconds: float) -> None:
        """Add time that a task that reads for captioning waited until its window was due."""
        self._held_seconds += seconds

    async def waits(self) -> tuple[float, float]:
        """Seconds that training waited for rows, and that all read tasks of captioning waited for training."""
        return self._waited_seconds, self._held_seconds

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
