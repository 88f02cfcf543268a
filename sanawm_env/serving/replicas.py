"""Several servers behind one address, on Ray Serve, with a world in each. Ray restarts those that die.

A client is connected to any free replica. Its session is on disk (`keep`), so after a lost connection any replica can
continue it. Ray owns the port, so the limits on connections of `server.py` do not apply.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sanawm_env.envs.config import EnvConfig
from sanawm_env.serving.app import make_app
from sanawm_env.serving.keep import Keep
from sanawm_env.serving.limits import ServerLimits
from sanawm_env.serving.service import Service
from sanawm_env.system.packages import needing

with needing("Replicas need Ray Serve", "serve,replicas"):
    import ray
    from ray import serve

NAME = "sanawm"
SPARE = 8  # requests at once, beside one for each session


@contextmanager
def replicas(
    config: EnvConfig,
    limits: ServerLimits,
    keep: Keep,
    count: int,
    host: str,
    port: int,
    token: str | None = None,
) -> Generator[str]:
    """Run servers until the block ends; sessions stay on disk. They run on the Ray cluster that this process belongs
    to, or on this machine. On GPUs, each replica takes one.

    Args:
        config: of the environment.
        limits: of each replica.
        keep: a folder that all replicas reach.
        count: how many replicas.
        host: address to listen on.
        port: of that address.
        token: that clients must show, None for none.

    Yields:
        The URL for clients.
    """

    def build() -> Any:
        return make_app(Service(config, limits, Keep(keep.folder, keep.every)), token)

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        on_gpu = config.device != "cpu"
        deployment: Any = serve.deployment(
            num_replicas=count,
            max_ongoing_requests=limits.sessions + SPARE,
            ray_actor_options={"num_cpus": int(on_gpu), "num_gpus": int(on_gpu)},
        )
        serve.run(deployment(serve.ingress(build)()).bind(), name=NAME, route_prefix="/")
        yield f"ws://{host}:{port}"
    finally:
        serve.shutdown()
        if ours:
            ray.shutdown()
