"""LeRobot: the batched environment with LeRobot's observations and infos, and the `make_env` of an EnvHub repository.

    from sanawm_env.integrations.lerobot import make_env

    envs = make_env(n_envs=4, id="SanaWM/PointNav-v0", world="nano")
    obs, infos = envs.reset(seed=[0, 1, 2, 3])          # pixels, agent_pos, environment_state
    envs.call("task_description")                       # a sentence for each slot

`lerobot.envs.make_env("USER/REPO", n_envs=4, trust_remote_code=True)` makes the environments of a repository whose
`env.py` is examples/lerobot_envhub/env.py. Written for lerobot 0.4.4 and 0.6.1; nothing of lerobot is imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

import sanawm_env  # noqa: F401  registers the ids
from sanawm_env.envs.env import MARKS, RESET_OPTIONS, SanaWMEnv
from sanawm_env.envs.vector import SanaWMVectorEnv

KNOWN = (*RESET_OPTIONS, *MARKS, "reset_mask")
DESCRIPTIONS = {
    "explore": "Explore: see the place from as many new viewpoints as possible.",
    "pointnav": "Go to the goal point.",
    "imagenav": "Go to where the goal image was taken.",
    "followpath": "Follow the path to its end.",
    "none": "Walk around.",
}

Arrays = tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def make_env(
    n_envs: int = 1,
    use_async_envs: bool = False,
    cfg: Any = None,
    *,
    id: str = "SanaWM/PointNav-v0",
    camera: str | None = None,
    task_description: str | None = None,
    **settings: Any,
) -> "LeRobotVectorEnv":
    """Make `n_envs` episodes of an environment id in one batch.

    The observation mode is "dict". A slot whose episode has ended is reset in the next step, which has no reward, so
    that returns that LeRobot sums over one step more are those of the episode.

    Args:
        n_envs: number of slots.
        use_async_envs: ignored. All slots share one forward pass, and processes would each load the weights.
        cfg: the environment config that LeRobot passes to a hub's `make_env`. Its `task`, if any, is an id
            ("PointNav-v0" or "SanaWM/PointNav-v0") that replaces `id`.
        id: of the environment.
        camera: see `LeRobotVectorEnv`.
        task_description: see `LeRobotVectorEnv`.
        settings: keywords of `SanaWMVectorEnv`.

    Raises:
        ValueError: as `LeRobotVectorEnv` and `SanaWMVectorEnv`.
        gymnasium.error.Error: for an unknown id.
    """
    if name := getattr(cfg, "task", None):
        id = name if "/" in name else f"SanaWM/{name}"
    settings = {"render_mode": "rgb_array"} | settings
    envs = gym.make_vec(id, num_envs=n_envs, obs_mode="dict", autoreset_mode=AutoresetMode.NEXT_STEP, **settings)
    return LeRobotVectorEnv(envs, camera, task_description)


class LeRobotVectorEnv(VectorWrapper):
    """A wrapper of a `SanaWMVectorEnv` of dict observations, with the observations and infos that LeRobot's `rollout`
    reads.

    Observations:

    - pixels: the last frame (n, h, w, 3) uint8; or a dict of frames, if the task also has a goal image (`goal`) or
    `camera`
      is given.
    - agent_pos: the pose (n, 7) float32.
    - environment_state: (n, k) float32, the pose and the other numbers of the observation, such as a goal or waypoints.

    Infos have is_success (n,) bool in every step, also in tasks without success, and final_info where an episode has
    ended. `call` and `get_attr` know `task` (its name), `task_description` (a sentence), `_max_episode_steps` and the
    attributes of the single environments. Options of a reset that the environment does not know are left out, with a
    warning, except for LeRobot's own marks.

    Args:
        env: a batch with autoreset_mode "NextStep" and obs_mode "dict".
        camera: name of the last frame in `pixels`. "camera" is the name of the videos of `export_lerobot`.
        task_description: a sentence; None for that of the task.

    Raises:
        ValueError: for other observations, for actions that are no vectors, or another autoreset mode.
    """

    def __init__(self, env: VectorEnv, camera: str | None = None, task_description: str | None = None):
        super().__init__(env)
        self._batch = cast(SanaWMVectorEnv, env)  # wrappers around one pass on what it has
        single, actions = env.single_observation_space, env.single_action_space
        if not isinstance(single, spaces.Dict):
            raise ValueError('LeRobot reads frames and poses: make the environment with obs_mode="dict".')
        if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
            raise ValueError(f'LeRobot\'s policies act by vectors, not in {actions}: use action_mode="twist".')
        if env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise ValueError('LeRobotVectorEnv wraps a batch made with autoreset_mode="NextStep".')
        images = [name for name, part in single.items() if part.dtype == np.uint8 and len(part.shape or ()) == 3]
        self._images = {name: camera or "camera" if name == "rgb" else name.removesuffix("_rgb") for name in images}
        self._alone = len(images) == 1 and camera is None
        self._numbers = ["pose", *(name for name in single if name not in ("pose", *images))]
        seen = {self._images[name]: single[name] for name in images}
        count = sum(int(np.prod(single[name].shape or ())) for name in self._numbers)
        self.single_observation_space = spaces.Dict(
            pixels=single["rgb"] if self._alone else spaces.Dict(seen),
            agent_pos=single["pose"],
            environment_state=spaces.Box(-np.inf, np.inf, (count,), np.float32),
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        task = type(cast(SanaWMVectorEnv, self.unwrapped).simulator.task).__name__
        task = "none" if task == "Task" else task
        described = DESCRIPTIONS.get(task.lower(), task) if task_description is None else task_description
        self._said = {"task": task.lower(), "task_description": described}
        for slot in self.envs:
            slot.task_description = described  # ty: ignore[missing-attribute]  lerobot before 0.5 looks for it there

    @property
    def envs(self) -> Sequence[SanaWMEnv]:
        """The single environments."""
        return cast(SanaWMVectorEnv, self.unwrapped).envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """An attribute, or the result of a method, of every slot."""
        return (self._said[name],) * self.num_envs if name in self._said else self._batch.call(name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every slot."""
        return self.call(name)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        known = {name: value for name, value in (options or {}).items() if name in KNOWN}
        if unknown := [str(name) for name in options or {} if name not in known]:
            gym.logger.warn(f"Left out of the reset's options, as they are not known here: {', '.join(unknown)}.")
        obs, infos = self._batch.reset(seed=seed, options=known)
        return self._observations(cast(dict[str, np.ndarray], obs)), infos | self._success(infos)

    def step(self, actions: Any) -> Arrays:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        over, infos = terminated | truncated, infos | self._success(infos)
        if over.any():
            final = {"is_success": infos["is_success"] & over, "_is_success": over}
            infos |= {"final_info": final, "_final_info": over}
        return self._observations(obs), rewards, terminated, truncated, infos

    def _success(self, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        success = infos.get("is_success", np.zeros(self.num_envs, bool))
        return {"is_success": success, "_is_success": infos.get("_is_success", np.ones(self.num_envs, bool))}

    def _observations(self, obs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        images = {name: obs[ours] for ours, name in self._images.items()}
        numbers = [obs[name].reshape(self.num_envs, -1) for name in self._numbers]
        state = np.concatenate(numbers, axis=1, dtype=np.float32)
        return {
            "pixels": obs["rgb"] if self._alone else images,
            "agent_pos": obs["pose"],
            "environment_state": state,
        }
