"""The moving pictures of the README and of docs: `python benchmarks/media.py` (three minutes of one core).

docs/media/SanaWM-<Name>-v0.webp: an episode of each environment id in nano, 16 frames a second. Scripted cameras drive
in Walk, Explore and FollowPath, key combinations in ExplorePixels, the planner CEM in PointNav and ImageNav; Remote
shows four clients of one server. What the agent is told is drawn into the picture: a pole at the goal, dots along the
path (both reach down from the height of the camera), the goal's picture, the picture of 84 x 84.
docs/media/fork.webp: a walk, and four futures of its last state.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from harness import DOCS, console, parser
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sanawm_env.agents import cameras
from sanawm_env.agents.planners import CEM, ImageGoal, PointGoal

from sanawm_env import SanaWMEnv
from sanawm_env.camera.presets import WALKING_TURNS
from sanawm_env.camera.twist import hold
from sanawm_env.envs.config import EnvConfig
from sanawm_env.serving.server import Server
from sanawm_env.serving.service import Service

SIZE = 288, 192  # of a picture: 1.5 times nano's
BELOW = 0.45  # metres that poles and dots reach down
STILL = 8  # frames for which the end is shown
Draw = Callable[[Image.Image, SanaWMEnv, NDArray], None]
"""(picture, env, c2w (4, 4)): draws into a frame."""


# --- pictures ---


def large(frame: NDArray, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.asarray(frame)).resize(size, Image.Resampling.LANCZOS)


def save(pictures: Sequence[Image.Image], path: Path, quality: int) -> None:
    """An animated WebP at the world's rate, which begins anew for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [*pictures, *[pictures[-1]] * STILL]
    at = (1000 * np.arange(len(shown) + 1) / 16).round().astype(int)
    shown[0].save(
        path, save_all=True, append_images=shown[1:], duration=np.diff(at).tolist(), loop=0, quality=quality, method=4
    )
    console.print(f"{path.name}: {len(shown)} frames, {path.stat().st_size / 1e3:.0f} kB")


def label(picture: Image.Image, text: str, size: int = 13) -> None:
    """In the lower left corner."""
    font, at = ImageFont.load_default(size), (7, picture.height - 6)
    ImageDraw.Draw(picture).text(at, text, "white", font=font, anchor="ls", stroke_width=2, stroke_fill="#333")


def inset(picture: Image.Image, small: NDArray, size: tuple[int, int]) -> None:
    """In the upper right corner, with a frame."""
    framed = Image.new("RGB", (size[0] + 4, size[1] + 4), "white")
    framed.paste(large(small, size), (2, 2))
    picture.paste(framed, (picture.width - framed.width - 6, 6))


def mark(picture: Image.Image, env: SanaWMEnv, c2w: NDArray, point: NDArray, pole: bool) -> None:
    """A pole or a dot below a point (3,), metres in the episode's world frame; nothing if it is behind the camera."""
    ends = [c2w[:3, :3].T @ (point + np.array([0, down, 0]) - c2w[:3, 3]) for down in (0, BELOW)]
    if min(z for *_, z in ends) < 0.2:
        return
    fx, fy, cx, cy = env.scene.intrinsics * picture.width / env.world.config.width
    (x0, y0), (x1, y1) = [(fx * x / z + cx, fy * y / z + cy) for x, y, z in ends]
    radius, pen = min(12.0, 9 / ends[0][2]), ImageDraw.Draw(picture)
    if pole:
        pen.line((x0, y0, x1, y1), "#ffd23f", max(2, round(radius / 3)))
        x1, y1 = x0, y0
    pen.ellipse((x1 - radius, y1 - radius, x1 + radius, y1 + radius), "#ffd23f", "#7a5c00")


# --- episodes ---


def make(name: str, start: str, seed: int = 0, task: dict[str, Any] | None = None) -> SanaWMEnv:
    """The environment of an id, reset to a start image of nano."""
    env = cast(SanaWMEnv, gym.make(f"SanaWM/{name}-v0", world="nano").unwrapped)
    env.reset(seed=seed, options={"scene": scene(env, start)} | ({} if task is None else {"task": task}))
    return env


def scene(env: SanaWMEnv, start: str) -> int:
    return [path.stem for path in env.world.starts].index(start)


def scripted(env: SanaWMEnv, camera: str, chunks: int) -> Iterator[NDArray]:
    return cameras.actions(cameras.parse(camera).poses(24 * chunks + 1), env)


def planned(env: SanaWMEnv, objective: Any, axes: tuple[int, ...], steps: int = 6) -> Iterator[NDArray]:
    planner, plan = CEM(horizon=2, candidates=10, iterations=1, elites=3, axes=axes), None
    rng = np.random.default_rng(0)
    for _ in range(steps):
        action, plan = planner.act(env, objective, rng, plan)
        yield action


def episode(env: SanaWMEnv, actions: Iterable[Any], draw: Draw | None = None) -> list[Image.Image]:
    """The frames of an episode that has been reset, until it or the actions end; with what it has earned before a
    step, where its task pays."""
    pictures, earned = [], 0.0
    for action in actions:
        _, reward, terminated, truncated, _ = env.step(action)
        earned += float(reward)
        for frame, c2w in zip(env.clip.frames, env.clip.c2w, strict=True):
            pictures.append(large(frame))
            if draw:
                draw(pictures[-1], env, c2w)
            if env.task.reward_range != (0.0, 0.0):
                label(pictures[-1], f"return {earned:.0f}" if earned == round(earned) else f"return {earned:.2f}")
        if terminated or truncated:
            break
    return pictures


def walk() -> list[Image.Image]:
    env = make("Walk", "court_10")
    return episode(env, scripted(env, "look-around:degrees=80", 5))


def explore() -> list[Image.Image]:
    env = make("Explore", "court_09")
    return episode(env, scripted(env, "orbit:radius=2.5,degrees=90,speed=0.4", 5))


def explore_pixels() -> list[Image.Image]:
    env = make("ExplorePixels", "gallery_15")
    keys = ("w", "d", "w", "a", "a")

    def draw(picture: Image.Image, env: SanaWMEnv, c2w: NDArray) -> None:
        inset(picture, env.observation["rgb"] if isinstance(env.observation, dict) else env.observation, (84, 84))

    return episode(env, [[set(held) for held in WALKING_TURNS].index(set(held)) for held in keys], draw)


def point_nav() -> list[Image.Image]:
    env = make("PointNav", "gallery_15", task={"goal": [0.3, 0.0, 2.3]})
    goal = env.episode.task_state.c2w[:3, 3]
    return episode(env, planned(env, PointGoal(goal), (2, 4)), lambda *now: mark(*now, goal, pole=True))


def image_nav() -> list[Image.Image]:
    env = make("ImageNav", "court_10", task={"chunks": 1})
    goal = env.episode.task_state.image
    return episode(env, planned(env, ImageGoal(goal), (0, 2, 4)), lambda picture, *_: inset(picture, goal, (90, 60)))


def follow_path() -> list[Image.Image]:
    path = [np.eye(4)]
    for turn in (0.04, 0.04, -0.04, -0.08, -0.08):
        path.extend(hold(path[-1], [0, 0, 0.4, 0, turn, 0]))
    env = make("FollowPath", "corridor_10", task={"path": (path := np.array(path))})

    def draw(picture: Image.Image, env: SanaWMEnv, c2w: NDArray) -> None:
        for point in path[::-8, :3, 3]:  # near ones over far ones
            mark(picture, env, c2w, point, pole=False)

    return episode(env, cameras.actions(path, env), draw)


def remote() -> list[Image.Image]:
    starts = {"court_10": 0.3, "court_09": -0.3, "gallery_15": 0.3, "corridor_10": -0.3}
    half = SIZE[0] // 2, SIZE[1] // 2
    sheets = [Image.new("RGB", SIZE) for _ in range(24 * 4)]
    with Server(Service(EnvConfig(world="nano", task="none"))) as server:
        for i, (start, turn) in enumerate(starts.items()):
            env = cast(SanaWMEnv, gym.make("SanaWM/Remote-v0", url=server.url).unwrapped)
            env.reset(seed=i, options={"scene": scene(make("Walk", start), start)})
            frames = []
            for _ in range(4):
                env.step(np.array([0, 0, 0.2, 0, turn, 0], np.float32))
                frames.extend(env.clip.frames)
            for sheet, frame in zip(sheets, frames, strict=True):
                sheet.paste(large(frame, half), (i % 2 * half[0], i // 2 * half[1]))
            env.close()
    return sheets


def fork() -> list[Image.Image]:
    """Twice as large."""
    size = 2 * SIZE[0], 2 * SIZE[1]
    env = make("Walk", "court_10")
    pictures = []
    for action in scripted(env, "look-around:degrees=80", 2):
        env.step(action)
        pictures += [large(frame, size) for frame in env.clip.frames]
    for picture in pictures:
        label(picture, "env.step(action)", 22)
    here = env.snapshot()
    futures = {"left": (-0.3, -0.8), "right": (0.3, 0.8), "strafe left": (-0.6, 0.2), "strafe right": (0.5, -0.1)}
    sheets = [Image.new("RGB", size) for _ in range(24 * 3)]
    for i, (name, (sideways, turn)) in enumerate(futures.items()):
        env.restore(here)
        frames = []
        for _ in range(3):
            env.step(np.array([sideways, 0, 0, 0, turn, 0], np.float32))
            frames.extend(env.clip.frames)
        for sheet, frame in zip(sheets, frames, strict=True):
            future = large(frame)
            label(future, name, 16)
            sheet.paste(future, (i % 2 * SIZE[0], i // 2 * SIZE[1]))
    return pictures + sheets


MEDIA = {
    "SanaWM-Walk-v0": walk,
    "SanaWM-Explore-v0": explore,
    "SanaWM-ExplorePixels-v0": explore_pixels,
    "SanaWM-PointNav-v0": point_nav,
    "SanaWM-ImageNav-v0": image_nav,
    "SanaWM-FollowPath-v0": follow_path,
    "SanaWM-Remote-v0": remote,
    "fork": fork,
}


def main() -> None:
    options = parser(__doc__, quick=False, json=False)
    options.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(MEDIA)}; all if none")
    options.add_argument("--out", type=Path, default=DOCS / "media", help="folder; docs/media if not given")
    options.add_argument("--quality", type=int, default=55, help="of WebP, 0 to 100")
    given = options.parse_args()
    if unknown := sorted(set(given.names) - set(MEDIA)):
        options.error(f"there is no picture {unknown[0]}: they are {', '.join(MEDIA)}")
    torch.set_num_threads(1)
    for name in given.names or MEDIA:
        save(MEDIA[name](), given.out / f"{name}.webp", given.quality)


if __name__ == "__main__":
    main()
