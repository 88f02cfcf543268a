"""Policies of graded skill for `compare`, from blind ones to ones that navigate by frames alone.

A policy is a frozen value: it returns what it wants to remember, and gets it back at the next decision. `acts_on` says
what it reads: "nothing"; "odometry", the pose of the goal relative to the camera; or "images", the frames, and no pose
but that of the start. Only policies that act on images can act differently in a predicted world than in the truth, as
long as no wall stops the camera.

`Registration` reads frames without a network. It tries some hundred poses: it warps the old frame as though the scene
were a floor and a wall straight ahead, and takes the pose that fits best.
"""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sanawm_env.camera.twist import exp_se3
from sanawm_env.simulation.controllers import WALK_HIGH, WALK_LOW, Twist
from sanawm_env.world.images import resize_frames

PLANAR = (0, 2, 4)  # of a twist: sideways, forwards, turn
EYE = 1.5  # metres above the floor, of a level camera
SMALL = (12, 18)  # pixels of the frames that are compared
RADIAN_METRES = 0.5  # what a radian off the goal's rotation weighs
LOST = 0.8  # a fit that leaves so much of a frame's variance says nothing


@dataclass(frozen=True, eq=False)
class View:
    """What a policy may read at a decision.

    Attributes:
        frames: (F, H, W, 3) uint8 tensor of the last step; the start image alone (F = 1) before the first step.
        intrinsics: (4,) fx, fy, cx, cy in pixels of the frames.
        goal_image: (H, W, 3) uint8 tensor.
        goal: (4, 4) pose of the goal in the camera's axes, by odometry.
        controller: the meaning of actions.
    """

    frames: torch.Tensor
    intrinsics: NDArray
    goal_image: torch.Tensor
    goal: NDArray
    controller: Twist


Decision = tuple[NDArray | None, Any]
"""A twist (6,), or None to say that the goal is reached; and what to remember."""


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """The base class of policies.

    Attributes:
        name: of the policy.
        errors: share of decisions, from 0 to 1, that are replaced by a random planar twist.
        acts_on: what the policy reads, see the module's docstring.
    """

    name: str
    errors: float = 0.0
    acts_on: ClassVar[Literal["nothing", "odometry", "images"]]

    @property
    def stops(self) -> bool:
        """Whether the policy itself says that it has arrived. Episodes of other policies end when the task finds them
        at the goal.
        """
        return False

    def rng(self, seed: int) -> np.random.Generator:
        """A generator for one episode; a function of the seed and the policy's name, so the same in every world."""
        return np.random.default_rng([seed, zlib.crc32(self.name.encode())])

    def decide(self, view: View, memory: Any, rng: np.random.Generator) -> Decision:
        """The policy's decision, replaced by a random twist with probability `errors`.

        Args:
            view: what it may read.
            memory: None at the first decision, then what the last one returned.
            rng: from `rng`.
        """
        wrong, random = rng.random() < self.errors, twist(rng.uniform(-1, 1, 3))
        action, memory = self.act(view, memory, rng)
        return (random if wrong and action is not None else action), memory

    @abstractmethod
    def act(self, view: View, memory: Any, rng: np.random.Generator) -> Decision: ...


@dataclass(frozen=True, kw_only=True)
class Constant(Policy):
    """Always takes the same action.

    Attributes:
        planar: sideways, forwards and turn, in [-1, 1].
    """

    planar: tuple[float, float, float]
    acts_on = "nothing"

    def act(self, view, memory, rng):
        return twist(self.planar), None


@dataclass(frozen=True, kw_only=True)
class Drawn(Policy):
    """Takes random planar twists.

    Attributes:
        low: (3,) lower bounds.
        high: (3,) upper bounds.
    """

    low: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    high: tuple[float, float, float] = (1.0, 1.0, 1.0)
    acts_on = "nothing"

    def act(self, view, memory, rng):
        return twist(rng.uniform(self.low, self.high)), None


@dataclass(frozen=True, kw_only=True)
class Expert(Policy):
    """Knows the goal's pose, and takes the twist that ends nearest to it.

    Attributes:
        gain: factor of the twists.
        heading: whether the goal's rotation counts.
    """

    gain: float = 1.0
    heading: bool = True
    acts_on = "odometry"

    def act(self, view, memory, rng):
        return self.gain * moves(view.controller).toward(view.goal, self.heading), None


@dataclass(frozen=True, kw_only=True)
class Reckoning(Policy):
    """Knows the goal's pose at the start, and assumes that every action has its intended effect, also at walls."""

    acts_on = "nothing"

    def act(self, view, memory, rng):
        goal = view.goal if memory is None else memory
        action = moves(view.controller).toward(goal, heading=False)
        return action, np.linalg.inv(moves(view.controller).end(action)) @ goal


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Estimates how the camera moved between two frames.

    Attributes:
        wall: assumed distance of the wall ahead, metres.
        noise: standard deviation of noise added to both frames, of 255.
        blur: factor by which frames are reduced below `SMALL`.
    """

    wall: float = 2.5
    noise: float = 0.0
    blur: int = 1

    def small(self, frames: torch.Tensor, rng: np.random.Generator) -> NDArray:
        """Frames (F, H, W, 3) reduced to (F, h, w, 3) float32, with noise."""
        small = resize_frames(frames, SMALL[0] // self.blur, SMALL[1] // self.blur).cpu().numpy().astype(np.float32)
        return small + self.noise * rng.standard_normal(small.shape, np.float32)

    def __call__(self, old: NDArray, new: NDArray, grid: "Grid", pinhole: tuple[float, ...]) -> tuple[NDArray, float]:
        """The pose of one frame relative to another.

        Args:
            old: (h, w, 3) frame, from `small`.
            new: (h, w, 3) frame.
            grid: the poses to try.
            pinhole: fx, fy, cx, cy divided by the frame's width.

        Returns:
            The pose (4, 4) of `new` in the axes of `old`, and the share of the variance of `new` that it leaves
                unexplained.
        """
        poses, taps, shares, inside = warps(grid, pinhole, old.shape[:2], self.wall)
        flat = old.reshape(-1, 3)
        seen = sum(share[..., None] * flat[tap] for tap, share in zip(taps, shares, strict=True))  # (N, h w, 3)
        error = np.square(seen - new.reshape(-1, 3)).mean(-1)
        variance = np.square(new - new.mean((0, 1))).mean() + 1.0
        left = np.where(inside, error, variance).mean(1) / variance  # what is not seen is explained by nothing
        return poses[left.argmin()], float(left.min())


@dataclass(frozen=True)
class Grid:
    """The poses that a `Registration` tries.

    Attributes:
        sideways: first, last and number of positions to the right, metres.
        forwards: the same, forwards.
        turns: the same for turns to the right, degrees.
    """

    sideways: tuple[float, float, int]
    forwards: tuple[float, float, int]
    turns: tuple[float, float, int]

    @property
    def poses(self) -> NDArray:
        """(N, 4, 4) float64."""
        axes = [np.linspace(*axis) for axis in (self.sideways, self.forwards, self.turns)]
        x, z, degrees = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        poses = exp_se3(np.outer(np.radians(degrees), (0, 0, 0, 0, 1, 0)))
        poses[:, 0, 3], poses[:, 2, 3] = x, z
        return poses


GOAL = Grid((-1.0, 1.0, 5), (-0.4, 1.6, 6), (-45.0, 45.0, 13))  # of what is in sight
STRIDE = Grid((-0.6, 0.6, 7), (-0.6, 0.6, 13), (-16.0, 16.0, 9))  # of half a step


@lru_cache(32)
def warps(
    grid: Grid, pinhole: tuple[float, ...], size: tuple[int, int], wall: float
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """For each pose of a grid, where a pixel of the new frame comes from in the old one. The scene is a floor `EYE`
    metres below the old camera and a wall ahead of it.

    Args:
        grid: N poses.
        pinhole: fx, fy, cx, cy divided by the frame's width.
        size: height h and width w in pixels.
        wall: distance of the wall, metres.

    Returns:
        Poses (N, 4, 4); flat indices (4, N, h w) of the four pixels around the point in the old frame; their bilinear
        weights (4, N, h w); and whether the point is in front of the camera and inside the frame (N, h w).
    """
    (height, width), poses = size, grid.poses
    fx, fy, cx, cy = np.array(pinhole) * width
    v, u = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1).reshape(-1, 3)  # of the new camera
    rays = rays @ poses[:, :3, :3].transpose(0, 2, 1)  # (N, h w, 3), in the axes of the old one
    start = poses[:, None, :3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        to_wall, to_floor = (wall - start[..., 2]) / rays[..., 2], (EYE - start[..., 1]) / rays[..., 1]
        far = np.fmin(*(np.where(far > 0, far, np.nan) for far in (to_wall, to_floor)))
        points = start + far[..., None] * rays
        at = points[..., :2] / points[..., 2:] * (fx, fy) + (cx, cy)
        inside = (points[..., 2] > 0.05) & ((at >= 0) & (at < (width, height))).all(-1)
    x, y = (np.where(inside, at[..., i], 0).clip(0.5, most - 0.5) - 0.5 for i, most in enumerate((width, height)))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = (x - column).astype(np.float32), (y - row).astype(np.float32)
    corners = [(down, over) for down in (0, 1) for over in (0, 1)]
    taps = [np.minimum(row + down, height - 1) * width + np.minimum(column + over, width - 1) for down, over in corners]
    shares = [(below if down else 1 - below) * (right if over else 1 - right) for down, over in corners]
    return poses, np.stack(taps), np.stack(shares), inside


@dataclass(frozen=True, kw_only=True)
class Servo(Policy):
    """Finds the goal image's pose by registration and moves there. Where nothing fits, it turns.

    Attributes:
        reads: how frames are compared.
        likely: stops where the frame differs from the goal image by at most this share of its variance; None never
            stops.
        search: whether it turns where nothing fits.
    """

    reads: Registration = field(default=Registration())
    likely: float | None = None
    search: bool = True
    acts_on = "images"

    @property
    def stops(self):
        return self.likely is not None

    def act(self, view, memory, rng):
        goal, now = self.reads.small(torch.stack([view.goal_image, view.frames[-1]]), rng)
        if self.likely is not None and np.square(goal - now).mean() <= self.likely * (goal.var((0, 1)).mean() + 1):
            return None, memory
        pose, left = self.reads(now, goal, GOAL, pinhole(view))
        if left > LOST and self.search:
            return twist((0, 0, 1)), memory
        return moves(view.controller).toward(pose, heading=True), memory


@dataclass(frozen=True, kw_only=True)
class Climb(Policy):
    """Repeats its action while the frame becomes more like the goal image, and takes a random one otherwise.

    Attributes:
        reads: how frames are compared.
    """

    reads: Registration = field(default=Registration())
    acts_on = "images"

    def act(self, view, memory, rng):
        goal, now = self.reads.small(torch.stack([view.goal_image, view.frames[-1]]), rng)
        unlike, other = float(np.square(goal - now).mean()), twist(rng.uniform(WALK_LOW, WALK_HIGH))
        better = memory is not None and unlike < memory[1]
        action = memory[0] if better else other
        return action, (action, unlike)


@dataclass(frozen=True, kw_only=True)
class Odometer(Policy):
    """Knows the goal's pose at the start, and tracks it by visual odometry on two frames of each step.

    Attributes:
        reads: how frames are compared.
    """

    reads: Registration = field(default=Registration())
    trust: float = 1.0
    acts_on = "images"

    def act(self, view, memory, rng):
        if memory is None:
            goal, last = view.goal, self.reads.small(view.frames[-1:], rng)[-1]
        else:
            goal, last, _ = memory
            half = len(view.frames) // 2
            for now in self.reads.small(view.frames[[half - 1, len(view.frames) - 1]], rng):
                moved, _ = self.reads(last, now, STRIDE, pinhole(view))
                goal, last = np.linalg.inv(moved) @ goal, now
        action = moves(view.controller).toward(goal, heading=False)
        return action, (goal, last, action)


@dataclass(frozen=True, eq=False)
class Moves:
    """Where planar twists on a grid lead.

    Attributes:
        twists: (N, 6).
        ends: (N, 4, 4) poses after one step, in the camera's axes.
    """

    twists: NDArray
    ends: NDArray

    def toward(self, goal: NDArray, heading: bool) -> NDArray:
        """The twist that ends nearest to a pose (4, 4) in the camera's axes. heading: whether the rotation counts, with
        `RADIAN_METRES` per radian.
        """
        cost = np.linalg.norm(self.ends[:, :3, 3] - goal[:3, 3], axis=1)
        if heading:
            cosine = (np.einsum("nij,ij->n", self.ends[:, :3, :3], goal[:3, :3]) - 1) / 2
            cost = cost + RADIAN_METRES * np.arccos(np.clip(cosine, -1, 1))
        return self.twists[cost.argmin()]

    def end(self, action: NDArray) -> NDArray:
        """Where the twist nearest to an action (6,) leads, (4, 4)."""
        return self.ends[np.square(self.twists - action).sum(1).argmin()]


@lru_cache(8)
def moves(controller: Twist) -> Moves:
    """Planar twists on a grid of 5 x 9 x 9, and where each leads with this controller."""
    axes = np.linspace(-1, 1, 5), np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)
    twists = twist(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    ends = [controller.move(controller.start(), np.eye(4), action)[1][-1] for action in twists]
    return Moves(twists, np.stack(ends))


def turned(a: NDArray, b: NDArray) -> float:
    """The angle in degrees between the rotations of two poses (4, 4)."""
    return float(np.degrees(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()))


def twist(planar) -> NDArray:
    """A planar action (..., 3), sideways, forwards and turn, as a twist (..., 6) float32."""
    out = np.zeros((*np.shape(planar)[:-1], 6), np.float32)
    out[..., PLANAR] = planar
    return out


def pinhole(view: View) -> tuple[float, ...]:
    """Intrinsics fx, fy, cx, cy divided by the frame's width."""
    return tuple(float(number) for number in view.intrinsics / view.frames.shape[2])


BLIND = (
    Constant(name="forward", planar=(0, 0.6, 0)),
    Constant(name="turn", planar=(0, 0, 1)),
    Drawn(name="random"),
    Drawn(name="walk", low=WALK_LOW, high=WALK_HIGH),
)
SHARP, NOISY, COARSE, NEAR = Registration(), Registration(noise=25), Registration(blur=3), Registration(wall=1.0)


def image_nav_policies() -> tuple[Policy, ...]:
    """The policies that are compared on ImageNav."""
    return (
        *BLIND,
        *(Expert(name=f"expert, {errors:.0%} errors", errors=errors) for errors in (0, 0.1, 0.25, 0.5, 0.75)),
        *(Servo(name=f"servo, {errors:.0%} errors", errors=errors) for errors in (0, 0.25, 0.5)),
        Servo(name="servo, noise", reads=NOISY),
        Servo(name="servo, coarse", reads=COARSE),
        Servo(name="servo, wall at 1 m", reads=NEAR),
        Servo(name="servo that stops", likely=0.35),
        Servo(name="servo that stops early", likely=0.8),
        Climb(name="climb"),
    )


def point_nav_policies() -> tuple[Policy, ...]:
    """The policies that are compared on PointNav."""
    return (
        *BLIND,
        *(
            Expert(name=f"expert, {errors:.0%} errors", errors=errors, heading=False)
            for errors in (0, 0.1, 0.25, 0.5, 0.75)
        ),
        Expert(name="expert, half as fast", gain=0.5, heading=False),
        Reckoning(name="dead reckoning"),
        *(Odometer(name=f"visual odometry, {errors:.0%} errors", errors=errors) for errors in (0, 0.25, 0.5)),
        Odometer(name="visual odometry, noise", reads=NOISY),
        Odometer(name="visual odometry, coarse", reads=COARSE),
        Odometer(name="visual odometry, wall at 1 m", reads=NEAR),
    )
