"""An episode as a folder that can be watched, learned from, and predicted again bit for bit.

    start.png         the start image as the world's frame, with its anchor if it has one
    video.mp4         F = 24 n + 1 frames: the start image and n chunks
    trajectory.npz    c2w (F, 4, 4), intrinsics (F, 3, 3) in pixels of the video, fps, num_frames
    actions.npz       actions (n, ...), rewards (n,), terminated (n,), truncated (n,); twists (F, 6) float32
    meta.json         what decides the episode: world and hash of its weights, settings, seed, prompt, actions,
                      versions; if the prompt changes, `prompts`: pairs of a step and the text from there on

twists[f] is the body twist (right, down, forward in m/s, then rad/s about the same axes) from frame f to frame f + 1;
the last one is zero.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from scipy.spatial.transform import RigidTransform

from sanawm_env.camera.intrinsics import intrinsics_matrix
from sanawm_env.camera.trajectory import Trajectory, load_trajectory
from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.metrics.image import psnr
from sanawm_env.recording.rollout import (
    META,
    SHEET,
    TRAJECTORY,
    VIDEO,
    RolloutWriter,
)
from sanawm_env.recording.video import iterate_video, read_video
from sanawm_env.system.arrays import load_arrays
from sanawm_env.system.files import brief, explaining, file_sha256, read_json
from sanawm_env.system.settings import read
from sanawm_env.system.signals import postponed
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.folders import world_address
from sanawm_env.world.images import fit_image, save_start
from sanawm_env.world.saved import MAX_BATCH, MAX_SEED
from sanawm_env.world.threads import MAX_THREADS, with_torch_threads, world_threads

START, ACTIONS = "start.png", "actions.npz"
FILES = (START, VIDEO, TRAJECTORY, ACTIONS, META)
SCHEMA = 1
MAX_META_BYTES, MAX_FRAMES = 64 * 2**20, 10**8
MAX_COMPANY = 256  # that an episode is predicted again in


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What `meta.json` must hold besides its schema and the actions; it may hold more.

    Attributes:
        world: name or folder.
        weights_hash: of the world.
        env: keywords of the environment.
        seed: of the episode.
        prompt: of the start.
        intrinsics: fx, fy, cx, cy in pixels of the world's frames.
        action_dtype: NumPy's name for the dtype of actions.
        batch: for each step, the row in the batch it was predicted in, and the size of that batch.
        fps: frames per second.
        num_frames: frames of the video.
        frames_sha256: of all frames before they were encoded.
        versions: of libraries.
        device: "cpu" or "cuda".
        threads: of torch.
        video: settings of `VideoWriter`.
        prompts: numbers of the steps before which the prompt changed, and the new prompts.

    Raises:
        ValueError: for values out of range.
    """

    world: str
    weights_hash: str
    env: Mapping[str, Any]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    prompt: str
    intrinsics: tuple[float, ...]
    action_dtype: str
    batch: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(le=MAX_BATCH)]], ...]
    fps: Annotated[float, Field(ge=0.01, le=1000)]
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    frames_sha256: str
    versions: Mapping[str, Any]
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None
    video: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[tuple[Annotated[int, Field(ge=0)], str], ...] = ()

    def __post_init__(self):
        if not re.fullmatch("bool|u?int(8|16|32|64)|float(16|32|64)", self.action_dtype):
            raise ValueError(f"its action_dtype is {brief(self.action_dtype)}")
        if wrong := [pair for pair in self.batch if pair[0] >= pair[1]]:
            raise ValueError(f"batch must be of rows below sizes, got {brief(wrong[0])}")
        if any(step >= len(self.batch) for step, _ in self.prompts):
            raise ValueError(f"prompts must be of steps below {len(self.batch)}, got {brief(self.prompts)}")


class Step(NamedTuple):
    """The result of one step of an environment.

    Attributes:
        frames: (F, H, W, 3) uint8.
        c2w: (F, 4, 4).
        action: as an array.
        reward: of the step.
        terminated: whether the task ended the episode.
        truncated: whether a limit ended the episode.
        batch_row: the row in the batch that the step was predicted in, and the size of that batch.
        prompt: of the step; None for that of the step before.
    """

    frames: np.ndarray
    c2w: np.ndarray
    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    batch_row: tuple[int, int]
    prompt: str | None = None

    @classmethod
    def of(cls, env: SanaWMEnv, action: Any, reward: float) -> "Step":
        """The step that `env` has just taken."""
        return cls(*env.clip, np.asarray(action), float(reward), *env.ended, env.batch_row, env.scene.prompt)


class EpisodeWriter(RolloutWriter):
    """A context manager that writes the episode of an environment that has just been reset.

    Leaving the block for any reason keeps the steps that are complete. `add` may be called from any one thread, because
    the environment is read by the constructor only.

    Args:
        out_dir: folder of the episode, made if missing.
        env: an environment after its reset.
        config: settings of the environment for meta.json: `env.config`, or the keywords that made it.
        seed: the seed that `begin` was given.
        meta: further entries for meta.json.
        options: "sheet" and the settings of the video, as of `RolloutWriter`.

    Raises:
        TypeError: for a config whose world is a loaded one.
        OSError: as `RolloutWriter`.
    """

    names = (VIDEO, TRAJECTORY, ACTIONS, START, SHEET, META)
    hashed = (START, VIDEO, TRAJECTORY, ACTIONS)

    def __init__(
        self,
        out_dir: str | os.PathLike,
        env: SanaWMEnv,
        config: EnvConfig | Mapping[str, Any],
        seed: int,
        meta: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        world, scene = env.world, env.state.slots[0].scene
        config = config if isinstance(config, EnvConfig) else EnvConfig.from_plain(config)
        made = replace(config, scenes=None).to_plain()
        self._image, self._anchor, self._pinhole = scene.image, scene.anchor, intrinsics_matrix(scene.intrinsics)
        self._steps: list[tuple[Any, ...]] = []
        self._prompt, self._prompts = scene.prompt, []
        facts = {
            "schema": SCHEMA,
            "world": world_address(made["world"]),
            "weights_hash": world.weights_hash,
            "mode": world.mode,
            "device": world.device.type,
            "threads": world_threads(world.options.threads),
            "env": {name: value for name, value in made.items() if name not in ("world", "device")},
            "seed": seed,
            "prompt": scene.prompt,
            "scene": scene.key,
            "intrinsics": scene.intrinsics,
            "anchor": None if scene.anchor is None else json.loads(scene.anchor.to_json()),
        }
        said = {name: value for name, value in dict(meta or {}).items() if name not in facts}
        super().__init__(out_dir, world.config.fps, facts | said, **options)

    @property
    def chunks(self) -> int:
        """Steps so far."""
        return len(self._steps)

    def add(self, step: Step) -> None:
        """Append a step. Ctrl-C takes effect after the step is whole. Raises as `RolloutWriter.append`."""
        with postponed():
            if not self._steps:
                self.append(self._image[None], np.eye(4)[None], self._pinhole)
            self.append(step.frames, step.c2w, self._pinhole)
            if step.prompt not in (None, self._prompt):
                self._prompt = step.prompt
                self._prompts.append([len(self._steps), step.prompt])
            self._steps.append((step.action, step.reward, step.terminated, step.truncated, step.batch_row))

    def __exit__(self, exception_type, *rest) -> None:
        if not self._steps:
            self._video.discard()
        super().__exit__(exception_type, *rest)

    def _write(self, folder: Path, interrupted: bool) -> None:
        *columns, batch_rows = zip(*self._steps, strict=True)
        actions, rewards, terminated, truncated = map(np.array, columns)
        np.savez_compressed(
            folder / ACTIONS, actions=actions, rewards=rewards, terminated=terminated, truncated=truncated,
            twists=body_twists(self._poses(), self.fps),
        )  # fmt: skip
        save_start(self._image, self._anchor, folder / START, optimize=False)
        self.meta |= {
            "chunks": len(self._steps),
            "return": rewards.sum(),
            "terminated": terminated[-1],
            "truncated": truncated[-1],
            "actions": actions,
            "action_dtype": actions.dtype.name,
            "batch": batch_rows,
        }
        if self._prompts:
            self.meta["prompts"] = self._prompts
        else:
            self.meta.pop("prompts", None)
        super()._write(folder, interrupted)


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """An episode on disk. Its arrays are read when they are asked for.

    Attributes:
        folder: of the episode.
        meta: contents of `meta.json`.
    """

    folder: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "RecordedEpisode":
        """The episode in a folder.

        Raises:
            FileNotFoundError: where there is no meta.json.
            ValueError: for a meta.json that is damaged or of another schema.
        """
        folder = Path(folder)
        path = folder / META
        if not path.exists():
            raise FileNotFoundError(f"There is no episode in {folder}: an episode is a folder with {', '.join(FILES)}.")
        with explaining(f"{path} does not describe an episode"):
            meta = read_json(path, MAX_META_BYTES)
            if meta.get("schema") != SCHEMA:
                raise ValueError(f"it has schema {brief(meta.get('schema'))}, this version reads {SCHEMA}")
            actions = meta.get("actions")
            known = read(Meta, {name: value for name, value in meta.items() if name != "actions"}, others=True)
            if not isinstance(actions, list) or len(actions) != len(known.batch):
                raise ValueError("it must hold a list of actions, and as many pairs of row and size in batch")
        return cls(folder, meta)

    def frames(self) -> np.ndarray:
        """Decode the video: (F, H, W, 3) uint8. Raises as `read_video`."""
        return read_video(self.folder / VIDEO)

    def trajectory(self) -> Trajectory:
        """The camera path. Raises as `load_trajectory`."""
        return load_trajectory(self.folder / TRAJECTORY)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `actions.npz` by name, see the module's docstring.

        Raises:
            FileNotFoundError: where the file is missing.
            ValueError: for a damaged file, or arrays with other lengths than meta.json says.
        """
        names = {"actions": self.chunks, "rewards": self.chunks, "terminated": self.chunks, "truncated": self.chunks,
                 "twists": self.meta["num_frames"]}  # fmt: skip
        arrays = load_arrays(self.folder / ACTIONS, names)
        for name, length in names.items():
            if name not in arrays or arrays[name].ndim < 1 or len(arrays[name]) != length:
                raise ValueError(f"{self.folder / ACTIONS} must hold {length} {name}.")
        return arrays

    @property
    def chunks(self) -> int:
        """Steps of the episode."""
        return len(self.meta["actions"])

    @property
    def config(self) -> EnvConfig:
        """The settings of its environment.

        Raises:
            ValueError: for settings that no environment has.
        """
        meta = self.meta
        with explaining(f"{self.folder / META} does not describe an environment", (TypeError, ValueError)):
            return EnvConfig.from_plain({"world": meta["world"], "device": meta.get("device", "cpu"), **meta["env"]})

    def environment(self, world: str | None = None, device: str | None = None) -> SanaWMEnv:
        """The environment of the episode, reset to its start.

        Args:
            world: name or folder, if the world is elsewhere now; None as recorded.
            device: of the world; None as recorded.

        Raises:
            ValueError: for a world with other weights, another start image, and as `SanaWMEnv` and its reset.
            FileNotFoundError: for a start image or a world that is missing.
        """
        meta = self.meta
        config = replace(self.config, world=world or meta["world"])
        made = SanaWMEnv(**replace(config, device=device or config.device).keywords)
        if made.world.weights_hash != meta["weights_hash"]:
            raise ValueError(
                f"{self.folder} was predicted by other weights ({meta['world']}, {meta['weights_hash'][:12]}) than "
                f"these ({made.world.weights_hash[:12]}): give the world it was recorded in."
            )
        start = self.folder / START
        image = start if start.is_file() else meta.get("source")
        if not isinstance(image, str | os.PathLike):
            raise FileNotFoundError(f"The start image {start} does not exist: restore the file.")
        config, anchor = made.world.config, meta.get("anchor")
        begin(
            made,
            fit_image(image, config.height, config.width),  # the intrinsics are in its pixels
            meta["seed"],
            prompt=meta["prompt"],
            intrinsics=np.array(meta["intrinsics"], float),
            anchor=None if anchor is None else Anchor.from_json(json.dumps(anchor)),
        )
        if made.state.slots[0].scene.key != meta.get("scene"):
            raise ValueError(
                f"The start image {image} is not the one that {self.folder} was recorded with: restore that file."
            )
        return made

    def replay(
        self, out_dir: str | os.PathLike | None = None, world: str | None = None, device: str | None = None
    ) -> Iterator[Step]:
        """Predict the episode again, in batches of the recorded shapes and with the recorded number of threads.

        Args:
            out_dir: folder where the episode is written again; None writes nothing.
            world: as for `environment`.
            device: as for `environment`.

        Yields:
            Each `Step`.

        Raises:
            ValueError: for an episode from a batch of more than `MAX_COMPANY`, and as `environment`.
            OSError: as `EpisodeWriter`.
        """
        meta = self.meta
        if (most := max(size for _, size in meta["batch"])) > MAX_COMPANY:
            raise ValueError(
                f"{self.folder} was predicted in a batch of {most}; batches of up to {MAX_COMPANY} can be repeated."
            )
        how = {"sheet": False, **meta.get("video", {})}
        with ExitStack() as stack:
            stack.enter_context(with_torch_threads(meta.get("threads")))
            env, writer = self.environment(world, device), None
            if out_dir is not None:
                writer = stack.enter_context(EpisodeWriter(out_dir, env, self.config, meta["seed"], meta, **how))
                writer.meta["env"] = meta["env"]  # in the words of then
            prompts = dict(meta.get("prompts", []))
            for i, (action, (row, size)) in enumerate(zip(meta["actions"], meta["batch"], strict=True)):
                if i in prompts:
                    env.set_prompt(prompts[i])
                action = np.asarray(action, meta["action_dtype"])
                episodes, transition = env.simulator.step([env.episode] * size, [action] * size)
                env.episode = episodes[row]
                step = Step.of(env, action, transition.rewards[row])
                if writer is not None:
                    writer.add(step)
                yield step


def differences(a: RecordedEpisode, b: RecordedEpisode) -> list[str]:
    """What differs between two episodes, a sentence each; an empty list if all files are the same, byte for byte."""
    changed = [name for name in FILES if file_sha256(a.folder / name) != file_sha256(b.folder / name)]
    if not changed:
        return []
    found = [f"{', '.join(changed)} differ"]
    if a.meta["frames_sha256"] == b.meta["frames_sha256"]:
        found.append("all frames are the same")
    else:
        with suppress(ValueError):
            pairs = zip(iterate_video(a.folder / VIDEO), iterate_video(b.folder / VIDEO), strict=True)
            found.append(f"frames differ; the least alike of the two videos have {min(psnr(*p) for p in pairs):.1f} dB")
    was, now = ({**each.meta["versions"], **{n: each.meta.get(n) for n in ("device", "threads")}} for each in (a, b))
    return found + [f"{name} was {was[name]} and is {now.get(name)}" for name in was if now.get(name) != was[name]]


def begin(env: SanaWMEnv, image: Any, seed: int, **options: Any) -> None:
    """Reset an environment to a start image, with one seed for the noise and for what the task draws.

    Args:
        env: to reset.
        image: a start image, as the option "scene" of `SanaWMEnv.reset`.
        seed: of the episode.
        options: further options of `SanaWMEnv.reset`.

    Raises:
        ValueError: as `SanaWMEnv.reset`.
    """
    env.reset(seed=seed, options={"scene": image, "seed": seed} | options)


def body_twists(c2w: np.ndarray, fps: float) -> np.ndarray:
    """The constant body twist (v, w) from each pose (F, 4, 4) to the next: (F, 6) float32, m/s and rad/s; zero for the
    last.
    """
    steps = RigidTransform.from_matrix(np.linalg.inv(c2w[:-1]) @ c2w[1:]).as_exp_coords()  # rotation first
    return np.concatenate((np.roll(steps, 3, axis=-1) * fps, np.zeros((1, 6)))).astype(np.float32)
