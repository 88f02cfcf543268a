"""`sanawm serve`: serve environments to clients on other machines or in other processes."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from sanawm_env.cli.arguments import LoadedWorld
from sanawm_env.cli.output import say
from sanawm_env.serving.limits import ServerLimits
from sanawm_env.system.addresses import is_loopback
from sanawm_env.system.files import check_choice, check_count, explaining, read_text

MAX_TOKEN_BYTES = 2**12


@dataclass(frozen=True, kw_only=True)
class Serve(LoadedWorld):
    """Serve one world to many clients, each with its own environments; see docs/serve.md."""

    env: str = "SanaWM/Walk-v0"
    """Id of the environment."""
    obs_mode: str | None = None
    """Observation mode of clients that do not choose one; None for that of the id."""
    action_mode: str | None = None
    """Action mode; None for that of the id."""
    max_episode_chunks: int | None = None
    """Steps of an episode; None for those of the id."""
    scenes: Path | None = None
    """Folder of start images; None for the world's own."""
    threads: int | None = None
    """Threads of torch on the CPU; None as the world is loaded."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token."""
    port: int = 8765
    """Port to listen on; 0 for a free one."""
    token_file: Path | None = None
    """File whose first line is the token that clients must send; None for the environment variable SANAWM_TOKEN."""
    keep: Path | None = None
    """Folder where sessions are kept on disk, so that a restarted server continues them; None keeps none."""
    keep_every: int = 1
    """Every how many steps of a client its state is kept; the steps since are predicted again after a restart."""
    replicas: int = 1
    """Servers behind the address, on Ray Serve, which take over each other's sessions.
    More than 1 needs --keep and the extra "replicas"."""
    limits: tyro.conf.OmitArgPrefixes[ServerLimits] = field(default_factory=ServerLimits)

    def run(self) -> None:
        """Load the world, listen, and wait for Ctrl-C.

        Raises:
            ValueError: for options out of range, or an address that others reach without a token.
            TypeError: as the environment.
            ImportError: without the extra "serve".
            OSError: for a port in use or files that cannot be read.
        """
        from sanawm_env.system.packages import needing

        with needing("A server needs FastAPI, msgpack and uvicorn", "serve"):
            from sanawm_env.serving.keep import Keep
            from sanawm_env.serving.server import Server
            from sanawm_env.serving.service import Service
        check_count("--port", self.port, 0, 65535)
        token = self.token()
        if token is None and not is_loopback(self.host):
            raise ValueError(
                f"Whoever reaches {self.host} could use this server: give --token-file, or set SANAWM_TOKEN, or leave "
                "--host out and let clients come through a tunnel (ssh -L)."
            )
        check_count("--replicas", self.replicas, 1, 1024)
        self.limits.check()
        from sanawm_env.envs.config import EnvConfig

        config = EnvConfig.from_plain(self.settings())
        keep = None if self.keep is None else Keep(self.keep.absolute(), self.keep_every)
        with ExitStack() as stack:
            if self.replicas == 1:
                served = Server(Service(config, self.limits, keep), self.host, self.port, token)
                url = stack.enter_context(served).url
            elif keep is None or not self.port:
                raise ValueError("--replicas needs --keep, a folder that all of them reach, and a --port above zero.")
            else:
                from sanawm_env.serving.replicas import replicas

                many = replicas(config, self.limits, keep, self.replicas, self.host, self.port, token)
                url = stack.enter_context(many)
            say(f'{url}  gym.make("SanaWM/Remote-v0", url="{url}")  (Ctrl-C ends it)')
            while True:  # not for ever at once: a Ctrl-C that comes just before a wait begins would be slept through
                time.sleep(1)

    def token(self) -> str | None:
        """The token that clients must send; None for no token. ValueError for a file without one."""
        if self.token_file is None:
            return os.environ.get("SANAWM_TOKEN", "").strip() or None
        with explaining(f"{self.token_file} holds no token"):
            lines = read_text(self.token_file, MAX_TOKEN_BYTES).split("\n")
        if not lines[0].strip():
            raise ValueError(f"{self.token_file} holds no token: its first line is empty.")
        return lines[0].strip()

    def settings(self) -> dict[str, Any]:
        """Keywords of the environment. ValueError for an id that is none of this package."""
        import gymnasium as gym

        ours = [name for name, spec in gym.registry.items() if spec.entry_point == "sanawm_env.envs.env:SanaWMEnv"]
        check_choice("--env", self.env, ours)
        names = ("obs_mode", "action_mode", "scenes", "max_episode_chunks", "threads")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**gym.spec(self.env).kwargs, **given, "world": self.world, "device": self.device, **self.load_options}
