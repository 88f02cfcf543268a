"""Hindsight experience replay on PointNav (Andrychowicz et al. 2017), with DQN of Stable-Baselines3.

    python examples/her.py                 # in the truth, some minutes; --world nano learns in nano

The reward is 1 for arriving and nothing on the way, so that most episodes teach nothing; replayed with a goal that they
did come to, they do. The observation mode "goal" is what `HerReplayBuffer` looks for, `compute_reward` what it asks.
"""

import argparse

import torch
from gymnasium import spaces

from sanawm_env.integrations.sb3 import SB3VecEnv  # first: it says how to install the rest

# isort: split
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor


class GoalAhead(BaseFeaturesExtractor):
    """The way to the goal in the camera's axes, metres (B, 3): what a policy needs of positions and pose."""

    def __init__(self, space: spaces.Dict):
        super().__init__(space, features_dim=3)

    def forward(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        way, (axis, w) = seen["desired_goal"] - seen["achieved_goal"], seen["observation"][:, 3:].split((3, 1), dim=1)
        twice = 2 * torch.linalg.cross(axis, way)  # the inverse rotation of a unit quaternion
        return way - w * twice + torch.linalg.cross(axis, twice)


def environments(world: str, count: int, **settings) -> VecEnv:
    """PointNav with the sparse reward, as a GoalEnv. The policy looks at no picture."""
    settings = {"max_episode_chunks": 6, "obs_size": (1, 1), "task_options": {"shaped": False}} | settings
    settings |= {"obs_mode": "goal", "action_mode": "discrete"}
    return VecMonitor(SB3VecEnv("SanaWM/PointNav-v0", count, world=world, **settings))


def learner(envs: VecEnv, seed: int = 0) -> DQN:
    """DQN that learns from four relabelled transitions to each real one."""
    return DQN(
        "MultiInputPolicy",
        envs,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        policy_kwargs={"features_extractor_class": GoalAhead, "net_arch": [64, 64]},
        buffer_size=20_000,
        learning_starts=12 * envs.num_envs,
        learning_rate=1e-3,
        batch_size=128,
        train_freq=1,
        gradient_steps=envs.num_envs,  # one for each transition
        target_update_interval=100,
        exploration_fraction=0.5,
        gamma=0.9,
        seed=seed,
        device="cpu",
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--world", default="rooms")
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--episodes", type=int, default=64, help="of each evaluation")
    options = options.parse_args()
    size = {"height": 8, "width": 12} if options.world == "rooms" else {}  # nobody looks at the pictures
    model = learner(environments(options.world, 8, **size))
    test = environments(options.world, 8, **size)
    for part in range(4):
        if part:
            model.learn(options.steps // 3, reset_num_timesteps=False)
        test.seed(1000)
        found = []
        evaluate_policy(model, test, options.episodes, callback=lambda now, _, to=found: to.extend(ends(now)))
        print(f"after {model.num_timesteps} steps {sum(found) / len(found):.0%} of {len(found)} goals are found")


def ends(now: dict) -> list[bool]:
    return [now["info"]["is_success"]] if now["done"] else []


if __name__ == "__main__":
    main()
