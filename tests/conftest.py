"""Where there is no GPU, Triton kernels run in Triton's interpreter: decided before triton is first imported. Where
tests run side by side, torch has one thread in each process. Tables are as wide as they need, whatever the terminal.
The longest files begin first, by what they take, so that what is left for the end is short."""

import gc
import os

os.environ["COLUMNS"] = "300"
if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all tests are collected: a fifth of what imports take
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the processor to other tests

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Commands that set how many threads torch takes leave it so: each test begins with as many as the first."""
    before = torch.get_num_threads()
    try:
        return (yield)
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        if nextitem is not None and nextitem.path != item.path:
            let_be()


def let_be():
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


LONGEST = (
    "test_cli", "test_play", "test_collect", "test_ray", "test_kernels_triton", "test_training", "test_streaming",
    "test_memory", "test_nano", "test_serving", "test_docs", "test_ablation", "test_saved", "test_tasks",
    "test_house", "test_learning", "test_world_triton", "test_rooms", "test_env", "test_notebook",
    "test_remote_learning", "test_doctor", "test_fetch", "test_bars", "test_dit", "test_gpu_check",
    "test_isolation", "test_integrations", "test_score", "test_lerobot", "test_agents", "test_torch_render",
    "test_vector", "test_evaluate", "test_world", "test_signals", "test_recording", "test_compare", "test_render",
    "test_dataset", "test_minari", "test_probes", "test_places",
    "test_kernels_cpu", "test_episode", "test_session", "test_train_ppo",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish():
    let_be()
