"""A world as an OpenEnv environment: `uvicorn app:app --port 8000`, or the Dockerfile beside this file.

Each OpenEnv session is an episode of its own; all of them step through one forward pass. An action holds keys (or, with
SANAWM_ACTIONS=twist, a twist), or goes back: "snapshot" names the present, "restore" goes to a name, of whatever
session (that is a fork), under another seed if one is given. Pictures are PNG in base64. It needs pip install
"sanawm-env[serve]" openenv-core.

Clients of SanaWM/Remote-v0 come in at ws://.../sanawm/ws, and step in the same forward passes.
"""

import base64
import io
import os
import secrets
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from PIL import Image
from pydantic import Field

from sanawm_env import EnvConfig, Snapshot
from sanawm_env.camera.presets import KEY_ORDER, multi_binary
from sanawm_env.envs.env import Move, begun
from sanawm_env.serving.app import make_app
from sanawm_env.serving.limits import ServerLimits
from sanawm_env.serving.service import Service
from sanawm_env.serving.worker import Step

CONFIG = EnvConfig(
    world=os.environ.get("SANAWM_WORLD", "nano"),
    task="imagenav",
    action_mode=os.environ.get("SANAWM_ACTIONS", "keys"),  # or "twist"
)
SESSIONS, SNAPSHOTS = 32, 256  # at once, and kept; the oldest are let go

service = Service(CONFIG, ServerLimits(sessions=SESSIONS))
kept: OrderedDict[str, Snapshot] = OrderedDict()


class WalkAction(Action):
    """kind "step" holds `keys` (some of w s a d i k j l; none: "") for 1.5 seconds, or a `twist` where actions are such
    (six numbers in [-1, 1]: right, down, forward; look up, turn right, roll); "snapshot" names the present; "restore"
    goes to `snapshot`, under the noise of `seed` from there on if it is given."""

    kind: Literal["step", "snapshot", "restore"] = "step"
    keys: str = Field("", pattern=f"^[{''.join(KEY_ORDER)}]*$", max_length=8)
    twist: list[float] = Field([], max_length=6)
    snapshot: str = Field("", max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**63)


class WalkObservation(Observation):
    """image, and goal where the task has one: PNG in base64. pose: metres and quaternion x, y, z, w. info: numbers.
    snapshot: the name that was asked for."""

    image: str
    goal: str = ""
    pose: list[float]
    info: dict[str, float]
    snapshot: str = ""


class Walk(Environment[WalkAction, WalkObservation, State]):
    """One session."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.id, self.env, self.episode_id = object(), service.env.sibling(), ""

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> WalkObservation:
        self.episode_id = episode_id or secrets.token_hex(8)
        service.worker.call(lambda: self._begin(seed, options)).result()
        return self._seen()

    def step(self, action: WalkAction, timeout_s: float | None = None, **more: Any) -> WalkObservation:
        if action.kind == "snapshot":
            name = secrets.token_urlsafe(12)
            kept[name] = self.env.snapshot()
            while len(kept) > SNAPSHOTS:
                kept.popitem(last=False)
            return self._seen(name=name)
        if action.kind == "restore":
            if action.snapshot not in kept:
                raise ValueError(f"There is no snapshot {action.snapshot!r}, or no longer.")
            self.env.restore(kept[action.snapshot], action.seed)
            return self._seen()
        if any(self.env.ended):
            raise ValueError("The episode is over: reset, or restore a snapshot.")
        twists = CONFIG.action_mode == "twist"
        if action.keys if twists else action.twist:
            raise ValueError(f"Actions are {'twists' if twists else 'keys'} here.")
        step = Step(self.id, [self.env.episode], [action.twist if twists else multi_binary(action.keys)])
        result = service.worker.step(step).result()
        Move(self.env, result.after[0]).go()
        return self._seen(float(result.rewards[0]))

    @property
    def state(self) -> State:
        return State(episode_id=self.episode_id, step_count=0 if self.env.fresh else self.env.episode.slot.chunk)

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        known = {name: options[name] for name in ("scene", "task") if name in options}
        if not isinstance(known.get("scene", 0), int):
            raise ValueError("scene must be the number of a start image.")
        (move,) = begun(self.env.simulator, [self.env], [seed], known)
        move.go()

    def _seen(self, reward: float | None = None, name: str = "") -> WalkObservation:
        obs, info = self.env.observation, self.env.info
        return WalkObservation(
            done=any(self.env.ended),
            reward=reward,
            image=png(obs["rgb"]),
            goal=png(obs["goal_rgb"]) if "goal_rgb" in obs else "",
            pose=obs["pose"].tolist(),
            info={key: float(value) for key, value in info.items() if np.ndim(value) == 0},
            snapshot=name,
        )


def png(picture: np.ndarray) -> str:
    """A picture (h, w, 3) as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


app = create_app(Walk, WalkAction, WalkObservation, env_name="sanawm", max_concurrent_envs=SESSIONS)
own = make_app(service, os.environ.get("SANAWM_TOKEN"))
app.mount("/sanawm", own)
app.router.lifespan_context = own.router.lifespan_context  # that of a mounted application is not run
