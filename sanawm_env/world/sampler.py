"""The few-step sampler (dit.md 12): plain Euler steps along the flow, then one clean pass that writes the state.

Self-forcing as in the official streaming pipeline: no re-noising and no shift of the step list. Latent frame 0 of an
episode is the start image: it is always fed with timestep 0 and never moves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sanawm_env.network.model import Context, SanaWM
from sanawm_env.network.state import NetworkState


@dataclass(frozen=True)
class SamplerConfig:
    """timesteps: noise levels in 1..1000, decreasing; the end point 0 is implied. guidance_scale: classifier-free
    guidance, 1 for none; above 1 every batch is [unconditional, conditional]."""

    timesteps: tuple[float, ...] = (1000, 960, 889, 727)
    guidance_scale: float = 1.0

    def __post_init__(self):
        t = self.timesteps
        if not t or any(not 0 < b < a for a, b in zip((1001, *t), t, strict=False)):
            raise ValueError(f"timesteps must decrease strictly within 1000..1, got {t}.")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels in 0..1 with the closing 0."""
        return tuple(t / 1000 for t in (*self.timesteps, 0))


def shifted_timesteps(steps: int, shift: float) -> tuple[float, ...]:
    """A step list from a number of steps and a flow shift, as diffusers' FlowMatchEulerDiscreteScheduler makes it: the
    shift is applied to the training schedule and again to the spaced steps."""

    def warp(sigma: Tensor) -> Tensor:
        return shift * sigma / (1 + (shift - 1) * sigma)

    low = warp(torch.tensor(1 / 1000, dtype=torch.float64))
    return tuple((warp(torch.linspace(1, low.item(), steps, dtype=torch.float64)) * 1000).tolist())


@torch.inference_mode()
def sample_chunk(
    model: SanaWM,
    noise: Tensor,
    context: Context,
    state: NetworkState | None,
    config: SamplerConfig,
    image_latent: Tensor | None = None,
) -> tuple[Tensor, NetworkState]:
    """Imagine one chunk.

    Args:
        noise: (B, c, T, H, W), unit normal.
        context: of this chunk; with guidance its batch is 2B, [unconditional, conditional].
        state: left by the chunk before (batch 2B with guidance), None for the first.
        image_latent: (B, c, 1, H, W), the clean latent of frame 0; given exactly in an episode's first chunk.

    Returns: latents (B, c, T, H, W) and the next state. No input is written to.
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
    doubled = torch.cat((x, x)) if config.guidance_scale > 1 else x
    clean = torch.zeros(doubled.shape[0], device=x.device)
    _, state = model(doubled, clean, context, state, save=True, predict=False)
    return x, state


def predict_velocity(
    model: SanaWM,
    x: Tensor,
    sigmas: Tensor,
    context: Context,
    state: NetworkState | None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Flow velocity (noise - data) at x (B, c, T, H, W) with noise level sigmas (B, T); frames at level 0 get
    whatever the network says and must not be moved by it."""
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
    """What a v-prediction should be at x = (1 - sigma) data + sigma noise: the inverse of `data_from_v`."""
    return ((1 - sigmas) * noise - sigmas * data) / ((1 - sigmas).square() + sigmas.square()).sqrt()


def data_from_v(x: Tensor, v: Tensor, sigmas: Tensor) -> Tensor:
    """Clean latents from a v-prediction at x = (1 - sigma) data + sigma noise; sigmas broadcast against x."""
    square = (1 - sigmas).square() + sigmas.square()
    return ((1 - sigmas) * x - sigmas * square.sqrt() * v) / square
