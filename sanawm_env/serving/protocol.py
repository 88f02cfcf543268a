"""Requests and replies as dataclasses that plain values are read into.

A request is a map with its number `n`, the name of the operation (`op`), numbers of episodes that the client no longer
needs (`drop`), and the fields of one of the classes below. Arrays (actions, images) stand beside them. A reply has the
same `n`, and the result or `error`. A request whose number was already answered gets the same reply again and is not
repeated. docs/serve.md has the table.
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
"""Codes with which a server closes a connection."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first message.

    Attributes:
        version: of the protocol.
        session: to continue; empty for a new one, which the other fields describe.
        obs_mode: of observations; None for that of the server's environment.
        obs_size: (height, width) of observations; None likewise.
        encoding: of images in replies.
    """

    version: int
    session: str = ""
    obs_mode: str | None = None
    obs_size: tuple[int, int] | None = None
    encoding: Literal["raw", "png", "jpeg"] = "raw"


@dataclass(frozen=True, kw_only=True)
class SceneAsked:
    """Where an episode begins.

    Attributes:
        number: of one of the server's start images; None where an image stands beside it.
        prompt, fov_deg: as in `World.scene`.
        place: of the anchor, whose pose stands beside it.
    """

    number: int | None = None
    prompt: str | None = None
    fov_deg: float | None = None
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Begin episodes.

    Attributes:
        seeds: of each episode's noise.
        rngs: generators that the task draws from, as JSON. The reply has their state afterwards.
        max_episode_chunks: steps until truncation.
    """

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
    """The same episodes with other noise from the next chunk on."""

    episodes: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The same episodes with other prompts from the next chunk on."""

    episodes: tuple[int, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OfEpisode:
    """The frames, latents or scene of one episode."""

    episode: int


@dataclass(frozen=True, kw_only=True)
class Save:
    """Write a snapshot to the session's file, which `read` requests then return in pieces.

    Attributes:
        episode: its number.
        rng: the environment's generator as JSON.
    """

    episode: int
    rng: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of the session's file.

    Attributes:
        offset: of its first byte.
    """

    offset: int


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """A request without fields."""


@dataclass(frozen=True, kw_only=True)
class ServedConfig(WorldConfig):
    """What a client knows of the world.

    Attributes:
        frames: of a chunk.
        latents: shape (c, T, h, w) of a chunk's latents; None where the world has none.
    """

    frames: int = 24
    latents: tuple[int, int, int, int] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count("frames", self.frames, 1, 10_000)
        for n in self.latents or ():
            check_count("latents", n, 1, 2**20)

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk."""
        return self.frames

    @property
    def latent_shape(self) -> tuple[int, int, int, int] | None:
        """Shape of a chunk's latents, or None."""
        return self.latents

    @classmethod
    def plain(cls, config: WorldConfig) -> dict[str, Any]:
        """The configuration of any world as plain values of this class."""
        base = {each.name: getattr(config, each.name) for each in fields(WorldConfig)}
        base |= {"workspace": asdict(config.workspace), "places": {k: list(v) for k, v in config.places.items()}}
        return base | {"frames": config.chunk_frames, "latents": config.latent_shape}


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The answer to a hello.

    Attributes:
        version: of the protocol.
        session: its name, with which a client comes back.
        env: settings of the server's environment, as `EnvConfig.to_plain` gives them.
        world: its configuration.
        mode: which stages make the frames.
        starts: number of the server's start images.
        lost_after: idle seconds after which the server forgets the session.
        weights_hash: of the world.
        limits: of the server, by the names of `ServerLimits`.
    """

    version: int
    session: str
    env: Mapping[str, Any]
    world: ServedConfig
    mode: str
    starts: int
    lost_after: float
    weights_hash: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
