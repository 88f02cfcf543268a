"""The name of this machine, for tables of measurements, and the free space of its disks."""

import platform
import shutil
from pathlib import Path
from typing import Any

import torch


def machine_name(device: torch.device) -> str:
    """The name of the GPU or, for other devices, of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def disk_usage(folder: Path) -> Any:
    """As `shutil.disk_usage`, for a folder that may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder)
