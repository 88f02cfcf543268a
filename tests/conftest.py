"""Where there is no GPU, Triton kernels run in Triton's interpreter: decided before triton is first imported. Where
tests run side by side, torch has one thread in each process. Tables are as wide as they need, whatever the terminal.
The longest files begin first, so that none of them is left for the end."""

import os

os.environ["COLUMNS"] = "300"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Commands that set how many threads torch takes leave it so: each test begins with as many as the first."""
    before = torch.get_num_threads()
    try:
        return (yield)
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


LONGEST = "test_cli", "test_collect", "test_gpu_check", "test_kernels_triton", "test_play", "test_training"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)
