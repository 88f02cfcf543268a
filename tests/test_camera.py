"""Promises of the camera room that need no vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from sanawm_env.camera import intrinsics as lens
from sanawm_env.camera.dsl import KeyDynamics, KeyState, actions_to_c2w, hold_keys, parse_actions
from sanawm_env.camera.overlay import overlay
from sanawm_env.camera.presets import (
    KEY_ORDER,
    PRESETS,
    SINGLE_KEYS,
    STANDARD,
    WALKING_TURNS,
    Workspace,
    held_keys,
    limit_pitch,
    multi_binary,
    pitch_of,
)
from sanawm_env.camera.rays import (
    chunk_conditions,
    plucker_groups,
    ray_from_world,
    raymap_rows,
    relative_poses,
    rigid_inverse,
)
from sanawm_env.camera.trajectory import (
    check_trajectory,
    inverse,
    orthonormalize,
    relative_to_first,
)
from sanawm_env.camera.twist import exp_se3, hold, ramp

HEIGHT, WIDTH = 3, 4
LENS = np.array([4.0, 4.2, 2.0, 1.5], np.float32)
TWIST = np.array([0.3, -0.1, 0.8, 0.2, -0.3, 0.05])

twists = st.lists(st.floats(-1, 1), min_size=6, max_size=6).map(np.array)


def random_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(rng=rng).as_matrix()
    pose[:3, 3] = rng.normal(size=3) * 3
    return pose


def walk(chunks: int = 2) -> np.ndarray:
    """A trajectory (24 * chunks + 1, 4, 4) that turns differently in every chunk."""
    poses = [np.eye(4)[None]]
    for chunk in range(chunks):
        poses.append(hold(poses[-1][-1], TWIST * (1, 1, 1, 1, (-1) ** chunk, 1)))
    return np.concatenate(poses)


# conditions


def test_conditions_do_not_depend_on_the_batch():
    c2w = np.stack([walk(1), relative_to_first(walk(1)[::-1])])
    batch = chunk_conditions(np.eye(4), c2w[:, 1:], LENS, HEIGHT, WIDTH, first=True)
    for slot in range(len(c2w)):
        alone = chunk_conditions(np.eye(4), c2w[slot, 1:], LENS, HEIGHT, WIDTH, first=True)
        assert torch.equal(batch.raymap[slot], alone.raymap)
        assert torch.equal(batch.plucker[slot], alone.plucker)
    rows = ray_from_world(batch.raymap, HEIGHT, WIDTH)
    assert torch.equal(rows[1], ray_from_world(batch.raymap[1], HEIGHT, WIDTH))


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("frames", [8, 24])
def test_chunks_of_any_stride_and_length_equal_the_whole(stride, frames):
    c2w = walk(2)
    rows, groups = [], []
    for start in range(1, len(c2w), frames):
        chunk = chunk_conditions(
            c2w[0], c2w[start : start + frames], LENS, HEIGHT, WIDTH, first=start == 1, stride=stride
        )
        assert chunk.raymap.shape == (frames // stride + (start == 1), 20)
        rows.append(chunk.raymap)
        groups.append(chunk.plucker)
    assert torch.equal(torch.cat(rows), raymap_rows(c2w, LENS, stride=stride))
    assert torch.equal(torch.cat(groups, 1), plucker_groups(c2w, LENS, height=HEIGHT, width=WIDTH, stride=stride))


def test_zero_action_repeats_the_pose_and_the_plucker_group():
    start = hold(random_pose(0), TWIST)[-1]
    poses = hold(start, np.zeros(6))
    assert (poses == start).all()
    plucker = chunk_conditions(random_pose(1), poses, LENS, HEIGHT, WIDTH, first=False).plucker
    assert (plucker == plucker[:6, :1].tile(8, 1, 1, 1)).all()


def test_moving_the_whole_trajectory_rigidly_changes_nothing():
    c2w = walk()
    moved = random_pose(3) @ c2w
    assert torch.allclose(raymap_rows(moved, LENS), raymap_rows(c2w, LENS), atol=5e-6)
    plucker = [plucker_groups(poses, LENS, height=HEIGHT, width=WIDTH) for poses in (moved, c2w)]
    assert torch.allclose(*plucker, atol=2e-5)
    assert np.allclose(relative_to_first(moved), c2w, atol=1e-12)


@pytest.mark.parametrize("frame", [*range(1, 26), 48])
def test_a_frame_reaches_only_its_own_latents(frame):
    c2w = walk()
    nudged = c2w.copy()
    nudged[frame, :3, 3] += 0.5
    rows = raymap_rows(nudged, LENS) != raymap_rows(c2w, LENS)
    groups = [plucker_groups(poses, LENS, height=HEIGHT, width=WIDTH) for poses in (nudged, c2w)]
    assert rows.any(1).nonzero().flatten().tolist() == ([frame // 8] if frame % 8 == 0 else [])
    latents = {(frame + 7) // 8} | ({0} if frame < 8 else set())
    assert set((groups[0] != groups[1]).amax((0, 2, 3)).nonzero().flatten().tolist()) == latents


def test_the_first_relative_pose_is_the_exact_identity():
    c2w = random_pose(5) @ walk(1)
    assert torch.equal(raymap_rows(c2w, LENS)[0, :16], torch.eye(4).flatten())
    first = chunk_conditions(c2w[0], c2w[1:], LENS, HEIGHT, WIDTH, first=True)
    assert torch.equal(first.raymap[0, :16], torch.eye(4).flatten())
    assert np.array_equal(relative_to_first(c2w)[0], np.eye(4))


def test_ray_frames_are_rigid_and_look_along_their_rays():
    rows = raymap_rows(walk(), LENS)
    matrices = ray_from_world(rows.double(), HEIGHT, WIDTH)
    identity = torch.eye(4, dtype=torch.float64).expand_as(matrices)
    assert torch.allclose(matrices @ rigid_inverse(matrices), identity, atol=1e-6)
    centre = rows[:, :16].reshape(-1, 4, 4)[:, :3, 3].double()
    x = (2 - LENS[2]) / LENS[0]
    y = (1 - LENS[3]) / LENS[1]
    ahead = centre + 3 * rows[:, :16].reshape(-1, 4, 4)[:, :3, :3].double() @ torch.tensor([x, y, 1.0]).double()
    seen = matrices[:, 1, 2] @ torch.cat([ahead, torch.ones(len(ahead), 1)], 1)[..., None]
    assert seen[:, :2, 0].abs().max() < 1e-5 and (seen[:, 2, 0] > 3).all()


def test_torch_and_numpy_inverses_agree():
    poses = np.stack([random_pose(seed) for seed in range(4)])
    assert np.allclose(inverse(poses), np.linalg.inv(poses), atol=1e-12)
    assert np.allclose(rigid_inverse(torch.from_numpy(poses)).numpy(), inverse(poses), atol=1e-12)
    assert np.allclose(relative_poses(poses, poses[1]).numpy(), inverse(poses[1]) @ poses, atol=1e-5)


@pytest.mark.parametrize(
    ("poses", "intrinsics", "message"),
    [
        (np.zeros((23, 4, 4)), LENS, "multiple of 8"),
        (np.zeros((0, 4, 4)), LENS, "multiple of 8"),
        (np.zeros((24, 3, 4)), LENS, "multiple of 8"),
        (np.zeros((24, 4, 4)), np.ones((24, 4)), r"intrinsics must be \(4,\) or \(25, 4\)"),
        (np.zeros((24, 4, 4)), np.ones(3), "intrinsics must be"),
    ],
)
def test_chunks_of_a_wrong_shape_are_refused(poses, intrinsics, message):
    with pytest.raises(ValueError, match=message):
        chunk_conditions(np.eye(4), poses, intrinsics, HEIGHT, WIDTH, first=True)


def test_an_empty_trajectory_has_no_conditions():
    with pytest.raises(ValueError, match="at least one pose"):
        raymap_rows(np.zeros((0, 4, 4)), LENS)


# keys


@given(st.text("wasdijklneWX-,; \t\n0123456789²٣.+_ſİ，－Ｗ\x00😀", max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_or_refused_with_a_value_error(text):
    try:
        segments = parse_actions(text)
    except ValueError as error:
        assert str(error)
    else:
        assert segments and all(keys <= set(KEY_ORDER) and frames > 0 for keys, frames in segments)


@given(st.lists(st.tuples(st.sets(st.sampled_from(KEY_ORDER)), st.integers(1, 6)), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_steps_equal_the_joined_string_bit_for_bit(segments):
    state, poses = KeyState(), [np.eye(4)[None]]
    for keys, frames in segments:
        state, held = hold_keys(state, keys, frames)
        poses.append(held)
    joined = ",".join(f"{''.join(keys)}-{frames}" for keys, frames in segments)
    assert np.array_equal(np.concatenate(poses).astype(np.float32), actions_to_c2w(joined))


def test_holding_keys_leaves_the_state_untouched():
    start, _ = hold_keys(KeyState(), "wd", 5)
    before = start.pose.copy(), start.velocity, start.pitch, start.held
    hold_keys(start, "i", 24)
    assert np.array_equal(start.pose, before[0]) and (start.velocity, start.pitch, start.held) == before[1:]


def test_keys_walk_on_the_level_and_respect_the_pitch_limit():
    _, poses = hold_keys(KeyState(), "iw", 240, KeyDynamics(pitch_limit_deg=20))
    assert np.degrees(pitch_of(poses)).max() == pytest.approx(20)
    assert np.abs(poses[:, 1, 3]).max() == 0


def test_level_keys_without_smoothing_agree_with_the_twist_of_the_same_speed():
    _, keys = hold_keys(KeyState(), "w", 24)
    assert np.allclose(keys, hold(np.eye(4), [0, 0, 0.4, 0, 0, 0]), atol=1e-5)
    _, keys = hold_keys(KeyState(), "d", 24)
    assert np.allclose(keys, hold(np.eye(4), [0, 0, 0, 0, np.radians(9.6), 0]), atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"translation_speed": math.nan}, "translation_speed must be a finite number, got nan"),
        ({"pitch_limit_deg": -1}, "pitch_limit_deg must be at least 0, got -1"),
        ({"fps": 0}, "fps must be above 0, got 0"),
    ],
)
def test_unusable_key_speeds_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        KeyDynamics(**bad)


def test_an_unknown_key_cannot_be_held():
    with pytest.raises(ValueError, match="unknown key 'x'"):
        hold_keys(KeyState(), "wx")


# twists


@given(twists)
@settings(max_examples=50, deadline=None)
def test_opposite_exponentials_cancel(xi):
    assert np.allclose(exp_se3(xi) @ exp_se3(-xi), np.eye(4), atol=1e-12)


@given(twists)
@settings(max_examples=25, deadline=None)
def test_two_holds_equal_one_hold_of_twice_the_time(twist):
    start = random_pose(2)
    once = hold(start, twist, frames=48)
    first = hold(start, twist)
    assert np.allclose(np.concatenate([first, hold(first[-1], twist)]), once, atol=1e-9)


def test_axes_of_a_twist():
    turn = np.radians(30)
    looks = hold(np.eye(4), np.array([[0, 0, 0, turn, 0, 0]])[0], frames=1, fps=1)[0]
    assert looks[1, 2] == pytest.approx(-0.5)  # forward moves against y, which points down: up
    assert hold(np.eye(4), [0, 0, 0, 0, turn, 0], frames=1, fps=1)[0, 0, 2] == pytest.approx(0.5)  # right
    assert hold(np.eye(4), [0, 0, 0, 0, 0, turn], frames=1, fps=1)[0, 1, 0] == pytest.approx(0.5)  # right side down
    assert hold(np.eye(4), [1, 2, 3, 0, 0, 0], frames=1, fps=1)[0, :3, 3] == pytest.approx([1, 2, 3])


def test_a_ramp_from_the_same_twist_is_a_hold():
    assert np.allclose(ramp(np.eye(4), TWIST, TWIST), hold(np.eye(4), TWIST), atol=1e-12)


def test_poses_stay_rigid_over_a_thousand_chunks():
    pose = np.eye(4)
    for _ in range(1000):
        pose = hold(pose, TWIST)[-1]
    assert np.abs(pose[:3, :3].T @ pose[:3, :3] - np.eye(3)).max() < 2e-12


def test_a_drifted_start_is_made_rigid():
    start = random_pose(4).astype(np.float32).astype(np.float64)
    fixed = orthonormalize(start)
    assert np.abs(fixed[:3, :3].T @ fixed[:3, :3] - np.eye(3)).max() < 1e-14
    assert np.allclose(fixed, start, atol=1e-6)
    assert orthonormalize(fixed) is fixed


@pytest.mark.parametrize("bad", [np.zeros(5), np.full(6, np.nan), np.zeros((1, 6)), np.full(6, 1e308), [10**400] * 6])
def test_a_twist_is_six_finite_numbers(bad):
    with pytest.raises(ValueError, match="six finite numbers"):
        hold(np.eye(4), bad)


# trajectories


def spoilt(**changes) -> np.ndarray:
    c2w = walk(1)
    for name, value in changes.items():
        if name == "nan":
            c2w[value, 0, 3] = np.nan
        elif name == "bottom":
            c2w[value, 3, 0] = 1
        elif name == "scaled":
            c2w[value, :3, :3] *= 1.1
        elif name == "mirrored":
            c2w[value, :3, 0] *= -1
    return c2w


@pytest.mark.parametrize(
    ("c2w", "error", "message"),
    [
        (np.eye(4), ValueError, r"shape \(frames, 4, 4\)"),
        (np.zeros((0, 4, 4)), ValueError, "at least one frame"),
        (np.zeros((3, 3, 4)), ValueError, "shape"),
        (np.zeros((3, 4, 4), complex), TypeError, "real numbers"),
        (np.full((1, 4, 4), "x"), TypeError, "real numbers"),
        (spoilt(nan=3), ValueError, "pose 3 .* not finite"),
        (spoilt(bottom=4), ValueError, "pose 4 .* bottom row"),
        (spoilt(scaled=5), ValueError, "pose 5 .* not orthonormal"),
        (spoilt(mirrored=6), ValueError, "pose 6 .* mirrored"),
    ],
)
def test_a_bad_trajectory_is_refused_with_the_reason(c2w, error, message):
    with pytest.raises(error, match=message):
        check_trajectory(c2w)


# intrinsics


def test_a_field_of_view_gives_centred_intrinsics():
    intrinsics = lens.intrinsics_from_fov(90, 1280, 704)
    assert intrinsics == pytest.approx([640, 640, 640, 352])
    assert lens.intrinsics_matrix(intrinsics) == pytest.approx(np.array([[640, 0, 640], [0, 640, 352], [0, 0, 1]]))
    assert lens.to_latent_units(intrinsics) == pytest.approx([20, 20, 20, 11])


@pytest.mark.parametrize("angle", [0, 180, -5, math.nan, 24, 120, 30])
def test_a_field_of_view_outside_the_limits_is_refused(angle):
    with pytest.raises(ValueError, match="field of view"):
        lens.intrinsics_from_fov(angle, 1280, 704)


@pytest.mark.parametrize("bad", [[1, 1, np.nan, 0], [0, 1, 1, 1], [-1, 1, 1, 1]])
def test_unusable_intrinsics_are_refused(bad):
    with pytest.raises(ValueError, match="finite, with positive focal lengths"):
        lens.fit_intrinsics(np.array(bad, float), 3)


@given(*[st.integers(1, 300)] * 4)
@settings(max_examples=100, deadline=None)
def test_a_crop_covers_the_target_from_inside_the_resized_image(width, height, target_width, target_height):
    crop = lens.crop_geometry(width, height, target_width, target_height)
    for resized, offset, target in zip(crop.resized, crop.offset, crop.target, strict=True):
        assert offset >= 0 and offset + target <= resized


def test_a_thin_strip_is_cropped_without_filling_the_memory():
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8000, 1, 3), dtype=np.uint8))
    assert lens.resize_and_center_crop(strip, 704, 1280).size == (1280, 704)


def test_the_window_shortcut_shows_the_same_picture(monkeypatch):
    y, x = np.mgrid[:60, :90]
    smooth = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), x + y], -1).astype(np.uint8)
    whole = lens.resize_and_center_crop(Image.fromarray(smooth), 64, 64)
    monkeypatch.setattr(lens, "MAX_RESIZED_PIXELS", 0)
    window = lens.resize_and_center_crop(Image.fromarray(smooth), 64, 64)
    assert np.abs(np.asarray(whole, int) - np.asarray(window, int)).max() <= 2


def test_the_window_shortcut_takes_any_size(monkeypatch):
    monkeypatch.setattr(lens, "MAX_RESIZED_PIXELS", 0)
    for width, height, target_width, target_height in np.random.default_rng(0).integers(1, 60, (300, 4)).tolist():
        cropped = lens.resize_and_center_crop(Image.new("RGB", (width, height)), target_height, target_width)
        assert cropped.size == (target_width, target_height)


def test_an_image_without_size_cannot_be_cropped():
    with pytest.raises(ValueError, match="positive"):
        lens.crop_geometry(0, 5, 10, 10)


# presets and limits


def test_presets_scale_actions_to_si_units():
    full = STANDARD.scale(np.ones(6))
    assert full == pytest.approx([0.8, 0.4, 0.8, 0.3351, 0.3351, 0.0838], abs=1e-4)
    assert np.array_equal(STANDARD.scale(-2 * np.ones(6)), -full)
    assert STANDARD.scale(np.zeros((3, 6))).shape == (3, 6)
    assert PRESETS["gentle"].scale(np.ones(6)) == pytest.approx([0.4, 0.2, 0.4, 0.1676, 0.1676, 0], abs=1e-4)


@pytest.mark.parametrize("bad", [np.zeros(5), np.full(6, np.inf), 0.0])
def test_an_action_is_six_finite_numbers(bad):
    with pytest.raises(ValueError, match="six finite numbers"):
        STANDARD.scale(bad)


def test_poses_inside_the_pitch_limit_are_left_alone():
    poses = hold(np.eye(4), TWIST)
    assert Workspace().confine(np.eye(4), poses) is poses


@given(twists, st.floats(5, 60))
@settings(max_examples=40, deadline=None)
def test_pitch_stays_inside_the_limit_and_poses_stay_rigid(twist, limit_deg):
    start, workspace = np.eye(4), Workspace(pitch_limit_deg=limit_deg)
    for _ in range(4):
        poses = workspace.confine(start, hold(start, twist))
        check_trajectory(poses)
        assert np.abs(pitch_of(poses)).max() <= math.radians(limit_deg) + 1e-9
        start = poses[-1]


def test_the_pitch_limit_keeps_heading_and_translation_increments():
    start = hold(np.eye(4), [0, 0, 0, 0.6, 0, 0])[-1]  # 51.6 degrees up
    free = hold(start, [0.5, 0.0, 0.2, 0.6, 0, 0])
    limited = limit_pitch(start, free, math.radians(60))
    assert np.degrees(pitch_of(limited)).max() == pytest.approx(60)
    assert np.degrees(pitch_of(free)).max() > 80
    assert np.allclose(limited[:, 0, :3], start[0, :3], atol=1e-9)  # no yaw, no roll
    steps, limited_steps = (inverse(poses[:-1]) @ poses[1:] for poses in (free, limited))
    assert np.allclose(steps[:, :3, 3], limited_steps[:, :3, 3], atol=1e-9)
    back = limit_pitch(limited[-1], hold(limited[-1], [0, 0, 0, -0.6, 0, 0]), math.radians(60))
    assert np.degrees(pitch_of(back)[-1]) < 10


def test_a_camera_that_starts_outside_the_limit_goes_no_further_out():
    start = hold(np.eye(4), [0, 0, 0, math.radians(70), 0, 0], frames=1, fps=1)[0]
    poses = limit_pitch(start, hold(start, [0, 0, 0, 0.2, 0.2, 0]), math.radians(60))
    assert np.degrees(pitch_of(poses)).max() == pytest.approx(70)


def test_rotation_within_a_chunk_is_slowed_to_half_the_field_of_view():
    fast = np.array([1, 2, 3, 0, 2.0, 0])
    slowed = Workspace().limit_rotation(fast, 1.5, 90)
    assert slowed == pytest.approx([1, 2, 3, 0, math.radians(45) / 1.5, 0])
    assert Workspace().limit_rotation(slowed, 1.5, 90) == pytest.approx(slowed)
    assert Workspace().limit_rotation(np.zeros(6), 1.5, 90) == pytest.approx(np.zeros(6))


def test_distances_are_measured_from_the_start():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[1, :3, 3] = 0, 0, -20
    workspace = Workspace()
    assert workspace.beyond_soft_distance(poses) and not workspace.beyond_hard_distance(poses)
    assert not workspace.beyond_soft_distance(poses[:1]) and workspace.beyond_hard_distance(4 * poses)


def test_discrete_actions_are_lookups_into_held_keys():
    assert (len(SINGLE_KEYS), len(WALKING_TURNS)) == (9, 15)
    assert multi_binary("wl").tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    for keys in WALKING_TURNS:
        assert held_keys(multi_binary(keys)) == set(keys)


@pytest.mark.parametrize("bad", [np.zeros(7), np.full(8, 2), np.full(8, 0.5)])
def test_a_key_action_is_eight_zeros_and_ones(bad):
    with pytest.raises(ValueError, match="eight zeros and ones"):
        held_keys(bad)


def test_an_overlay_needs_two_poses():
    with pytest.raises(ValueError, match="two poses"):
        overlay(np.eye(4)[None])


def test_an_absurdly_long_action_string_is_refused_before_any_work():
    with pytest.raises(ValueError, match="more than 1,000,000 frames"):
        actions_to_c2w("w-999999999999")
