"""Metrics of a run on their way to MLflow: sent in the background and in batches, from any process."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from tips_ray.runs.mlflow_access import mlflow_client, one_line
from tips_ray.runs.mlflow_catch_up import MOST_METRICS

logger = logging.getLogger(__name__)
SEND_EVERY_SECONDS = 5.0
MOST_WAITING = 200_000
"""Metrics that a process keeps while MLflow is away: about 50 MB."""
CLOSE_SECONDS = 10.0
"""Longest wait for MLflow at the end of a worker; what was not sent then is sent from the run folder."""


class Point(NamedTuple):
    """Arguments of MLflow's `Metric`, which is imported by the sending thread alone: that takes seconds."""

    key: str
    value: float
    timestamp: int
    step: int


class TrackingHandle:
    """Adds metrics to a run. No call but `close` ever waits for MLflow, and `close` not for long. Picklable."""

    def __init__(self, uri: str | None, run_id: str) -> None:
        """`uri`: of MLflow; None: nothing is tracked."""
        self.uri, self.run_id = uri, run_id
        self._lock = threading.Lock()
        self._waiting: list[Point] = []
        self._sender: threading.Thread | None = None
        self._hurry = threading.Event()
        self._is_closed = self._is_behind = False

    def __reduce__(self) -> tuple:
        return TrackingHandle, (self.uri, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics; slashes in names make sections in MLflow's pages."""
        if self.uri is None:
            return
        now_ms = int(time.time() * 1000)
        points = [Point(name, float(value), now_ms, step) for name, value in metrics.items()]
        with self._lock:
            self._waiting += points
            if self._sender is None and not self._is_closed:
                self._sender = threading.Thread(target=self._send_until_closed, name="mlflow", daemon=True)
                self._sender.start()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send all that waits and end the thread; gives up after so many seconds."""
        with self._lock:
            self._is_closed, sender = True, self._sender
        self._hurry.set()
        if sender is not None:
            sender.join(seconds)

    def _send_until_closed(self) -> None:
        while True:
            self._hurry.wait(SEND_EVERY_SECONDS)
            is_last = self._is_closed
            self._send()
            if is_last:
                return

    def _send(self) -> None:
        try:
            while points := self._waiting[:MOST_METRICS]:
                self._send_points(points)
                with self._lock:
                    del self._waiting[: len(points)]
        except Exception as error:  # of MLflow, its database or its server: training goes on, whatever it is
            self._wait(error)
        else:
            self._tell_of_success()

    def _send_points(self, points: list[Point]) -> None:
        client = mlflow_client(self.uri)
        from mlflow.entities import Metric

        client.log_batch(self.run_id, metrics=[Metric(*point) for point in points])

    def _wait(self, error: Exception) -> None:
        """Say once that metrics wait, and keep the newest `MOST_WAITING` of them."""
        if not self._is_behind:
            logger.warning(
                "MLflow took no metrics, %d wait; training goes on, they are in the run folder and are sent once "
                "MLflow takes them: %s",
                len(self._waiting),
                one_line(error),
            )
        self._is_behind = True
        with self._lock:
            del self._waiting[: max(0, len(self._waiting) - MOST_WAITING)]

    def _tell_of_success(self) -> None:
        if self._is_behind:
            logger.warning("MLflow takes metrics again; those that waited are sent")
        self._is_behind = False
