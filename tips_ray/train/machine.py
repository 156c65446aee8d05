"""What a run ran on, for its events and its report."""

import os
import platform
import socket
from importlib.metadata import version
from typing import Any

import torch

from tips_ray.distributed import gather_objects

PACKAGES = {"torch": "torch", "ray": "ray", "tips_ray": "tips-ray"}


def machine(device: torch.device) -> dict[str, Any]:
    """Hosts of all ranks together with their cores, memory and accelerators; every rank calls this."""
    hosts = {host["name"]: host for host in gather_objects(_host(device))}.values()
    accelerators = sorted({name for host in hosts for name in host["accelerators"]})
    return {
        "hosts": len(hosts),
        "cores": sum(host["cores"] for host in hosts),
        "memory": f"{sum(host['memory_bytes'] for host in hosts) / 2**30:.0f} GiB",
        "accelerators": ", ".join(accelerators) or "none",
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(package) for name, package in PACKAGES.items()}}


def _host(device: torch.device) -> dict[str, Any]:
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"name": socket.gethostname(), "cores": cores, "memory_bytes": memory_bytes, "accelerators": names}
