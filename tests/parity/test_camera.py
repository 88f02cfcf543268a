"""The camera room against vectors of the published code; cases and sizes come from the files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sanawm_env.camera.dsl import KeyDynamics, KeyState, actions_to_c2w, hold_keys, parse_actions
from sanawm_env.camera.intrinsics import (
    FOV_LIMITS_DEG,
    crop_geometry,
    fit_intrinsics,
    resize_and_center_crop,
    to_latent_units,
)
from sanawm_env.camera.overlay import overlay
from sanawm_env.camera.rays import (
    chunk_conditions,
    plucker_groups,
    plucker_rays,
    ray_from_world,
    raymap_rows,
    rigid_inverse,
)
from sanawm_env.camera.trajectory import chunk_boundaries, snap_frames
from sanawm_env.camera.twist import hold, ramp
from tests.golden_files import golden

CHUNK = 24
FP32 = 5e-6
BF16 = 1e-2


def vectors(name: str):
    path = golden("camera") / name
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return load_file(path) if path.suffix == ".safetensors" else np.load(path)


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def run_lengths(items: list[str]) -> list[list]:
    runs = []
    for item in items:
        if runs and runs[-1][0] == item:
            runs[-1][1] += 1
        else:
            runs.append([item, 1])
    return runs


VALID = [case for case in vectors("dsl_cases.json")["cases"] if case["ok"]]
INVALID = [case for case in vectors("dsl_cases.json")["cases"] if not case["ok"]]
ERROR_WORDS = {
    "empty_string": "is empty",
    "malformed_segment": "malformed segment",
    "bad_duration": "bad duration",
    "int_conversion": "bad duration",
    "unknown_key": "unknown key",
}
CONDITIONS = vectors("cond_index.json")


@pytest.mark.parametrize("case", VALID, ids=lambda case: case["name"])
def test_action_string_gives_the_published_poses(case):
    poses = actions_to_c2w(case["action"], **case["kwargs"])
    assert poses.dtype == np.float32 and len(poses) == case["num_poses"]
    assert difference(poses, vectors("dsl_poses.npz")[case["name"]]) <= 1e-6
    held = ["".join(sorted(keys)) for keys, frames in parse_actions(case["action"]) for _ in range(frames)]
    assert run_lengths(held) == case["keys_run_length"]


@pytest.mark.parametrize("case", VALID, ids=lambda case: case["name"])
def test_velocity_filter_gives_the_published_velocities(case):
    state, dynamics, rows = KeyState(), KeyDynamics(**case["kwargs"]), []
    for keys, frames in parse_actions(case["action"]):
        for _ in range(frames):
            state = state.step(keys, dynamics)
            rows.append([*state.velocity, state.pitch])
    assert difference(rows, vectors("dsl_velocity.npz")[case["name"]]) <= 1e-12


@pytest.mark.parametrize("case", INVALID, ids=lambda case: repr(case["action"]))
def test_action_string_is_refused_for_the_published_reason(case):
    with pytest.raises(ValueError, match=ERROR_WORDS[case["error_code"]]):
        actions_to_c2w(case["action"])


def test_key_steps_equal_the_joined_string_bit_for_bit():
    want = vectors("dsl_stepwise.npz")
    steps = len(want["keys"])
    frames = (len(want["c2w"]) - 1) // steps
    state, poses = KeyState(), [np.eye(4)[None]]
    for keys, expected in zip(want["keys"], want["state_after_step"], strict=True):
        state, held = hold_keys(state, "" if keys == "none" else str(keys), frames)
        poses.append(held)
        assert [*state.velocity, state.pitch] == expected.tolist()
    poses = np.concatenate(poses).astype(np.float32)
    assert np.array_equal(poses, want["c2w"])
    assert np.array_equal(poses, actions_to_c2w(",".join(f"{keys}-{frames}" for keys in want["keys"])))


def test_frame_counts_snap_as_published():
    cases = vectors("frames_and_chunks.json")
    for case in cases["snap"]:
        assert snap_frames(case["n"], case["stride"], case["upper_bound"]) == case["snapped"], case
    for case in cases["cli"]:
        frames, limit = min(case["requested"], case["trajectory_len"]), case["trajectory_len"]
        assert snap_frames(frames, CHUNK, limit) == case["streaming"], case
        assert snap_frames(frames, 8, limit) == case["bidirectional"], case


def test_chunks_are_cut_as_published():
    cases = vectors("frames_and_chunks.json")
    for case in cases["chunks"]:
        boundaries = chunk_boundaries(case["latent_frames"])
        assert boundaries == case["sampler_boundaries"]
        assert boundaries[:-1] == case["config_chunk_starts"]
        assert len(boundaries) - 1 == case["refiner_blocks"]
        assert (len(boundaries) - 1) * CHUNK == case["emitted_pixel_frames"] == case["num_frames"] - 1
    for latents, boundaries in cases["generic_segments"].items():
        assert chunk_boundaries(int(latents)) == boundaries


@pytest.mark.parametrize("case", vectors("intrinsics_cases.json")["crop"], ids=lambda case: str(case["src_size"]))
def test_crop_moves_the_intrinsics_as_published(case):
    geometry = crop_geometry(*case["src_size"], *case["cropped_size"])
    assert [*geometry.resized] == case["resized_size"] and [*geometry.offset] == case["crop_offset"]
    assert difference(geometry.apply(np.array(case["intrinsics_in"])), case["intrinsics_out"]) <= 1e-4


def test_crop_of_images_is_the_published_one():
    arrays = vectors("intrinsics_arrays.npz")
    for case in vectors("intrinsics_cases.json")["small_images"]:
        image = resize_and_center_crop(Image.fromarray(arrays[f"img_in_{case['idx']}"]), *case["target_hw"])
        assert difference(image, arrays[f"img_out_{case['idx']}"]) <= 1


def test_every_form_of_intrinsics_is_read_as_published():
    arrays = vectors("intrinsics_arrays.npz")
    names = [name for name in arrays.files if "__F" in name]
    assert names
    for name in names:
        form, frames = name.split("__F")
        fitted = fit_intrinsics(arrays[f"{form}__in"], int(frames))
        assert fitted.dtype == np.float32 and difference(fitted, arrays[name]) <= 1e-3, name


def test_other_forms_of_intrinsics_are_refused():
    cases = vectors("intrinsics_cases.json")
    for case in cases["load_errors"]:
        with pytest.raises(ValueError, match="intrinsics must be"):
            fit_intrinsics(np.ones(case["shape"]), 5)
    assert cases["fov_gate_deg"] == [*FOV_LIMITS_DEG]


def conditions(case: dict) -> tuple[dict, torch.Tensor, int, int]:
    """Vectors of a case, its intrinsics in latent units, latent height and width."""
    tensors = vectors(f"cond_{case['name']}.safetensors")
    height, width = tensors["chunk_plucker"].shape[-2:]
    stride = case["target_hw"][0] // height
    return tensors, torch.from_numpy(to_latent_units(tensors["intrinsics_vec4"].numpy(), stride)), height, width


@pytest.mark.parametrize("case", CONDITIONS, ids=lambda case: case["name"])
def test_conditions_of_a_trajectory_are_the_published_ones(case):
    tensors, intrinsics, height, width = conditions(case)
    raymap = raymap_rows(tensors["c2w"], intrinsics)
    plucker = plucker_groups(tensors["c2w"], intrinsics, height=height, width=width)
    assert raymap.shape == tensors["raymap"].shape and plucker.shape == tensors["chunk_plucker"].shape
    assert difference(raymap, tensors["raymap"]) <= FP32
    assert difference(plucker, tensors["chunk_plucker"]) <= FP32
    latents = case["raymats_latents"] or range(len(raymap))
    matrices = ray_from_world(raymap, height, width)[list(latents)]
    assert difference(matrices, tensors["ray_from_world"]) <= FP32
    if "raymap_bf16" in tensors:
        rounded = raymap.bfloat16()
        assert torch.allclose(rounded.float(), tensors["raymap_bf16"].float(), rtol=2**-7, atol=FP32)
        assert torch.allclose(plucker.bfloat16().float(), tensors["chunk_plucker_bf16"].float(), rtol=2**-7, atol=FP32)
        for row in (rounded, rounded.float()):  # geometry in bfloat16, or in float32 from the rounded row
            got = ray_from_world(row, height, width)
            assert got.dtype == row.dtype
            assert difference(got.float(), tensors["ray_from_world_bf16"].float()) <= BF16


@pytest.mark.parametrize(
    "case", [case for case in CONDITIONS if case["incremental_max_abs_diff"] is not None], ids=lambda case: case["name"]
)
def test_conditions_chunk_by_chunk_equal_the_whole_trajectory_with_zero_difference(case):
    tensors, intrinsics, height, width = conditions(case)
    c2w, rows, groups = tensors["c2w"], [], []
    for start in range(1, len(c2w), CHUNK):
        first = start == 1
        lens = intrinsics[start - first : start + CHUNK]
        chunk = chunk_conditions(c2w[0], c2w[start : start + CHUNK], lens, height, width, first=first)
        rows.append(chunk.raymap)
        groups.append(chunk.plucker)
    assert torch.equal(torch.cat(rows), raymap_rows(c2w, intrinsics))
    assert torch.equal(torch.cat(groups, dim=1), plucker_groups(c2w, intrinsics, height=height, width=width))


def test_rays_and_inverses_of_random_cameras_are_the_published_ones():
    tensors = vectors("plucker_small.safetensors")
    names = [name.removeprefix("plucker_") for name in tensors if name.startswith("plucker_")]
    assert names
    for name in names:
        c2w, want = tensors[f"c2w_{name}"], tensors[f"plucker_{name}"]
        rays = plucker_rays(c2w, tensors[f"intrinsics_{name}"], *want.shape[-3:-1])
        origin, direction = tensors[f"origin_dir_{name}"].split(3, dim=-1)
        assert difference(rays, want) <= FP32
        assert difference(rays[..., :3], direction) <= FP32
        assert difference(c2w[:, None, None, :3, 3].expand_as(origin), origin) <= FP32
        assert difference(rigid_inverse(c2w), tensors[f"inverse_{name}"]) <= FP32


def test_overlay_shows_the_published_keys_and_knobs():
    poses = vectors("dsl_poses.npz")
    for name, case in vectors("overlay.json").items():
        shown = overlay(poses[name])
        assert run_lengths(shown.keys) == case["keys_run_length"], name
        assert difference(shown.yaw[:: case["stride"]], case["yaw"]) <= 1e-5, name
        assert difference(shown.pitch[:: case["stride"]], case["pitch"]) <= 1e-5, name


def test_twists_are_integrated_exactly():
    want = vectors("design_twist.npz")
    previous = np.zeros(6)
    frames = want["hold"].shape[1]
    for start, twist, held, ramped in zip(want["start"], want["twist"], want["hold"], want["ramp8"], strict=True):
        assert difference(hold(start, twist, frames), held) <= 1e-9
        assert difference(ramp(start, twist, previous, frames, ramp_frames=8), ramped) <= 1e-9
        previous = twist
