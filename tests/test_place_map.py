"""What a world remembers of its places is looked up where its rays go."""

import numpy as np
import pytest
import torch

from sanawm_env.engines.sanawm.network.place_map import DEPTHS, FEATURES, PLACE_CHANNELS, PlaceMap

BOX = (-4.0, -2.8, -3.0, 4.0, 0.0, 3.0)
LENS = torch.tensor([[8.0, 8, 6, 4]])
PER_FRAME = PLACE_CHANNELS // 2


def camera(x=0.0, y=-1.4, z=0.0, yaw=0.0):
    c, s = np.cos(yaw), np.sin(yaw)
    pose = torch.tensor([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1]], dtype=torch.float32)
    return pose.expand(1, 24, 4, 4).clone()


@pytest.fixture(scope="module")
def places():
    """Two places whose cells hold their own position in the first three features."""
    places = PlaceMap({"one": BOX, "two": tuple(2 * x for x in BOX)})
    low, high, counts = places.low, places.high, places.counts
    rows = []
    for a, b, n in zip(low, high, counts, strict=True):
        axes = [torch.linspace(float(l), float(h), int(k)) for l, h, k in zip(a, b, n, strict=True)]  # noqa: E741
        rows.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2))
    with torch.no_grad():
        places.cells[:, :3] = torch.cat(rows)
    return places


def channels(places, poses, place=0, **options):
    """(2, T, h, w, channels of one frame)"""
    out = places(poses, LENS.expand(len(poses), 4), torch.full((len(poses),), place), 8, 12, first=False, **options)
    return out[0].unflatten(0, (2, PER_FRAME)).movedim(1, -1)


@pytest.mark.parametrize("place", [0, 1])
def test_positions_on_the_way_are_read_where_they_lie(places, place):
    found = channels(places, camera(x=0.3, yaw=0.4), place)
    centre, direction = 4 * found[..., :3], found[..., 3:6]
    volume = found[..., 7:].unflatten(-1, (-1, FEATURES))[..., 4:, :3]
    wanted = centre[..., None, :] + torch.tensor(DEPTHS)[:, None] * direction[..., None, :]
    inside = ((wanted >= places.low[place]) & (wanted <= places.high[place])).all(-1)
    assert 0.3 < inside.float().mean() < 1
    torch.testing.assert_close(volume[inside], wanted[inside], atol=1e-4, rtol=0)
    share = (wanted - places.low[place]) / (places.high[place] - places.low[place])
    assert not volume[((share < -0.02) | (share > 1.02)).any(-1)].any()


def test_rays_leave_through_the_face_they_meet(places):
    """Faces hold positions along them; the ray through a patch quarter and the read position agree."""
    found = channels(places, camera(z=1.0, yaw=0.0))
    faces = found[..., 7:].unflatten(-1, (-1, FEATURES))[..., :4, :3]
    middle = faces[0, 0, 3:5, 5:7]  # near the middle of the picture the camera sees the wall z = 3 at 2 metres
    quarter = torch.tensor([-0.25, 0.25])
    v, u = torch.meshgrid(torch.arange(3, 5) + 0.5, torch.arange(5, 7) + 0.5, indexing="ij")
    for i, (down, across) in enumerate((d, a) for d in quarter for a in quarter):
        x, y = 2 * (u + across - 6) / 8, -1.4 + 2 * (v + down - 4) / 8
        torch.testing.assert_close(middle[..., i, :2], torch.stack((x, y), -1), atol=1e-4, rtol=0)


def test_an_unknown_place_has_nothing_to_read(places):
    assert not channels(places, camera(), place=-1).any()


def test_the_first_chunk_begins_with_frame_0_alone(places):
    path = torch.cat([camera(x=0.02 * i)[:, :1] for i in range(25)], dim=1)
    whole = places(path, LENS, torch.tensor([0]), 8, 12, first=True)
    assert whole.shape == (1, PLACE_CHANNELS, 4, 8, 12)
    last, begin = 4 * whole[0, :3, :, 0, 0], 4 * whole[0, PER_FRAME : PER_FRAME + 3, :, 0, 0]
    torch.testing.assert_close(last[0], 0.02 * torch.tensor([0.0, 8, 16, 24]))
    torch.testing.assert_close(begin[0], 0.02 * torch.tensor([0.0, 1, 9, 17]))
    later = places(path[:, 1:], LENS, torch.tensor([0]), 8, 12, first=False)
    assert torch.equal(later, whole[:, :, 1:])


def test_learning_changes_only_cells_that_were_seen(places):
    places.cells.grad = None
    channels(places, camera(z=2.0)).square().sum().backward()
    touched = places.cells.grad.any(-1)
    assert 0 < touched.float().mean() < 0.2
    volume = int(places.counts[0].prod())
    z = places.cells[:volume, 2].detach()
    assert not touched[:volume][z < 1.5].any()  # behind the camera
    places.cells.grad = None


def test_a_camera_outside_its_place_reads_numbers(places):
    assert channels(places, camera(x=30.0)).isfinite().all()
