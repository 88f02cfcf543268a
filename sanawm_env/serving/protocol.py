"""What a client may ask for and what a server says of itself, as dataclasses that plain values are read into.

A request is a map with its number `n`, the name of what is asked (`op`), episodes that the client has let go (`drop`),
and the fields of one of the classes below; arrays (actions, images) stand beside them. A reply has the same `n`, and
`error` or what was asked. A request whose number was answered before gets the same answer again, and is not done again.
docs/serve.md has the table.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from sanawm_env.serving.worker import Batching
from sanawm_env.system.files import check_count
from sanawm_env.world.config import WorldConfig

TOKEN_VARIABLE = "SANAWM_TOKEN"
PIECE = 2**22  # bytes of a file that travel in one message
GARBAGE, TAKEN_OVER, FULL, IDLE, TOO_LARGE = 4400, 4409, 4503, 4408, 1009
"""Codes that a server ends a line with."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first message. session: to go on with, empty for a new one, whose observations and pictures are as the other
    fields say (None: as the server's environment has them)."""

    version: int
    session: str = ""
    obs_mode: str | None = None
    obs_size: tuple[int, int] | None = None
    pictures: Literal["raw", "png", "jpeg"] = "raw"


@dataclass(frozen=True, kw_only=True)
class SceneAsked:
    """A start: number of one of the server's, or None where an image stands beside it; the rest as `World.scene`."""

    number: int | None = None
    prompt: str | None = None
    fov_deg: float | None = None
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Begin episodes. rngs: generators as JSON, which the task draws from; they come back as they are then."""

    seeds: tuple[int, ...]
    rngs: tuple[str, ...]
    max_episode_chunks: int


@dataclass(frozen=True, kw_only=True)
class StepAsked:
    """Step episodes; see `worker.Step`."""

    episodes: tuple[int, ...]
    batching: Batching = "shared"
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Reseed:
    """The same episodes with other noise from here on."""

    episodes: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The same episodes under other prompts."""

    episodes: tuple[int, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OfEpisode:
    """Something of one episode: frames, latents or scene."""

    episode: int


@dataclass(frozen=True, kw_only=True)
class Save:
    """Write a snapshot to a file of the session, which `Read` reads. rng: of the environment, as JSON."""

    episode: int
    rng: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of the session's file, from a byte on."""

    offset: int


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Of requests that say no more."""


@dataclass(frozen=True, kw_only=True)
class ServedConfig(WorldConfig):
    """What a client knows of the world. frames: of a chunk. latents: shape of a chunk's, None without."""

    frames: int = 24
    latents: tuple[int, int, int, int] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count("frames", self.frames, 1, 10_000)
        for n in self.latents or ():
            check_count("latents", n, 1, 2**20)

    @property
    def chunk_frames(self) -> int:
        return self.frames

    @property
    def latent_shape(self) -> tuple[int, int, int, int] | None:
        return self.latents

    @classmethod
    def plain(cls, config: WorldConfig) -> dict[str, Any]:
        """Of any world, as plain values."""
        base = {each.name: getattr(config, each.name) for each in fields(WorldConfig)}
        base |= {"workspace": asdict(config.workspace), "places": {k: list(v) for k, v in config.places.items()}}
        return base | {"frames": config.chunk_frames, "latents": config.latent_shape}


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The answer to a hello. env: keywords of the environment. world: `ServedConfig`. mode: which stages make frames.
    starts: how many start images the server has. lost_after: idle seconds after which it forgets a session."""

    version: int
    session: str
    env: Mapping[str, Any]
    world: ServedConfig
    mode: str
    starts: int
    lost_after: float
    weights_hash: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
