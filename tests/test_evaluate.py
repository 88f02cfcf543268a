"""The evaluation of worlds: exact warps and masks, and the right numbers for worlds whose quality is known."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from scipy.spatial.transform import RigidTransform, Rotation

from sanawm_env.engines.rooms.places import place
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.rooms.walks import clearance, sample_start
from sanawm_env.engines.sanawm.engine import SanaMemory
from sanawm_env.engines.sanawm.network.state import BlockState, GDNState, NetworkState, Page, WindowState
from sanawm_env.training.evaluate import evaluate, print_table, save_sheet, with_timesteps
from sanawm_env.training.initial import untrained
from sanawm_env.training.probes import without_recurrence, without_window
from sanawm_env.training.warps import plane_homographies, rotation_homographies, visible_in_first, warp
from sanawm_env.world.world import World
from tests.golden_files import ROOT, benchmark
from tests.known_worlds import SMALL, HoldEngine, TruthEngine, lossless_codec, lossy_codec
from tests.worlds import write_tiny_world

LENS = np.array([60.0, 57.0, 47.0, 33.5])  # nothing centred or square, so that no mix-up cancels


@pytest.fixture(scope="module")
def perfect():
    return evaluate(World(TruthEngine(lossy_codec()), "truth"), scenes=2, seed=3, chunks=2, stride=12)


def poses(turn=(0, 0, 0), move=(0, 0, 0)):
    return RigidTransform.from_components(move, Rotation.from_euler("yxz", turn, degrees=True)).as_matrix()[None]


def painted(points):
    """A smooth texture: colours uint8 of plane positions (..., 2) in metres."""
    x, y = points[..., 0], points[..., 1]
    waves = np.stack((np.sin(1.1 * x + 0.4), np.cos(0.9 * y - 0.8 * x), np.sin(0.7 * x + 1.2 * y)), axis=-1)
    return np.rint(127.5 + 120 * waves).astype(np.uint8)


def picture_of_plane(c2w, depth, height=64, width=96):
    """What the camera (4, 4) sees of the painted plane z = depth, by casting rays; and the points it sees."""
    v, u = np.indices((height, width)) + 0.5
    rays = np.stack(((u - LENS[2]) / LENS[0], (v - LENS[3]) / LENS[1], np.ones_like(u)), axis=-1) @ c2w[:3, :3].T
    points = c2w[:3, 3] + rays * ((depth - c2w[2, 3]) / rays[..., 2])[..., None]
    return painted(points[..., :2]), points


def in_first_picture(points, height=64, width=96):
    """Whether frame 0 sees the points half a pixel inside its border, where interpolation has two sides."""
    u, v = (LENS[i] * points[..., i] / points[..., 2] + LENS[i + 2] for i in range(2))
    return (u >= 0.5) & (u <= width - 0.5) & (v >= 0.5) & (v <= height - 0.5)


@pytest.mark.parametrize("turn, move", [((9, -5, 7), (0.4, -0.3, 0.8)), ((-12, 4, 0), (-0.5, 0.2, -0.6))])
def test_plane_warp_is_exact_for_a_plane(turn, move):
    c2w = poses(turn, move)
    first, _ = picture_of_plane(np.eye(4), 3.3)
    truth, points = picture_of_plane(c2w[0], 3.3)
    inside = in_first_picture(points)
    error = np.abs(warp(first, plane_homographies(c2w, LENS))[0].astype(int) - truth)
    assert inside.mean() > 0.5
    assert error[inside].max() <= 2


def test_rotation_homography_is_exact_for_a_turning_camera():
    c2w = poses((14, -6, 8))
    first, _ = picture_of_plane(np.eye(4), 3.3)
    truth, points = picture_of_plane(c2w[0], 3.3)
    inside = in_first_picture(points)
    error = np.abs(warp(first, rotation_homographies(c2w, LENS))[0].astype(int) - truth)
    assert inside.mean() > 0.5
    assert error[inside].max() <= 2
    np.testing.assert_allclose(plane_homographies(c2w, LENS), 3.3 * rotation_homographies(c2w, LENS), atol=1e-9)


def test_rotation_homography_agrees_with_the_renderer():
    here = place("court")
    start, lens, turned = sample_start(here, np.random.default_rng(5)), intrinsics(), poses((8, 3, -4))
    frames, depth = render(here, start @ np.concatenate((np.eye(4)[None], turned)), lens)
    seen = visible_in_first(depth[1:], depth[0], turned, lens)[0]
    error = np.abs(warp(frames[0], rotation_homographies(turned, lens))[0].astype(int) - frames[1])[seen].mean()
    wrong = np.abs(warp(frames[0], rotation_homographies(turned.mT, lens))[0].astype(int) - frames[1])[seen].mean()
    assert error < 3 < wrong


def test_warps_fill_from_the_border():
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, -1], image[:, 0] = 200, 100
    lens = intrinsics(8, 12)
    right, left, behind = (warp(image, rotation_homographies(poses((yaw, 0, 0)), lens))[0] for yaw in (80, -80, 150))
    assert (right == 200).all() and (left == 100).all() and (behind[:, :6] == 200).all()


def test_everything_is_visible_from_the_first_camera_itself():
    here = place("gallery")
    start = sample_start(here, np.random.default_rng(2))
    _, depth = render(here, start[None], intrinsics())
    assert visible_in_first(depth, depth[0], np.eye(4)[None], intrinsics()).all()


def test_points_outside_the_first_picture_or_behind_what_it_shows_are_unseen():
    wall = np.full((64, 96), 2.0)
    assert not visible_in_first(1.2 * wall[None], wall, np.eye(4)[None], LENS).any()
    turned = poses((20, 0, 0))
    _, points = picture_of_plane(turned[0], 2.0)
    depth = (points @ turned[0, :3, :3])[None, ..., 2]  # the camera has only turned
    seen = visible_in_first(depth, wall, turned, LENS)[0]
    assert seen[in_first_picture(points)].all() and not seen[:, -20:].any()


@pytest.mark.slow
def test_a_perfect_world_is_as_good_as_its_codec(perfect):
    for chunk in perfect.chunks:
        assert chunk.psnr == pytest.approx(chunk.codec, abs=0.02)
    assert perfect.sign_agreement == perfect.retrieval9 == 1
    assert perfect.swapped_camera_psnr < perfect.psnr


@pytest.mark.slow
def test_a_world_without_motion_equals_the_hold_baseline():
    report = evaluate(World(HoldEngine(lossless_codec()), "hold"), scenes=2, seed=3, chunks=1, stride=12)
    (chunk,) = report.chunks
    hold = chunk.baselines["hold"]
    assert (chunk.psnr, chunk.psnr_visible, chunk.psnr_unseen) == dataclasses.astuple(hold)
    assert chunk.codec == 100
    assert report.retrieval9 == pytest.approx(1 / 9)
    assert report.swapped_camera_psnr == report.psnr
    assert report.memory is None  # the walk is too short to ask


def test_json_has_the_promised_keys(perfect):
    data = json.loads(perfect.to_json())
    promised = ("swapped_camera_psnr", "sign_agreement", "retrieval9", "sharpness")
    assert all(isinstance(data[key], float) for key in promised)
    assert len(data["chunks"]) == 2
    three = {"psnr", "psnr_visible", "psnr_unseen"}
    for chunk in data["chunks"]:
        assert set(chunk) == three | {"ssim", "baselines", "codec"}
        assert set(chunk["baselines"]) == {"hold", "rotation_homography", "plane_warp"}
        for scores in (chunk, *chunk["baselines"].values()):
            assert all(scores[key] is None or isinstance(scores[key], float) for key in three)
        assert all(set(scores) == three for scores in chunk["baselines"].values())
        assert isinstance(chunk["ssim"], float) and isinstance(chunk["codec"], float)
    assert (data["world"], data["weights_hash"], data["scenes"], data["seed"]) == ("nano", "truth", 2, 3)


def test_seeds_decide_what_is_measured():
    world = World(HoldEngine(lossless_codec()), "hold")
    first, again, other = (
        evaluate(world, scenes=1, seed=s, chunks=1, stride=24, ablations=False, examples=0) for s in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.slow
def test_unknown_layouts_are_measured_without_an_anchor():
    class Blind(HoldEngine):
        def encode(self, image, prompt, anchor):
            anchors.append(anchor)
            return super().encode(image, prompt, anchor)

    anchors = []
    world = World(Blind(lossless_codec()), "blind")
    report = evaluate(world, scenes=1, chunks=1, stride=24, unknown_scenes=1, ablations=False)
    assert anchors[0] is not None and anchors[1] is None
    assert len(json.loads(report.to_json())["unknown"]) == 1
    assert report.sign_agreement is report.retrieval9 is report.swapped_camera_psnr is report.memory is None


def test_commands_never_leave_the_room():
    for seed in range(20):
        here = place("corridor")
        start = sample_start(here, np.random.default_rng(seed))
        steps = 24 * 0.025 * np.array([[0, 0, 1], [0, 0, -1], [1, 0, 0], [-1, 0, 0]])
        assert min(clearance(here, start[:3, 3] + start[:3, :3] @ step) for step in steps) > 0


def test_forgetting_takes_one_kind_of_memory_and_edits_nothing():
    gdn = GDNState(*(torch.ones(1, 2, 3, 3) for _ in range(3)), camera_kv=torch.ones(1, 2, 3, 3))
    window = WindowState((Page(torch.ones(1), torch.ones(1)),))
    memory = SanaMemory(NetworkState((BlockState(gdn, torch.ones(1)), BlockState(window, torch.ones(1)))))
    world = World(HoldEngine(lossless_codec()), "hold")
    state = world.begin(world.scene(np.zeros((32, 48, 3), np.uint8)))
    state = dataclasses.replace(state, slots=(dataclasses.replace(state.slots[0], memory=memory),))
    zeroed, kept = (block.mixer for block in without_recurrence(state).slots[0].memory.network.blocks)
    assert not any(t.any() for t in (zeroed.kv, zeroed.z, zeroed.camera_kv))
    assert zeroed.key_tail is gdn.key_tail and kept is window
    untouched, emptied = (block.mixer for block in without_window(state).slots[0].memory.network.blocks)
    assert untouched is gdn and emptied.pages == ()
    assert gdn.kv.all() and gdn.z.all() and gdn.camera_kv.all() and len(window.pages) == 1


@pytest.mark.slow
def test_memory_is_measured_beyond_the_window(tmp_path):
    network = dataclasses.replace(SMALL.network, hidden_size=64, depth=2, num_heads=1, latent_channels=16)
    config = dataclasses.replace(SMALL, network=network)
    untaught = write_tiny_world(tmp_path / "world", config=config)
    places = untrained(config, torch.Generator().manual_seed(0))["places"]
    save_file(places.state_dict(), untaught / "places.safetensors")
    report = evaluate(untaught, scenes=1, chunks=4, stride=24, examples=0, unknown_scenes=1)
    for chunks, memory in ((report.chunks, report.memory), (report.unknown, report.unknown_memory)):
        assert set(memory) == {"kept", "no recurrence", "no window", "neither"}
        assert memory["kept"] == chunks[3].psnr
        assert len({*memory.values()}) == 4


@pytest.mark.slow
def test_another_step_list_shares_the_weights():
    world = World.load("nano")
    other = with_timesteps(world, (1000, 500))
    assert other.config.sampler.timesteps == (1000, 500)
    assert world.config.sampler.timesteps != (1000, 500)
    assert other.engine.network is world.engine.network
    report = evaluate(world, scenes=1, chunks=1, stride=24, timesteps=(1000, 500), ablations=False)
    assert report.timesteps == (1000, 500) and report.chunks[0].psnr > 5


def test_table_and_sheet_show_the_report(perfect, tmp_path):
    console = Console(width=80)
    with console.capture() as captured:
        print_table(perfect, console)
    assert f"{perfect.chunks[1].psnr:.2f}" in captured.get()
    assert "…" not in captured.get()  # nothing is cut off on a narrow screen
    save_sheet(perfect, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 2 * 48 and sheet.height > 4 * 2 * 32
    with pytest.raises(ValueError, match="no examples"):
        save_sheet(dataclasses.replace(perfect, examples=()), tmp_path / "none.png")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scenes": 0}, "scenes must be a whole number from 1 to"),
        ({"scenes": 10**18}, "scenes must be a whole number from 1 to 1,000,000, got 1000000000000000000"),
        ({"chunks": 10**18}, "chunks must be a whole number from 1 to 10,000, got"),
        ({"scenes": 1.5}, "scenes must be a whole number"),
        ({"chunks": 0}, "chunks must be a whole number from 1 to"),
        ({"stride": 25}, "at most the 24 frames"),
        ({"seed": -1}, "seed"),
        ({"timesteps": (1000,)}, "no step list"),
        ({"unknown_scenes": -1}, "unknown_scenes"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        evaluate(World(HoldEngine(lossless_codec()), "hold"), **arguments)
    assert "\n" not in str(refused.value)


def test_a_world_without_known_places_is_refused():
    class Nowhere(HoldEngine):
        config = dataclasses.replace(SMALL, places={"moon": (0, 0, 0, 1, 1, 1)})

    with pytest.raises(ValueError, match="knows none of the places"):
        evaluate(World(Nowhere(lossless_codec()), "nowhere"))
    with pytest.raises(ValueError, match="Unknown world 'atlantis'"):
        evaluate("atlantis")
    with pytest.raises(ValueError, match="decrease"):
        evaluate("nano", timesteps=(500, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_the_held_out_walks_are_the_committed_ones(kind):
    """The published numbers are of these walks: 64 in known places, 64 in unknown layouts, from their seed."""
    script = benchmark("held_out")
    committed = json.loads((ROOT / "benchmarks" / "results" / "held_out.json").read_text())
    assert (committed["seed"], committed["chunks"], len(committed[kind])) == (script["SEED"], 8, 64)
    drawn = script["walks"](kind == "known", 4)
    for walk, kept in zip(drawn, committed[kind], strict=False):
        assert walk["place"] == kept["place"]
        for end in ("start", "end"):
            np.testing.assert_allclose(walk[end], kept[end], atol=2e-3)
    starts = [tuple(walk["start"][0]) for walk in committed["known"] + committed["unknown"]]
    assert len(set(starts)) == 128
