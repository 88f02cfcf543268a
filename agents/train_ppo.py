"""Train PPO from pixels with Stable-Baselines3.

    python -m sanawm_env.agents.train_ppo --task explore --out runs/ppo

The same command continues after an interruption, in the middle of episodes: a checkpoint holds their states beside the
policy. On a CPU a run that was interrupted ends bit for bit as one that was not.
"""

import json
import shutil
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import tyro
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sanawm_env.integrations.sb3 import SB3VecEnv  # first: it says how to install the rest

# isort: split
from sanawm_env.agents.planners import PLANAR
from sanawm_env.agents.policy_file import read_weights
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecTransposeImage
from torch import nn
from torch.nn import functional as F

from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.vector import SanaWMVectorEnv
from sanawm_env.recording.rollout import check_writable
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.system.files import brief, explaining, read_json, reason
from sanawm_env.system.saving import only_writer, remove, replacing_files, replacing_folder, write_text
from sanawm_env.system.settings import check_fields, differences, read
from sanawm_env.system.terminal import ending_in_a_sentence, literal_console
from sanawm_env.world.threads import with_torch_threads

Task = Literal["explore", "pointnav", "imagenav", "followpath"]
ObsMode = Literal["rgb", "stack", "dict"]
LEAST_PIXELS = 36  # a side of the frames that NatureCNN takes
Side = Annotated[int, Field(ge=LEAST_PIXELS, le=4096)]
MAX_SETTINGS_BYTES, MAX_RUN_BYTES = 2**20, 64 * 2**20
COLUMNS = (
    BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TextColumn("{task.description}"), TimeRemainingColumn()
)  # fmt: skip
FREE = ("steps", "threads", "device", "checkpoint_seconds", "out")  # settings that may change when a run goes on


@dataclass(frozen=True, kw_only=True)
class TrainPPO:
    """The settings of a training.

    Raises:
        ValueError: for values out of range.
    """

    task: Task = "explore"
    """Task of the environments."""
    world: str = "nano"
    """Name or folder of the world."""
    scenes: tuple[Path, ...] = ()
    """Start images; the world's own if none are given."""
    steps: Annotated[int, Field(ge=1, le=2**40)] = 10_000
    """Environment steps in all, each a chunk of 24 frames."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the policy."""
    num_envs: Annotated[int, Field(ge=1, le=4096)] = 16
    """Environments in the batch."""
    max_episode_chunks: Annotated[int, Field(ge=1, le=2**31 - 1)] = 8
    """Steps of an episode."""
    goal_chunks: int | None = None
    """Steps from the start to a hidden goal; None for the task's own choice."""
    obs_mode: ObsMode | None = None
    """rgb or stack: frames; dict: frames, pose and goal. None for rgb in explore, and dict in tasks with goals."""
    action_mode: str = "discrete"
    """An action mode of the environment, or "planar": a twist's sideways, forwards and turn, in [-1, 1]."""
    world_options: dict[str, int | bool | str] = field(default_factory=dict)
    """Options of World.load, such as height, width and collisions of rooms."""
    obs_size: tuple[Side, Side] = (36, 54)
    """Height and width, in pixels, of the frames that the policy observes, at least 36."""
    n_steps: Annotated[int, Field(ge=1, le=2**20)] = 16
    """Steps of each environment between two updates."""
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 64
    """Steps of a minibatch."""
    n_epochs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Passes over the collected steps per update."""
    learning_rate: Annotated[float, Field(ge=1e-12, le=10)] = 5e-4
    """Learning rate of Adam."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Discount factor."""
    ent_coef: Annotated[float, Field(ge=0, le=1000)] = 0.01
    """Coefficient of the entropy in the loss."""
    log_std: Annotated[float, Field(ge=-20, le=2)] = 0.0
    """Natural logarithm of the initial standard deviation, for continuous actions."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of torch."""
    device: str = "cpu"
    """cpu or cuda, for world and policy."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=1e9)] = 60
    """Seconds between two checkpoints: what is lost when the process is killed."""
    out: Path = Path("runs/ppo")
    """Folder for the newest checkpoint, policy.zip, progress.json and, if TensorBoard is installed, its logs."""

    def __post_init__(self):
        if self.obs_mode is None:
            object.__setattr__(self, "obs_mode", "rgb" if self.task == "explore" else "dict")
        check_fields(self)
        if self.num_envs * self.n_steps < 2:
            raise ValueError("num_envs times n_steps must be at least 2: PPO normalises advantages over a batch.")

    @property
    def planar(self) -> bool:
        """Whether actions are planar twists."""
        return self.action_mode == "planar"

    def actions(self, chosen: NDArray) -> NDArray:
        """Actions of the policy as the environments take them: planar actions (..., 3) become twists (..., 6)."""
        return twists(chosen) if self.planar else chosen

    @property
    def config(self) -> EnvConfig:
        """The settings of the environments."""
        return EnvConfig(
            world=self.world, device=self.device, scenes=list(self.scenes) or None, obs_mode=cast(str, self.obs_mode),
            action_mode="twist" if self.planar else self.action_mode, obs_size=self.obs_size,
            max_episode_chunks=self.max_episode_chunks, world_options=self.world_options, task=self.task,
            task_options=None if self.goal_chunks is None else {"chunks": self.goal_chunks},
        )  # fmt: skip


def train_ppo(settings: TrainPPO, console: Console | None = None) -> PPO:
    """Train until `settings.steps` environment steps are done, or continue a training.

    Args:
        settings: of the training; `settings.out` holds checkpoints and the policy.
        console: where progress is shown; None for stderr.

    Returns:
        The trained model.

    Raises:
        ValueError: where the folder holds a run with other settings, or a checkpoint that cannot be read.
        BlockingIOError: while another process trains in the folder.
        OSError: where the folder cannot be written; the newest checkpoint is whole then.
    """
    check_writable(settings.out)
    with only_writer(settings.out), with_torch_threads(settings.threads):
        return _train(settings, console or literal_console(stderr=True))


def _train(settings: TrainPPO, console: Console) -> PPO:
    check_run(settings)
    envs = VecMonitor(make_envs(settings))
    newest = checkpoints(settings.out)[-1:]
    model, history = load(newest[0], envs, settings) if newest else (fresh(settings, envs), [])
    if newest:
        publish(settings.out, newest[0], history)  # a kill may have come between
    left = settings.steps - model.num_timesteps
    if left > 0:
        with Progress(*COLUMNS, console=console) as progress:
            keeper = Keeper(settings, envs, history, progress)
            model.learn(left, callback=keeper, reset_num_timesteps=False, tb_log_name="tensorboard")
    return model


def make_envs(settings: TrainPPO) -> VecEnv:
    """The batched environment of a training."""
    keywords = settings.config.keywords
    envs = SB3VecEnv(SanaWMVectorEnv(settings.num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **keywords))
    return Planar(envs) if settings.planar else envs


class Planar(VecEnvWrapper):
    """Makes an environment of twists take planar actions (3,): sideways, forwards and turn, in [-1, 1]. The camera
    neither climbs, pitches nor rolls.
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv, action_space=spaces.Box(-1, 1, (3,), np.float32))

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: NDArray) -> None:
        """Keep planar actions (n, 3) as twists for `step_wait`."""
        self.venv.step_async(twists(actions))

    def step_wait(self) -> Any:
        """Step the wrapped environments."""
        return self.venv.step_wait()


def twists(planar: NDArray) -> NDArray:
    """Planar actions (..., 3) as twists (..., 6) float32."""
    whole = np.zeros((*np.shape(planar)[:-1], 6), np.float32)
    whole[..., PLANAR] = planar
    return whole


class FrameFeatures(BaseFeaturesExtractor):
    """A features extractor for dict observations. With one image it is NatureCNN; with a goal image beside the frame it
    is `Shifts` of the two. Vectors are appended.

    Args:
        space: of the observations, images channels first.
    """

    def __init__(self, space: spaces.Dict):
        shapes = {name: part.shape or () for name, part in space.items()}
        self.images = [name for name, shape in shapes.items() if len(shape) == 3]
        self.vectors = [name for name in space if name not in self.images]
        # Stable-Baselines3 puts channels first
        look = Shifts() if len(self.images) == 2 else NatureCNN(cast(spaces.Box, space[self.images[0]]), 128)
        super().__init__(space, look.features_dim + sum(int(np.prod(shapes[name])) for name in self.vectors))
        self.look = look

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = self.look(*(observations[name] for name in self.images))
        return torch.cat([seen, *(observations[name].flatten(1) for name in self.vectors)], dim=1)


class Shifts(nn.Module):
    """Compares two frames (B, 3, H, W) in [0, 1]: the correlation of learned features at horizontal shifts, averaged
    over two by three regions of the frame (the correlation layer of FlowNet, Dosovitskiy et al. 2015). It returns (B,
    features_dim).

    The correlation shows what moved where, so that little is left to learn.

    Args:
        reach: largest shift, in pixels of the features (half of the frame's).
    """

    def __init__(self, reach: int = 12):
        super().__init__()
        self.reach, self.features_dim = reach, (2 * reach + 1) * 6
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        here, there = (self.features(picture - 0.5) for picture in (one, other))
        here, there = (F.normalize(f - f.mean((2, 3), keepdim=True), dim=1) for f in (here, there))
        there, width = F.pad(there, (self.reach, self.reach)), here.shape[3]
        alike = [(here * there[..., shift : shift + width]).sum(1) for shift in range(2 * self.reach + 1)]
        return 5 * F.adaptive_avg_pool2d(torch.stack(alike, 1), (2, 3)).flatten(1)


def fresh(settings: TrainPPO, envs: VecEnv) -> PPO:
    """An untrained model."""
    several = isinstance(envs.observation_space, spaces.Dict)
    looks = {"features_extractor_class": FrameFeatures} if several else {}
    return PPO(
        "MultiInputPolicy" if several else "CnnPolicy",
        envs,
        learning_rate=settings.learning_rate,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        ent_coef=settings.ent_coef,
        seed=settings.seed,
        device=settings.device,
        policy_kwargs=looks | {"log_std_init": settings.log_std},
        tensorboard_log=str(settings.out) if find_spec("tensorboard") else None,
    )


# --- checkpoints ---


class Keeper(BaseCallback):
    """A callback that shows progress, and saves a checkpoint before a rollout every `checkpoint_seconds` and at the
    end.
    """

    def __init__(self, settings: TrainPPO, envs: VecMonitor, history: list[dict[str, float]], progress: Progress):
        super().__init__()
        self.settings, self.envs, self.history, self.progress = settings, envs, history, progress
        self.kept = time.monotonic()

    def _on_training_start(self) -> None:
        self.bar = self.progress.add_task("", total=self.settings.steps, completed=self.num_timesteps)

    def _on_step(self) -> bool:
        self.progress.update(self.bar, completed=self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        episodes = [float(episode["r"]) for episode in self.model.ep_info_buffer or ()]
        if episodes:
            mean = sum(episodes) / len(episodes)
            entry = {"steps": self.num_timesteps, "return": mean}
            if reached := self.model.ep_success_buffer:
                entry["success"] = sum(map(float, reached)) / len(reached)
            self.history.append(entry)
            self.progress.update(self.bar, description=f"mean return {mean:.2f}")

    def _on_rollout_start(self) -> None:
        # here and not at the rollout's end: the policy has learnt from the one before
        if time.monotonic() - self.kept >= self.settings.checkpoint_seconds:
            self._keep()

    def _on_training_end(self) -> None:
        self._keep()

    def _keep(self) -> None:
        keep(self.settings.out, cast(PPO, self.model), self.envs, self.history)
        self.kept = time.monotonic()


def checkpoints(out: Path) -> list[Path]:
    """The folders of checkpoints, the newest last."""
    found = [folder for folder in out.glob("checkpoint_*") if folder.name.removeprefix("checkpoint_").isdecimal()]
    return sorted(found, key=lambda folder: int(folder.name.split("_")[1]))


def keep(out: Path, model: PPO, envs: VecMonitor, history: list[dict[str, float]]) -> None:
    """Save a checkpoint, whole or not at all, and delete older ones.

    A checkpoint holds the policy and its optimiser, the state of every episode (6 MB each in the nano world), and the
    states of the random generators.

    Raises:
        OSError: where it cannot be written.
    """
    folder = out / f"checkpoint_{model.num_timesteps}"
    if not folder.exists():
        kept = {
            "history": history,
            "returns": envs.episode_returns.tolist(),
            "lengths": envs.episode_lengths.tolist(),
            "steps": model.num_timesteps,
            "updates": model._n_updates,
            "starts": np.asarray(model._last_episode_starts).tolist(),
            "episodes": list(model.ep_info_buffer or ()),
            "successes": list(model.ep_success_buffer or ()),
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state(legacy=False),
        }
        with replacing_folder(folder) as part:
            try:
                model.save(part / "policy.zip")
            except RuntimeError as error:  # which is what torch makes of a full disk
                raise OSError(str(error).splitlines()[0]) from error
            for slot, snapshot in enumerate(cast(SB3VecEnv, envs.unwrapped).batch.snapshot()):
                snapshot.save(part / f"{slot}.safetensors")
            write_text(part / "run.json", json.dumps(kept, default=lambda value: value.tolist()))
    for older in checkpoints(out)[:-1]:
        remove(older)
    publish(out, folder, history)


def publish(out: Path, folder: Path, history: list[dict[str, float]]) -> None:
    """Copy policy.zip and progress.json from a checkpoint to the folder of the run."""
    with replacing_files(out, ("policy.zip", "progress.json")) as part:
        shutil.copyfile(folder / "policy.zip", part / "policy.zip")
        write_text(part / "progress.json", json.dumps(history))


def load(folder: Path, envs: VecMonitor, settings: TrainPPO) -> tuple[PPO, list[dict[str, float]]]:
    """Load a checkpoint. Nothing is unpickled.

    Args:
        folder: of the checkpoint.
        envs: set to the states of the checkpoint.
        settings: of the training.

    Returns:
        The model and the history of its returns.

    Raises:
        ValueError: for a checkpoint that is damaged or of other settings; the folder stays as it is.
    """
    batch = cast(SB3VecEnv, envs.unwrapped).batch
    parts = {"policy": "policy.pth", "policy.optimizer": "policy.optimizer.pth"}
    try:
        kept = read_run(folder / "run.json", batch.num_envs)
        weights = {name: read_weights(folder / "policy.zip", settings.device, member) for name, member in parts.items()}
        snapshots = [Snapshot.load(folder / f"{slot}.safetensors", batch.world) for slot in range(batch.num_envs)]
        model = fresh(settings, envs)
        model.set_parameters(cast(Any, weights), exact_match=True, device=settings.device)  # its type forgets a level
        seen, _ = batch.restore(snapshots)
        torch.set_rng_state(torch.tensor(kept.torch, dtype=torch.uint8))
    except (PermissionError, MemoryError):
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:  # torch and SB3 raise all of these
        raise ValueError(
            f"The checkpoint {folder} cannot be loaded: {reason(error)}. Delete it to train from the beginning, or "
            "give another --out."
        ) from error
    transposes = isinstance(model.env, VecTransposeImage)
    model._last_obs = model.env.transpose_observations(seen) if transposes else seen
    model._last_episode_starts = np.array(kept.starts)
    model.num_timesteps, model._n_updates = kept.steps, kept.updates
    most = model._stats_window_size
    model.ep_info_buffer, model.ep_success_buffer = deque(kept.episodes, most), deque(kept.successes, most)
    envs.episode_returns[:], envs.episode_lengths[:] = kept.returns, kept.lengths
    numpy, twister = kept.numpy, kept.numpy.state
    key = np.array(twister.key, np.uint32)
    np.random.set_state((numpy.bit_generator, key, twister.pos, numpy.has_gauss, numpy.gauss))
    return model, list(kept.history)


Whole = Annotated[int, Field(ge=0, le=2**53)]
Finite = int | Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Twister:
    """The state of NumPy's MT19937 generator."""

    key: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=624, max_length=624)]
    pos: Annotated[int, Field(ge=0, le=624)]


@dataclass(frozen=True, kw_only=True)
class Numpy:
    """The state of NumPy's global generator, as `numpy.random.get_state(legacy=False)` returns it."""

    bit_generator: Literal["MT19937"]
    state: Twister
    has_gauss: Annotated[int, Field(ge=0, le=1)]
    gauss: Finite


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a checkpoint's run.json.

    Raises:
        ValueError: for values that `keep` does not write.
    """

    history: tuple[dict[str, Finite], ...]
    episodes: tuple[dict[str, Finite], ...]
    returns: tuple[Finite, ...]
    lengths: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
    starts: tuple[bool, ...]
    successes: tuple[bool | Finite, ...]
    steps: Whole
    updates: Whole
    torch: tuple[Annotated[int, Field(ge=0, le=255)], ...]
    numpy: Numpy

    def __post_init__(self):
        for name, entries in (("history", ("steps", "return")), ("episodes", ("r", "l", "t"))):
            if wrong := [entry for entry in getattr(self, name) if not set(entries) <= set(entry)]:
                raise ValueError(f"{name} holds {brief(wrong[0])}")
        if len(self.torch) != len(torch.get_rng_state()):
            raise ValueError(f"the state of torch's random numbers has {len(self.torch)} bytes")


def read_run(path: Path, num_envs: int) -> Run:
    """Read run.json.

    Raises:
        OSError: where it cannot be read.
        ValueError: for contents that `keep` does not write for this number of episodes.
    """
    kept = read(Run, read_json(path, MAX_RUN_BYTES))
    for name in ("returns", "lengths", "starts"):
        if len(getattr(kept, name)) != num_envs:
            raise ValueError(f"{name} must be {num_envs}, one for each episode, got {len(getattr(kept, name))}")
    return kept


def check_run(settings: TrainPPO) -> None:
    """Write the settings of a new run, or compare them with those of the folder.

    Raises:
        ValueError: where settings differ that are not in `FREE`.
    """
    path, own = settings.out / "settings.json", {k: v for k, v in asdict(settings).items() if k not in FREE}
    text = json.dumps(own, indent=1, default=str) + "\n"
    if not path.exists():
        write_text(path, text)
        return
    with explaining(f"{path} cannot be read as the settings of a training"):
        other = differences(read_json(path, MAX_SETTINGS_BYTES), json.loads(text))
    if other:
        raise ValueError(f"{settings.out} holds a run with other settings: {other}. Give another --out, or delete it.")


def main() -> None:
    """Entry point of `python -m sanawm_env.agents.train_ppo`."""
    console, settings = literal_console(stderr=True), tyro.cli(TrainPPO, description=__doc__)
    stopped = f"Stopped. The same command continues from the newest checkpoint in {settings.out}."
    with ending_in_a_sentence("train_ppo", console, stopped):
        train_ppo(settings, console)


if __name__ == "__main__":
    main()
