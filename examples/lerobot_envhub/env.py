"""The one file of a LeRobot EnvHub repository: `lerobot.envs.make_env("USER/REPO", n_envs=4, trust_remote_code=True)`.

Put it at the root of the repository as `env.py`, with "sanawm-env" in its requirements.txt.
"""

from sanawm_env.integrations import lerobot


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg=None):
    """Walks to a goal point in the nano world, ten steps each."""
    return lerobot.make_env(n_envs, use_async_envs, cfg, id="SanaWM/PointNav-v0", world="nano", max_episode_chunks=10)
