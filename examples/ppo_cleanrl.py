"""PPO in one file, in the style of CleanRL, to read from top to bottom: proximal policy optimisation (Schulman 2017)
from pixels, in a world that a network imagines.

    python examples/ppo_cleanrl.py --updates 40        # 16 episodes at once; about ten minutes on one core

For training that can be stopped and resumed see `sanawm_env.agents.train_ppo`.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical

import sanawm_env  # noqa: F401  registers the ids


@dataclass(frozen=True)
class Args:
    id: str = "SanaWM/Explore-v0"
    world: str = "nano"
    seed: int = 0
    num_envs: int = 16
    max_episode_chunks: int = 8
    obs_size: tuple[int, int] = (36, 54)
    updates: int = 40
    num_steps: int = 16  # steps of every episode between two updates
    epochs: int = 4  # passes over those steps in an update
    minibatches: int = 4
    learning_rate: float = 5e-4
    gamma: float = 0.95
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5  # weight of the critic's loss
    max_grad_norm: float = 0.5


class Agent(nn.Module):
    """Actor and critic over one convolutional network."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__()
        height, width, channels = envs.single_observation_space.shape
        look = nn.Sequential(
            orthogonal(nn.Conv2d(channels, 32, 8, 4)), nn.ReLU(),
            orthogonal(nn.Conv2d(32, 64, 4, 2)), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        features = look(torch.zeros(1, channels, height, width)).shape[1]
        self.body = nn.Sequential(look, orthogonal(nn.Linear(features, 256)), nn.ReLU())
        self.actor = orthogonal(nn.Linear(256, int(envs.single_action_space.n)), 0.01)
        self.critic = orthogonal(nn.Linear(256, 1), 1.0)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        """Pictures (B, H, W, 3) uint8: the distribution of actions and the values (B,)."""
        seen = self.body(obs.permute(0, 3, 1, 2) / 255.0)
        return Categorical(logits=self.actor(seen)), self.critic(seen)[:, 0]


def orthogonal(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def train(args: Args) -> list[float]:
    """The mean return of the episodes that ended before each update; NaN where none has."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        args.id,
        num_envs=args.num_envs,
        world=args.world,
        obs_mode="rgb",
        action_mode="discrete",
        obs_size=args.obs_size,
        max_episode_chunks=args.max_episode_chunks,
        autoreset_mode="SameStep",  # an episode that ends is reset in the same step; how it ended is in infos
    )
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=1e-5)

    # one rollout: (steps, episodes)
    shape = (args.num_steps, args.num_envs)
    observations = torch.zeros(*shape, *envs.single_observation_space.shape, dtype=torch.uint8)
    actions = torch.zeros(shape, dtype=torch.int64)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))

    obs = torch.as_tensor(envs.reset(seed=args.seed)[0])
    returns, history = np.zeros(args.num_envs), []
    for update in range(args.updates):
        ended = []
        for step in range(args.num_steps):
            with torch.no_grad():
                policy, values[step] = agent(obs)
            observations[step], actions[step] = obs, policy.sample()
            logprobs[step] = policy.log_prob(actions[step])
            after, reward, terminated, truncated, infos = envs.step(actions[step].numpy())
            done = terminated | truncated
            returns += reward
            ended += returns[done].tolist()
            returns[done] = 0
            rewards[step], dones[step] = torch.as_tensor(reward), torch.as_tensor(done)
            # an episode that was cut off would have gone on: count what the critic expects of it
            cut = np.flatnonzero(truncated & ~terminated)
            if len(cut):
                with torch.no_grad():
                    _, rest = agent(torch.as_tensor(np.stack(infos["final_obs"][cut])))
                rewards[step, cut] += args.gamma * rest
            obs = torch.as_tensor(after)

        # generalised advantage estimation (Schulman 2016), backwards from the last step
        with torch.no_grad():
            _, following = agent(obs)
        advantages, carried = torch.zeros(shape), torch.zeros(args.num_envs)
        for step in reversed(range(args.num_steps)):
            going = 1 - dones[step]
            surprise = rewards[step] + args.gamma * going * following - values[step]
            carried = surprise + args.gamma * args.gae_lambda * going * carried
            advantages[step], following = carried, values[step]
        targets = (advantages + values).flatten()
        rollout = observations.flatten(0, 1), actions.flatten(), logprobs.flatten(), advantages.flatten()

        for _ in range(args.epochs):
            for rows in torch.randperm(len(targets)).chunk(args.minibatches):
                seen, acted, logprob, advantage = (part[rows] for part in rollout)
                policy, value = agent(seen)
                ratio = (policy.log_prob(acted) - logprob).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                actor = -torch.min(ratio * advantage, ratio.clamp(1 - args.clip, 1 + args.clip) * advantage).mean()
                critic = (value - targets[rows]).square().mean()
                loss = actor + args.value * critic - args.entropy * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        history.append(float(np.mean(ended)) if ended else float("nan"))
        print(f"update {update + 1} of {args.updates}: mean return {history[-1]:.2f}", flush=True)
    envs.close()
    return history


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(tyro.cli(Args, description=__doc__))
