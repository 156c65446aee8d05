"""Use of processors, memory, disk, network and GPUs of a node, measured by MLflow's monitors under MLflow's names.

MLflow's own thread is not used: it asks the server for the run's status at each sample, and ends for ever at the first
failure.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from tips_ray.runs.mlflow_handle import TrackingHandle

logger = logging.getLogger(__name__)
SAMPLE_SECONDS = 10.0


class SystemMetrics:
    """Adds samples to a handle from a thread that ends with `close`, or with the process."""

    def __init__(self, handle: TrackingHandle, node: int | None, step: Callable[[], int]) -> None:
        """
        Args:
            handle: of the run; closed by `close`.
            node: number of this node; None: the run has only one.
            step: gives the step that training has reached, at which a sample is shown beside the losses.
        """
        self._handle, self._step = handle, step
        self._prefix = "system/" if node is None else f"system/node_{node}/"
        self._is_over = threading.Event()
        threading.Thread(target=self._measure, name="system metrics", daemon=True).start()

    def close(self) -> None:
        """End measuring."""
        self._is_over.set()

    def _measure(self) -> None:
        try:
            monitors = _monitors()
            self._sample(monitors)  # a processor's use is measured since the sample before
            while not self._is_over.wait(SAMPLE_SECONDS):
                self._handle.log(self._step(), self._sample(monitors))
        except Exception as error:  # of MLflow's monitors, the system or a driver: training goes on
            logger.info("the use of this machine is not measured (system metrics): %s", error)

    def _sample(self, monitors: list[Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{self._prefix}{name}": value for name, value in found.items()}


def _monitors() -> list[Any]:
    """MLflow's monitors of what this machine has."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors.append(GPUMonitor())
    except Exception:  # no GPU, no driver, or no nvidia-ml-py
        pass
    return monitors
