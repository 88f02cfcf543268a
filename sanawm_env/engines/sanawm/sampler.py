"""The few-step sampler (dit.md 12): plain Euler steps along the flow, then one clean pass that writes the state.

Self-forcing as in the official streaming pipeline: no re-noising and no shift of the step list. Latent frame 0 of an
episode is the start image: it always has timestep 0 and never moves. The official `chunk_flow_euler` of the teacher is
the same with many steps, chunk after chunk. It can also begin a chunk before the previous one is done, which an
environment cannot, because the actions are not known yet.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real

import torch
from torch import Tensor

from sanawm_env.engines.sanawm.network.context import Context
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.shortcuts import next_state
from sanawm_env.engines.sanawm.network.state import NetworkState
from sanawm_env.system.files import brief, check_choice, check_number


@dataclass(frozen=True)
class SamplerConfig:
    """How chunks are sampled.

    Attributes:
        timesteps: noise levels in 1..1000 as the network sees them, decreasing; the end point 0 is implied.
        guidance_scale: of classifier-free guidance, 1 for none; above 1 every batch is [unconditional, conditional].
        name: of the official sampler, "self_forcing_flow_euler" or "chunk_flow_euler", which make lists differently.
        flow_shift: that the list was made with, for the record.

    Raises:
        ValueError: for values out of range.
    """

    timesteps: tuple[int | float, ...] = (1000, 960, 889, 727)
    guidance_scale: float = 1.0
    name: str = "self_forcing_flow_euler"
    flow_shift: float | None = None

    def __post_init__(self):
        check_number("guidance_scale", self.guidance_scale, 0, 1000)
        t = self.timesteps
        if not isinstance(t, tuple) or len(t) > MAX_STEPS:
            raise ValueError(f"timesteps must be at most {MAX_STEPS} numbers, got {brief(t)}.")
        for step in t:
            check_number("each of the timesteps", step)
        if not t or any(not 0 < b < a for a, b in zip((1001, *t), t, strict=False)):
            raise ValueError(f"timesteps must decrease strictly within 1000..1, got {t}.")
        check_choice("name of a sampler", self.name, SAMPLERS)

    def with_steps(self, timesteps: tuple[float, ...] | None, flow_shift: float | None) -> "SamplerConfig":
        """The same sampler with another list.

        Args:
            timesteps: the list; None for as many steps as here with another shift.
            flow_shift: of the new list. With `timesteps` it is only recorded, because a list is shifted already.
        """
        if timesteps is None and flow_shift is not None:
            timesteps = SAMPLERS[self.name](len(self.timesteps), flow_shift)
        if timesteps is None or (timesteps == self.timesteps and flow_shift is None):
            return self
        return replace(self, timesteps=timesteps, flow_shift=flow_shift)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels in 0..1 with the closing 0."""
        return tuple(t / 1000 for t in (*self.timesteps, 0))


MAX_STEPS, MAX_SHIFT = 1000, 100


def check_timesteps(timesteps: Iterable[float]) -> tuple[float, ...]:
    """A step list as a tuple.

    Raises:
        TypeError: for anything but a list of numbers.
        ValueError: for numbers that do not decrease within 1..1000.
    """
    said = "timesteps must be numbers that decrease strictly within 1000..1, such as [1000, 967, 908, 764]"
    if isinstance(timesteps, str | bytes) or not isinstance(timesteps, Iterable):
        raise TypeError(f"{said}, got {brief(timesteps)}.")
    steps = tuple(islice(timesteps, MAX_STEPS + 1))
    if any(isinstance(t, bool) or not isinstance(t, Real) for t in steps):
        raise TypeError(f"{said}, got {brief(steps)}.")
    if not 0 < len(steps) <= MAX_STEPS or any(not 0 < b < a for a, b in zip((1000.5, *steps), steps, strict=False)):
        raise ValueError(f"{said}, got {brief(steps)}.")
    return tuple(int(t) if float(t).is_integer() else float(t) for t in steps)


def spaced_timesteps(steps: int, shift: float) -> tuple[float, ...]:
    """The list of a distilled model: even levels, shifted and rounded to whole numbers, as the official 1000, 960,
    889, 727 (shift 8, dit.md 12)."""
    even = [1 - i / steps for i in range(steps)]
    return tuple(round(1000 * shift * u / (1 + (shift - 1) * u)) for u in even)


def shifted_timesteps(steps: int, shift: float) -> tuple[float, ...]:
    """A step list from a number of steps and a flow shift, as diffusers' FlowMatchEulerDiscreteScheduler makes it:
    the shift is applied to the training schedule, and again to the spaced steps."""

    def warp(sigma: Tensor) -> Tensor:
        return shift * sigma / (1 + (shift - 1) * sigma)

    low = warp(torch.tensor(1 / 1000, dtype=torch.float64))
    return tuple((warp(torch.linspace(1, low.item(), steps, dtype=torch.float64)) * 1000).tolist())


SAMPLERS = {"self_forcing_flow_euler": spaced_timesteps, "chunk_flow_euler": shifted_timesteps}
"""Official samplers, and how each makes its list from a number of steps and a shift."""


@torch.no_grad()
def sample_chunk(
    model: SanaWM,
    noise: Tensor,
    context: Context,
    state: NetworkState | None,
    config: SamplerConfig,
    image_latent: Tensor | None = None,
    guess: tuple[Tensor, Tensor] | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, NetworkState]:
    """Sample one chunk. No argument is written to.

    Args:
        model: the network.
        noise: (B, c, T, H, W), unit normal.
        context: of this chunk; with guidance its batch is 2B, [unconditional, conditional].
        state: of the chunk before (batch 2B with guidance), None for the first.
        config: of the sampler.
        image_latent: (B, c, 1, H, W), the clean latent of frame 0; given exactly in an episode's first chunk.
        guess: mean (B, c, T, H, W) and spread (B, 1, T, H, W), of worlds that have a guess: the steps then move (x -
            mean) / spread. For the start image's frame they are 0 and 1.
        finish: of the latents, before they are written to the state; None to leave them as they are.

    Returns:
        Latents (B, c, T, H, W), and the next state.
    """
    x = noise
    active = torch.ones(x.shape[0], x.shape[2], device=x.device)
    if image_latent is not None:
        x = torch.cat((image_latent, noise[:, :, 1:]), dim=2)
        active[:, 0] = 0

    for sigma, below in zip(config.sigmas[:-1], config.sigmas[1:], strict=True):
        velocity = predict_velocity(model, x, active * sigma, context, state, config.guidance_scale)
        # in float32 at least, then back to the dtype of the latents (dit.md 12)
        x = (x - (active * (sigma - below))[:, None, :, None, None] * velocity).to(noise.dtype)
    if guess is not None:
        x = (guess[0] + guess[1] * x).to(noise.dtype)
    if finish is not None:
        x = finish(x)
    doubled = torch.cat((x, x)) if config.guidance_scale > 1 else x
    return x, next_state(model, doubled, context, state)


def predict_velocity(
    model: SanaWM,
    x: Tensor,
    sigmas: Tensor,
    context: Context,
    state: NetworkState | None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Flow velocity (noise - data). Frames at level 0 get arbitrary values, and must not be moved by them.

    Args:
        model: the network.
        x: (B, c, T, H, W), noisy latents.
        sigmas: (B, T), noise levels.
        context: of this chunk.
        state: of the chunk before, or None.
        guidance_scale: 1 for none.

    Returns:
        (B, c, T, H, W).
    """
    timesteps = sigmas * 1000
    if guidance_scale > 1:
        out, _ = model(torch.cat((x, x)), torch.cat((timesteps, timesteps)), context, state)
        unconditional, conditional = out.chunk(2)
        out = unconditional + guidance_scale * (conditional - unconditional)
    else:
        out, _ = model(x, timesteps, context, state)
    if model.config.prediction_type == "v_prediction":
        level = sigmas[:, None, :, None, None]
        return (x - data_from_v(x, out, level)) / level.clamp(min=1e-3)
    return out


def v_target(data: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """The v-prediction at x = (1 - sigma) data + sigma noise: the inverse of `data_from_v`."""
    return ((1 - sigmas) * noise - sigmas * data) / ((1 - sigmas).square() + sigmas.square()).sqrt()


def data_from_v(x: Tensor, v: Tensor, sigmas: Tensor) -> Tensor:
    """Clean latents from a v-prediction at x = (1 - sigma) data + sigma noise; sigmas broadcast against x."""
    square = (1 - sigmas).square() + sigmas.square()
    return ((1 - sigmas) * x - sigmas * square.sqrt() * v) / square
