"""Worlds whose quality is known: one that is the renderer itself, and one in which nothing ever moves."""

import dataclasses

import numpy as np
import torch

from sanawm_env.engines.rooms.places import place
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.sanawm.codec.patch_pca import PATCH, PatchPCACodec
from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.world.engine import Chunk, Engine

SMALL = dataclasses.replace(NANO_SMALL, height=32, width=48)


class TruthEngine(Engine):
    """A world that is the renderer, seen through a codec."""

    config, device, capabilities = SMALL, torch.device("cpu"), frozenset({"images"})

    def __init__(self, codec):
        self.codec = codec

    def encode(self, image, prompt, anchor):
        return self.codec.encode(torch.tensor(image)[None, None])

    def start_latents(self, conditions):
        return conditions

    def see(self, slot, poses):
        scene = slot.scene
        lens, size = intrinsics(*scene.image.shape[:2]), scene.image.shape[:2]
        return render(place(scene.anchor.place), scene.anchor.c2w @ poses, lens, *size, depth=False)[0]

    def advance(self, slots, memory, poses):
        latents, first = [], slots[0].first
        for slot, path in zip(slots, poses.numpy(), strict=True):
            frames = np.concatenate((slot.scene.image[None], self.see(slot, path)))
            latents.append(self.codec.encode(torch.from_numpy(frames)[None])[:, :, int(slot.chunk > 0) :])
        latents = torch.cat(latents)
        frames = self.codec.decode(latents, first=first)[:, int(first) :]
        return Chunk(frames, None, latents[:, :, int(first) :])


class HoldEngine(TruthEngine):
    """A world in which nothing ever moves."""

    def see(self, slot, poses):
        return np.repeat(slot.scene.image[None], len(poses), axis=0)


def lossy_codec():
    """Every frame as means of 4 x 4 pixels."""
    codec = PatchPCACodec(8 * 2 * 2 * 3)
    means = torch.eye(codec.channels).view(-1, 8, 2, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3) / 4
    codec.components.copy_(means.flatten(1))
    return codec


def lossless_codec():
    codec = PatchPCACodec(PATCH)
    codec.components.copy_(torch.eye(PATCH))
    return codec
