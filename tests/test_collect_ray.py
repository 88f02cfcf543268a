"""Collecting on Ray: two workers, one of them killed on purpose, and no episode lost or doubled."""

import os
import signal
import threading
import time

import psutil
import pytest
from sanawm_env.agents.collect import collect
from sanawm_env.agents.collection import Collection
from sanawm_env.agents.scripts import Policy

from sanawm_env.cli import main
from sanawm_env.recording.dataset import Dataset
from tests.test_cli import refused
from tests.test_collect import QUIET, small, whole  # noqa: F401
from tests.test_episode import world  # noqa: F401

pytestmark = pytest.mark.slow

collect_ray = pytest.importorskip("sanawm_env.agents.collect_ray", reason="ray is not installed", exc_type=ImportError)
ray = collect_ray.ray


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine with two cores."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::Collector")]


def test_a_killed_worker_is_replaced_and_its_jobs_are_done(cluster, small, tmp_path):  # noqa: F811
    out, killed = tmp_path / "d", []

    def kill() -> None:
        while sum(1 for _ in out.glob("shard-*/episode-?????")) < 4:
            time.sleep(0.01)
        killed.append(next(p for p in workers() if p.cmdline()[0] == "ray::Collector.work"))
        os.kill(killed[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    collection = small(seeds=5, chunks=4)
    dataset = collect(collection, out, console=QUIET, run=collect_ray.Cluster(workers=2))
    killer.join()
    assert killed
    assert len(whole(out)) == len(dataset.finished()) == 30
    assert len(dataset.shards) == 3  # two workers and a replacement
    again = collect(collection, out, console=QUIET, run=collect_ray.Cluster(workers=2))
    assert len(again.rows()) == 30


def test_what_a_job_raises_is_raised_here(cluster, small, tmp_path):  # noqa: F811
    wrong = Policy("wrong", lambda env, rng: iter([[1.0, 2.0]]))
    collection = small(cameras=["walk", wrong], action_mode="twist")
    with pytest.raises(ValueError, match="six finite numbers"):
        collect(collection, tmp_path / "d", console=QUIET, run=collect_ray.Cluster(workers=1))
    whole(tmp_path / "d")


def test_workers_and_gpus_that_are_not_there_are_refused(cluster, small, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.yaml").write_text("chunks: 1\nscenes: [{sample: 1}]")
    assert "at least one worker" in refused(
        capsys, "collect", tmp_path / "c.yaml", "--out", tmp_path / "d", "--ray", "--workers", 0
    )
    with pytest.raises(ValueError, match="no GPU"):
        list(collect_ray.Cluster()(Collection(device="cuda"), [], Dataset(tmp_path, {})))


def test_the_command_collects_on_ray(cluster, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("chunks: 1\nscenes: [{sample: 2}]\nbatch: 1")
    main(["collect", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "d"), "--ray"])
    assert "2 episodes" in capsys.readouterr().out
    assert len(whole(tmp_path / "d")) == 2
