"""The name of this machine, for tables of measurements."""

import platform

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
