"""What neither picture of a state shows is drawn at random, chunk by chunk.

One denoising step predicts the mean of all that could be there, so two seeds would differ by nothing. A small network
adds differences of colour, one for each cell and smooth between them, that a code of sixteen normal numbers decides, in
proportion to the share of the cell that is new. One code for all cells makes them differ together: another code is
another room, not noise. It is trained by a proper score of several codes at once (`training.unseen`), as the forecasts
of Alet et al. 2025 (FGN) are. SANA-WM has nothing of the kind.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.engines.sanawm.codec.patch_pca import TIME_STRIDE, PatchPCACodec

CODE = 16  # numbers of a code
REACH = 0.25  # that colours can differ from the prediction, of 0..1
WIDTH, BEFORE, AFTER = 64, 3, 2  # blocks before the code is known, and after


class UnseenSampler(nn.Module):
    """Adds a random difference to the latents of a chunk where nothing was seen.

    Args:
        codec: of the latents.
        frames: latent frames of a chunk.
    """

    means: Tensor
    offset: Tensor
    smooth: Tensor

    def __init__(self, codec: PatchPCACodec, frames: int):
        super().__init__()
        self.frames = frames
        means = codec.components.unflatten(1, (-1, 3)).mean(1) / codec.scale[:, None]
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("offset", codec.mean.unflatten(0, (-1, 3)).mean(0).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("smooth", _smooth(codec), persistent=False)
        self.enter = nn.Conv2d(frames * 4, WIDTH, 1)
        self.before = nn.ModuleList(_Block() for _ in range(BEFORE))
        self.code = nn.Sequential(nn.Linear(CODE, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH * AFTER))
        self.after = nn.ModuleList(_Block() for _ in range(AFTER))
        self.out = nn.Conv2d(WIDTH, frames * 3, 1)
        nn.init.normal_(self.out.weight, std=0.01)

    def forward(self, latents: Tensor, unseen: Tensor, code: Tensor, temperature: float = 1.0) -> Tensor:
        """The latents, with the difference in the chunk's own.

        Args:
            latents: (B, c, T, h, w), the start image's before those of the chunk where it opens a segment.
            unseen: (B, T, h, w), the share of each cell that is new, in 0..1.
            code: (B, 16), normal numbers.
            temperature: factor of the difference.
        """
        first = latents.shape[2] - self.frames
        chunk = latents[:, :, first:]
        found = temperature * self.differences(self.colours(chunk), unseen[:, first:], code[None])[0]
        found = F.conv3d(F.pad(found, (1,) * 6, mode="replicate"), self.smooth)
        return torch.cat((latents[:, :, :first], chunk + found.to(chunk.dtype)), dim=2)

    def colours(self, latents: Tensor) -> Tensor:
        """Mean colours (B, 3, T, h, w), in 0..1, of the cells of latents (B, c, T, h, w) that do not open a clip."""
        return torch.einsum("bcthw,ck->bkthw", latents, self.means.to(latents.dtype)).float() + self.offset

    def differences(self, given: Tensor, unseen: Tensor, codes: Tensor) -> Tensor:
        """Differences (K, B, 3, t, h, w) of colours (B, 3, t, h, w) for codes (K, B, 16)."""
        share = unseen[:, None].float()
        x = self.enter(torch.cat((2 * given - 1, share), dim=1).transpose(1, 2).flatten(1, 2))
        for block in self.before:
            x = block(x)
        x = x.repeat(len(codes), 1, 1, 1)
        modulations = self.code(codes.flatten(0, 1)).unflatten(1, (AFTER, 2, WIDTH))[..., None, None]
        for i, block in enumerate(self.after):
            x = block(x, *modulations[:, i].unbind(1))
        found = self.out(F.silu(x)).unflatten(1, (self.frames, 3)).transpose(1, 2)
        return REACH * share * found.tanh().unflatten(0, codes.shape[:2])


def _smooth(codec: PatchPCACodec) -> Tensor:
    """The latent (c) of a cell whose pixels are interpolated between the colours of the 27 cells around it, as weights
    (c, 3, 3, 3, 3) of these."""

    def taps(count: int) -> Tensor:
        unit = torch.eye(3, device=codec.mean.device)[None]
        return F.interpolate(unit, size=3 * count, mode="linear", align_corners=False)[0, :, count : 2 * count]

    parts = codec.components.view(-1, TIME_STRIDE, codec.stride, codec.stride, 3)
    parts = torch.einsum("ctyxk,dx->ctykd", parts, taps(codec.stride))
    parts = torch.einsum("ctykd,by->ctkbd", parts, taps(codec.stride))
    return torch.einsum("ctkbd,at->ckabd", parts, taps(TIME_STRIDE)) * codec.scale.view(-1, 1, 1, 1, 1)


class _Block(nn.Module):
    """Two convolutions with what the whole picture says between them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(8, WIDTH, affine=False)
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="replicate") for _ in range(2))
        self.whole = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0) -> Tensor:
        y = self.first(F.silu(self.norm(x) * (1 + scale) + shift))
        y = y + self.whole(F.silu(y).mean((2, 3)))[:, :, None, None]
        return x + self.second(F.silu(y))
