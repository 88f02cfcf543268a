"""Several servers behind one address, on Ray Serve: a world in each, restarted where they die.

A client's line goes to whichever replica is free; its session is on disk (`keep`), so after a cut any of them goes on
with it. Ray has the address, so what `server.py` limits beside the application is Ray's business here.
"""

import logging
from types import TracebackType
from typing import Any, Self

from sanawm_env.envs.config import EnvConfig
from sanawm_env.serving.app import make_app
from sanawm_env.serving.keep import Keep
from sanawm_env.serving.service import ServerLimits, Service

try:
    import ray
    from ray import serve
except ImportError as error:
    raise ImportError(f'Replicas need Ray Serve: pip install "sanawm-env[serve,replicas]" ({error}).') from error

NAME = "sanawm"
SPARE = 8  # requests at once, beside one for each session


class Replicas:
    """Serves until `close`. count: of replicas, each with limits of its own. keep: a folder that all of them reach. A
    world on a GPU takes one for each. A context manager."""

    def __init__(
        self,
        config: EnvConfig,
        limits: ServerLimits,
        keep: Keep,
        count: int,
        host: str,
        port: int,
        token: str | None = None,
    ):
        self.url = f"ws://{host}:{port}"

        def build() -> Any:
            return make_app(Service(config, limits, Keep(keep.folder, keep.every)), token)

        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        deployment: Any = serve.deployment(
            num_replicas=count,
            max_ongoing_requests=limits.sessions + SPARE,
            ray_actor_options={"num_cpus": 0 if config.device == "cpu" else 1, "num_gpus": int(config.device != "cpu")},
        )
        serve.run(deployment(serve.ingress(build)()).bind(), name=NAME, route_prefix="/")

    def close(self) -> None:
        """End all replicas; sessions stay on disk."""
        serve.shutdown()
        if self._ours:
            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
