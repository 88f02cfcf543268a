"""PPO from pixels that learned in nano alone, acting in the truth, beside PPO that learned in the truth.

    python benchmarks/learn.py                  # goes on where it was stopped; every training and evaluation is kept
    python benchmarks/learn.py --only rooms     # some of it: these trainings, and no table

PointNav: the goal, a point whose direction the policy is told, lies two steps away, and there are four. ImageNav: the
goal is a picture of what is to be seen a step away, and there are two. Both pay for coming nearer. Trainings begin at
nano's start images; the truth shows pictures of 64 x 96, all policies see 36 x 54. Actions are planar.

Policies act on the same held-out episodes (`agents.compare`): in places that nano knows, in nano, in the truth,
and in the truth where walls stop the camera; in furnished rooms that nobody has trained on, in that last one. Every
goal can be reached around walls. A seed is a training, and a draw of episodes; 95 % intervals are of the mean over
seeds (Student's t). Episodes end when the goal is reached, so that who passes by it has reached it: "steady" is the
better of two constant twists forwards, found on these very episodes, and the policy to beat.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import console, header, interval, kept, numbers_file, parser, plot, plot_file, show, write
from numpy.typing import NDArray
from rich.progress import track
from sanawm_env.agents.compare import Setup, anchors_of, begin, draw_setups, simulators
from sanawm_env.agents.train_ppo import TrainPPO, train_ppo, twists

from sanawm_env import Simulator, World
from sanawm_env.envs.observations import observer
from sanawm_env.simulation.tasks import make_task

SEEDS, EPISODES, BATCH = (0, 1, 2), 24, 12  # a batch of rooms is what `rooms` keeps baked
TRUTH = {"height": 64, "width": 96, "supersample": 1}
LEARNERS = ("nano", "rooms")  # what a policy has learned in
PLACES = ("known", "rooms:test")
STEADY = (0.4, 0.7)  # forwards
HELD_OUT = 10**6  # seeds of episodes begin here

Policy = Callable[[Any], NDArray]  # from a batch of observations to planar actions (B, 3)


@dataclass(frozen=True)
class Experiment:
    """settings: of the trainings, all but world, seed and folder. runs: where what is done is kept."""

    settings: TrainPPO
    seeds: tuple[int, ...] = SEEDS
    episodes: int = EPISODES
    runs: Path = Path("runs/learn")

    @property
    def steps(self) -> int:
        return self.settings.max_episode_chunks

    def training(self, world: str, seed: int) -> TrainPPO:
        """One training; its folder has the name of what decides it, the weights of nano among it."""
        options = TRUTH if world == "rooms" else {}
        made = replace(self.settings, world=world, world_options=options, scenes=starts(), seed=seed)
        decides = repr(asdict(replace(made, scenes=()))) + (predicted().weights_hash if world == "nano" else "")
        name = f"{made.task}_{world}_{seed}_{sha256(decides.encode()).hexdigest()[:8]}"
        return replace(made, out=self.runs / name)

    def train(self, world: str, seed: int) -> None:
        """Train what is left of it; processor seconds are added up over interruptions."""
        made = self.training(world, seed)
        clock = made.out / "clock.json"
        before = json.loads(clock.read_text()) if clock.exists() else {"seconds": 0.0, "done": False}
        if before["done"]:
            return
        begun, done = time.process_time(), False
        try:
            train_ppo(made, console)
            done = True
        finally:
            if made.out.exists():
                write(clock, {"seconds": before["seconds"] + time.process_time() - begun, "done": done})

    def policy(self, world: str, seed: int) -> Policy:
        model = train_ppo(self.training(world, seed), console)
        return lambda seen: model.predict(seen, deterministic=True)[0]

    def evaluate(self, place: str, seed: int) -> dict[str, dict[str, list[bool]]]:
        """Successes of every policy on each episode, by policy and world."""
        policies: dict[str, Policy] = {f"PPO, learned in {world}": self.policy(world, seed) for world in LEARNERS}
        policies["random"] = random(seed)
        if self.settings.task == "pointnav":
            policies["straight for the goal"] = straight
        policies |= {f"steady {forward:.1f}": steady(forward) for forward in STEADY}
        task = make_task(self.settings.task, {"chunks": self.settings.goal_chunks})
        size = {"height": predicted().config.height, "width": predicted().config.width, "supersample": 1}
        predicting, acting = simulators(predicted(), World.load("rooms", **size), task, self.steps)
        walled = simulators(predicted(), World.load("rooms", collisions=True, **size), task, self.steps)[1]
        worlds = {"truth, walls": walled} | ({"truth": acting, "predicted": predicting} if place == "known" else {})
        found: dict[str, dict[str, list[bool]]] = {policy: {world: [] for world in worlds} for policy in policies}
        anchors = anchors_of(place, predicted().config, acting.world.config, self.episodes, HELD_OUT + seed)
        for first in range(0, self.episodes, BATCH):
            part = anchors[first : first + BATCH]
            setups = draw_setups(walled, part, HELD_OUT + seed + first, self.settings.goal_chunks)
            for policy, act in policies.items():
                for world, simulator in worlds.items():
                    if world != "predicted" or policy.startswith("PPO"):  # what the others do, no picture changes
                        found[policy][world] += self.act(simulator, setups, act)
        return found

    def act(self, simulator: Simulator, setups: Sequence[Setup], policy: Policy) -> list[bool]:
        """Whether each episode reaches its goal."""
        config, task = simulator.world.config, simulator.task
        look = observer("dict", config, self.settings.obs_size, config.workspace, task)
        episodes, going = begin(simulator, setups), list(range(len(setups)))
        while going:
            chosen = twists(policy(look([episodes[i] for i in going])))
            after, _ = simulator.step([episodes[i] for i in going], list(chosen))
            for i, episode in zip(going, after, strict=True):
                episodes[i] = episode
            going = [i for i in going if not simulator.ended(episodes[i])]
        return [episode.terminated for episode in episodes]

    def table(self, found: dict[str, list[dict]]) -> dict[str, dict[str, dict]]:
        """Of what `evaluate` gave for each seed, by place: for each policy, of each place and world, the rates of the
        seeds, their mean and its interval. Of the steady ones the best, world by world."""
        rows: dict[str, dict[str, dict]] = {}
        for place, seeds in found.items():
            for policy, worlds in seeds[0].items():
                for world in worlds:
                    if rates := [float(np.mean(seed[policy][world])) for seed in seeds if seed[policy][world]]:
                        mean, half = map(float, interval(rates))
                        name = "steady" if policy.startswith("steady") else policy
                        cell = {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
                        best = rows.setdefault(name, {}).get(f"{place}, {world}")
                        if best is None or mean > best["mean"]:
                            rows[name][f"{place}, {world}"] = cell | {"seeds": rates}
        return rows


@cache
def predicted() -> World:
    return World.load("nano")


@cache
def starts() -> tuple[Path, ...]:
    return tuple(map(Path, predicted().starts))


def random(seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda seen: rng.uniform(-1, 1, (len(seen["rgb"]), 3))


def steady(forward: float) -> Policy:
    return lambda seen: np.tile([0, forward, 0], (len(seen["rgb"]), 1))


def straight(seen: dict[str, NDArray]) -> NDArray:
    """Towards the point without turning, as fast as it takes in one step (1.2 m at most each way): looks at nothing."""
    return np.pad(np.clip(seen["goal"][:, [0, 2]] / 1.2, -1, 1), ((0, 0), (0, 1)))


COMMON = TrainPPO(
    obs_mode="dict", action_mode="planar", num_envs=16, n_steps=8, steps=1024, n_epochs=8, learning_rate=1e-3,
    ent_coef=0.0,
)  # fmt: skip
EXPERIMENTS = {
    "pointnav": Experiment(
        replace(COMMON, task="pointnav", steps=512, goal_chunks=2, max_episode_chunks=4, gamma=0.9, log_std=-1.0)
    ),
    "imagenav": Experiment(
        replace(COMMON, task="imagenav", goal_chunks=1, max_episode_chunks=2, gamma=0.5, log_std=-1.0)
    ),
}


def toy(experiment: Experiment) -> Experiment:
    """So small that it shows only that everything runs."""
    small = replace(experiment.settings, steps=8, num_envs=2, n_steps=4, batch_size=4, n_epochs=1)
    small = replace(small, goal_chunks=1, max_episode_chunks=2)
    return replace(experiment, settings=small, seeds=SEEDS[:2], episodes=1, runs=Path("runs/quick/learn"))


def run(experiments: dict[str, Experiment], only: Sequence[str]) -> dict[str, Any] | None:
    """Trainings first, evaluations when all are there; None where only some trainings were asked for."""
    jobs = [(e, world, seed) for e in experiments.values() for seed in e.seeds for world in only]
    for experiment, world, seed in track(jobs, "training", console=console):
        experiment.train(world, seed)
    if len(only) < len(LEARNERS):
        return None
    numbers: dict[str, Any] = {}
    for name, e in experiments.items():
        found: dict[str, list[dict]] = {place: [] for place in PLACES}
        for place in PLACES:
            for seed in track(e.seeds, f"{name}, {place}", console=console):
                decides = "".join(str(e.training(world, seed).out) for world in LEARNERS) + repr(
                    (e.episodes, BATCH, STEADY)
                )
                tag = sha256(decides.encode()).hexdigest()[:8]
                file = e.runs / f"{name}_{place.replace(':', '_')}_{seed}_{tag}.json"
                found[place].append(kept(file, partial(e.evaluate, place, seed)))
        numbers[name] = {
            "settings": {key: value for key, value in asdict(e.settings).items() if key not in ("out", "scenes")},
            "policies": e.table(found),
            "curves": {world: [curve(e.training(world, seed)) for seed in e.seeds] for world in LEARNERS},
            "seconds": {world: [seconds(e.training(world, seed)) for seed in e.seeds] for world in LEARNERS},
        }
    return numbers


def curve(made: TrainPPO) -> list[list[float]]:
    """Steps, and success of the last 100 episodes of training."""
    points = json.loads((made.out / "progress.json").read_text())
    return [[point["steps"], point["success"]] for point in points if "success" in point]


def seconds(made: TrainPPO) -> float:
    return json.loads((made.out / "clock.json").read_text())["seconds"]


def draw(tasks: dict[str, Any], file: Path) -> None:
    """Success while training, mean and interval over seeds, in the world that is trained in."""
    with plot(file, 1, len(tasks), size=(4.5 * len(tasks), 3.3)) as axes:
        for panel, (name, numbers) in zip(np.atleast_1d(axes), tasks.items(), strict=True):
            for world, curves in numbers["curves"].items():
                steps = sorted(set.intersection(*({step for step, _ in points} for points in curves)))
                mean, half = interval([[dict(points)[step] for step in steps] for points in curves])
                panel.plot(steps, mean, label=f"in {world}")
                panel.fill_between(steps, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1), alpha=0.2)
            panel.set(title=name, xlabel="environment steps", ylim=(0, 1))
            panel.legend(frameon=False)
        np.atleast_1d(axes)[0].set_ylabel("success of the last 100 episodes")


def columns(policies: dict[str, dict[str, dict]]) -> list[str]:
    return list(dict.fromkeys(column for row in policies.values() for column in row))


def cells(row: dict[str, dict], names: Sequence[str]) -> list[str]:
    texts = "{mean:.0%} ({low:.0%} to {high:.0%})"
    return [texts.format(**row[name]) if name in row else "" for name in names]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=LEARNERS, default=LEARNERS, help="trainings in these, no table")
    options.add_argument("--tasks", nargs="+", choices=EXPERIMENTS, default=tuple(EXPERIMENTS))
    options = options.parse_args()
    torch.set_num_threads(1)
    experiments = {name: EXPERIMENTS[name] for name in options.tasks}
    if options.quick:
        experiments = {name: toy(experiment) for name, experiment in experiments.items()}
    tasks = run(experiments, options.only)
    if tasks is None:
        return
    file = numbers_file(options, "learn")
    for name, numbers in tasks.items():
        policies = numbers["policies"]
        rows = [[policy, *cells(row, columns(policies))] for policy, row in policies.items()]
        show(name, ["policy", *columns(policies)], rows)
    write(file, header() | {"episodes_per_seed": EXPERIMENTS["pointnav"].episodes, "tasks": tasks})
    draw(tasks, plot_file(file))


if __name__ == "__main__":
    main()
