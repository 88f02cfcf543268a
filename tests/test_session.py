"""The session of the live viewer, without a screen: a tree of moments to go back to, to keep and to open again."""

import errno
import hashlib
import io
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env.camera.dsl import actions_to_c2w
from sanawm_env.camera.twist import hold
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.viewer import session as module
from sanawm_env.viewer.moves import Followed, Held, Pushed, as_parts, cut, text
from sanawm_env.viewer.session import MAX_UPLOAD_BYTES, Session
from sanawm_env.world import tree
from sanawm_env.world.world import World
from tests.worlds import TINY, picture, with_starts, write_tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World.load(with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")))


@pytest.fixture
def session(world):
    made = Session(world)
    made.begin(0, seed=5)
    yield made
    made.close()


def tensors(session: Session, node: int) -> list[torch.Tensor]:
    moment = session.snapshot(node)
    return list(tree.leaves((moment.state.slots, moment.clip)))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(3)).resize(size).save(buffer, kind)
    return buffer.getvalue()


def unchanged(session: Session, call, error: type[Exception], match: str) -> None:
    """The call raises one sentence, and nothing has changed."""
    before, memory = session.tree, session.memory
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert session.tree is before
    assert session.memory == memory


# --- driving ---


def test_held_keys_give_the_poses_of_the_action_string(session):
    first = session.drive("w-10,wd-14")
    second = session.drive("d-24")
    walked = np.concatenate([first.c2w, second.c2w])
    dynamics = session.controllers.keys.dynamics
    expected = actions_to_c2w("w-10,wd-14,d-24", dynamics.translation_speed, dynamics.rotation_speed_deg)
    assert np.allclose(walked, expected[1:], atol=1e-6)
    assert np.array_equal(first.c2w[-1], session.snapshot(first.id).slot.c2w)


def test_twists_and_poses_drive_too_and_keys_go_on_from_there(session):
    twisted = session.drive([0, 0, 1, 0, 0.5, 0.3])
    speed = session.controllers.twist.speed
    assert np.allclose(twisted.c2w, hold(np.eye(4), speed.scale(np.array([0, 0, 1, 0, 0.5, 0.3]))))
    followed = session.drive(twisted.c2w[::-1].copy())
    assert np.array_equal(followed.c2w, twisted.c2w[::-1])
    held = session.drive("w-24")
    assert np.linalg.norm(held.c2w[0, :3, 3] - followed.c2w[-1, :3, 3]) < 0.1
    assert [node.title for node in session.tree.line(held.id)] == ["0", "twist-24", "path-24", "w-24"]


def test_parts_are_cut_at_any_frame():
    parts = (Held(frozenset("w"), 10), Pushed((0, 0, 1, 0, 0, 0), 6), Followed(np.tile(np.eye(4), (8, 1, 1))))
    assert as_parts(parts, 24) == parts
    assert text(cut(parts, 0)) == ""
    assert text(cut(parts, 10)) == "w-10"
    assert text(cut(parts, 12)) == "w-10,twist-2"
    assert text(cut(parts, 20)) == "w-10,twist-6,path-4"
    assert text(cut(parts, 24)) == text(parts)


@pytest.mark.parametrize(
    ("move", "error", "match"),
    [
        ("w-23", ValueError, "must last 24 frames, got 23"),
        ("q-24", ValueError, "unknown key"),
        ("", ValueError, "empty"),
        ([0, 0, 1], ValueError, "six numbers or poses"),
        ([0, 0, np.nan, 0, 0, 0], ValueError, "not finite"),
        (np.zeros((24, 4, 4)), ValueError, "bottom row"),
        (np.tile(np.eye(4) + np.outer([1e3, 0, 0, 0], [0, 0, 0, 1]), (24, 1, 1)), ValueError, "within"),
        (None, TypeError, "action string"),
        ((Held(frozenset("w"), 12),), ValueError, "got 12"),
    ],
)
def test_what_is_no_move_changes_nothing(session, move, error, match):
    unchanged(session, lambda: session.drive(move), error, match)


def test_a_revised_chunk_replaces_the_one_before_and_keeps_its_beginning(session):
    start = session.drive("w-24")
    old = session.drive("w-24")
    new = session.revise(old.id, "w-9,wa-15")
    assert old.id not in session.tree.nodes
    assert session.tree.children(start.id) == [new]
    assert (new.branch, new.seed, session.current.id) == (old.branch, old.seed, new.id)
    assert np.array_equal(new.c2w[:9], old.c2w[:9])
    assert not np.allclose(new.c2w[9:], old.c2w[9:])
    assert session.memory.on_device == len(session.tree.nodes) == 3
    again = session.drive("w-9,wa-15", at=start.id)
    assert same(tensors(session, again.id), tensors(session, new.id))
    predicted = session.reseed(again.id)
    assert session.revise(predicted.id, "a-24").seed == predicted.seed != new.seed


def test_what_is_kept_is_not_revised(session):
    start, node = session.current, session.drive("w-24")
    unchanged(session, lambda: session.revise(start.id, "a-24"), ValueError, "cannot be revised")
    session.pin(node.id)
    unchanged(session, lambda: session.revise(node.id, "a-24"), ValueError, "cannot be revised")
    session.pin(node.id, False)
    session.drive("w-24")
    unchanged(session, lambda: session.revise(node.id, "a-24"), ValueError, "cannot be revised")


@pytest.mark.slow
def test_driving_goes_on_where_a_worlds_horizon_ends(tmp_path):
    short = World.load(write_tiny_world(tmp_path / "short", config=replace(TINY, horizon_chunks=2)))
    session = Session(short)
    session.begin(picture(1))
    nodes = [session.drive("d-24") for _ in range(5)]
    assert [node.chunk for node in nodes] == [1, 2, 3, 4, 5]
    assert session.snapshot(nodes[-1].id).slot.start == 4
    session.close()


# --- the tree ---


def test_going_back_is_exact_and_driving_on_branches(session):
    a = session.drive("w-24")
    b = session.drive("a-24")
    expected = tensors(session, b.id)
    assert session.restore(a.id) is a
    c = session.drive("d-24")
    session.restore(a.id)
    d = session.drive("a-24")
    assert same(tensors(session, d.id), expected)
    assert [child.id for child in session.tree.children(a.id)] == [b.id, c.id, d.id]
    assert a.branch == b.branch
    assert len({b.branch, c.branch, d.branch}) == 3


def test_dreaming_again_takes_the_same_move_and_other_noise(session):
    node = session.drive("wd-24")
    other = session.reseed(node.id)
    assert (other.parent, other.seed == node.seed) == (node.parent, False)
    assert np.array_equal(other.c2w, node.c2w)
    assert not np.array_equal(session.frames(other.id), session.frames(node.id))
    assert same(tensors(session, session.reseed(node.id, node.seed).id), tensors(session, node.id))
    assert session.drive("w-24", at=other.id).seed == other.seed
    start = session.tree.line(node.id)[0]
    unchanged(session, lambda: session.reseed(start.id), ValueError, "start image")
    unchanged(session, lambda: session.reseed(node.id, -1), ValueError, "seed")


def test_names_and_pins(session):
    node = session.drive("w-24")
    assert session.rename(node.id, "  by the\tdoor ").name == "by the door"
    assert session.pin(node.id).pinned
    assert session.tree[node.id].title == "by the door"
    unchanged(session, lambda: session.rename(node.id, "x" * 81), ValueError, "at most 80")
    unchanged(session, lambda: session.rename(99, "x"), ValueError, "no node 99")


def test_deleting_takes_what_grew_from_it_and_spares_pins(session):
    start = session.current
    a, b = session.drive("w-24"), session.drive("w-24")
    session.restore(a.id)
    c = session.drive("a-24")
    session.pin(b.id)
    unchanged(session, lambda: session.delete(a.id), ValueError, "is pinned")
    session.pin(b.id, False)
    assert sorted(session.delete(a.id)) == [a.id, b.id, c.id]
    assert session.current is start
    assert list(session.tree.nodes) == [start.id]
    unchanged(session, lambda: session.delete(start.id), ValueError, "only scene")
    assert session.memory.on_device == 1
    assert session.drive("w-24").id > c.id  # numbers are not used twice


def test_memory_counts_what_branches_share_once(session):
    def counted() -> int:
        moments = tuple(session.snapshot(i) for i in session.tree.nodes)
        return tree.nbytes(tuple((m.state.slots, m.clip, m.task_state) for m in moments))

    nodes = [session.drive("w-24") for _ in range(4)]
    assert session.memory.device == counted() < sum(session.snapshot(i).nbytes for i in session.tree.nodes)
    session.restore(nodes[1].id)
    session.drive("a-24")
    session.delete(nodes[2].id)
    assert session.memory.device == counted()


def test_comparing_shows_two_branches_from_where_they_part(session):
    a = session.drive("w-24")
    b = [session.drive("a-24"), session.drive("a-24")]
    session.restore(a.id)
    c = session.drive("d-24")
    found = session.compare(b[1].id, c.id)
    height, width = session.frames(a.id).shape[1:3]
    assert found.frames.shape == (48, height, 2 * width, 3)
    assert found.common.id == a.id
    assert np.array_equal(found.frames[:24, :, :width], session.frames(b[0].id))
    assert np.array_equal(found.frames[:24, :, width:], session.frames(c.id))
    assert np.array_equal(found.frames[-1, :, width:], session.frames(c.id)[-1])
    assert found.psnr.shape == (48,)
    assert (session.compare(c.id, c.id).psnr == 100).all()
    assert len(session.compare(b[1].id, c.id, most_chunks=1).frames) == 24
    other = session.begin(1)
    assert session.compare(other.id, c.id).common is None


def test_a_film_holds_every_frame_of_its_branch(session):
    start, nodes = session.current, [session.drive(move) for move in ("w-24", "d-24", "s-24")]
    film = session.film(nodes[1].id)
    frames = list(film.chunks())
    assert [node.id for node in film.nodes] == [start.id, nodes[0].id, nodes[1].id]
    assert all(np.array_equal(shown, session.frames(node.id)) for shown, node in zip(frames, nodes, strict=False))
    assert np.array_equal(film.start.image, session.frames(start.id)[0])


# --- memory ---


def test_old_moments_move_to_disk_and_come_back_bit_for_bit(world):
    roomy, tight = Session(world), Session(world, memory_limit=1)
    moves = ["w-24", "wd-24", "a-24", "none-24", "s-24"]
    for session in (roomy, tight):
        session.begin(0, seed=9)
        for move in moves:
            session.drive(move)
    assert (roomy.memory.on_device, roomy.memory.on_disk) == (6, 0)
    assert (tight.memory.on_device, tight.memory.on_disk) == (1, 5)
    assert tight.memory.disk == sum(path.stat().st_size for path in tight.folder.glob("*.safetensors"))
    for node in roomy.tree.nodes:
        assert same(tensors(tight, node), tensors(roomy, node))
        tight.restore(node)
        assert tight.memory.on_device == 1
    for session in (roomy, tight):
        session.restore(2)
    assert same(tensors(tight, tight.drive("i-24").id), tensors(roomy, roomy.drive("i-24").id))
    folder = tight.folder
    tight.close(), roomy.close()
    assert not folder.exists()


def test_pinned_moments_stay_and_the_oldest_go_first(world):
    session = Session(world, memory_limit=1)
    session.begin(0)
    pinned = session.drive("w-24")
    session.pin(pinned.id)
    session.drive("w-24")
    one = session.memory.device
    session._store.limit = 2 * one
    last = [session.drive("w-24") for _ in range(4)]
    kept = set(session._store._device.snapshots)
    assert {pinned.id, last[-1].id} <= kept
    assert 0 not in kept
    assert session.memory.device <= 2 * one
    session.close()


def test_what_was_looked_at_last_stays(world):
    session = Session(world)
    nodes = [session.begin(0), *(session.drive("w-24") for _ in range(3))]
    session.frames(nodes[0].id)
    session._store.limit = session.memory.device - 1  # one has to go
    session.restore(nodes[3].id)
    assert list(session._store._device.snapshots) == [nodes[2].id, nodes[0].id, nodes[3].id]
    session.close()


def test_a_full_disk_loses_nothing(world, monkeypatch):
    session = Session(world, memory_limit=1)
    session.begin(0)
    first = session.drive("w-24")
    expected = tensors(session, first.id)

    def full(*_):
        raise OSError("The disk is full.")

    monkeypatch.setattr("sanawm_env.envs.snapshot.Snapshot.save", full)
    with pytest.raises(OSError, match="full"):
        session.drive("w-24")
    monkeypatch.undo()
    assert same(tensors(session, first.id), expected)
    session.drive("w-24")
    session.close()


def test_a_full_device_is_lightened_once_and_then_said(session, monkeypatch):
    first, step, calls = session.drive("w-24"), Simulator.step, []

    def full(self, *given):
        calls.append(session.memory.on_device)
        if len(calls) < fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *given)

    monkeypatch.setattr(Simulator, "step", full)
    fails = 2
    assert session.drive("w-24").parent == first.id
    assert calls == [2, 1]
    fails, before = 99, session.tree
    with pytest.raises(MemoryError, match="out of memory: delete branches"):
        session.drive("w-24")
    assert session.tree is before


def test_a_memory_limit_is_above_zero(world):
    with pytest.raises(ValueError, match="above zero"):
        Session(world, memory_limit=0)


# --- scenes ---


def test_scenes_are_shipped_files_arrays_and_uploads(session, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(image_bytes("JPEG"))
    made = [session.begin(1), session.begin(path), session.begin(picture(4)), session.begin(image_bytes("WEBP"))]
    assert [node.scene for node in made] == ["1", "photo", "an image", "an image"]
    assert all(node.parent is None for node in made)
    assert len({node.branch for node in made}) == 4
    assert session.begin(0, name="home").scene == "home"
    uploaded = session.begin(image_bytes("PNG"), name="dropped")
    assert uploaded.scene == "dropped"
    (tmp_path / "same.png").write_bytes(image_bytes("PNG"))
    read = session.begin(tmp_path / "same.png")
    assert session.snapshot(uploaded.id).slot.scene.key == session.snapshot(read.id).slot.scene.key


def test_the_lens_of_a_scene_can_be_set(session):
    wide = session.begin(0, fov_deg=100)
    scene = session.snapshot(wide.id).slot.scene
    assert scene.intrinsics_source == "fov"
    assert scene.intrinsics[0] == pytest.approx(scene.image.shape[1] / 2 / np.tan(np.radians(50)))


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        (b"#!/bin/sh\n", "not a PNG, JPEG or WebP"),
        (image_bytes("GIF"), "not a PNG, JPEG or WebP"),
        (image_bytes("BMP"), "not a PNG, JPEG or WebP"),
        (image_bytes()[:200], "cannot be read|not a PNG"),
        (b"\x89PNG" + bytes(MAX_UPLOAD_BYTES), "16 are accepted"),
        (99, "no scene 99"),
        ("nowhere.png", "no image at"),
    ],
)
def test_what_is_no_image_changes_nothing(session, image, match):
    unchanged(session, lambda: session.begin(image), (ValueError, FileNotFoundError), match)


def test_a_prompt_needs_a_world_with_text(session):
    unchanged(session, lambda: session.begin(0, prompt="a quiet street"), ValueError, "no text encoder")
    unchanged(session, lambda: session.begin(0, fov_deg=500), ValueError, "fov|field of view")


def test_without_a_scene_there_is_nothing_to_drive(world):
    empty = Session(world)
    unchanged(empty, lambda: empty.drive("w-24"), ValueError, "no scene yet")
    unchanged(empty, lambda: empty.save("nowhere"), ValueError, "nothing to save yet")
    empty.close()


# --- files ---


@pytest.fixture
def saved(session, tmp_path) -> Path:
    a = session.drive("w-10,wd-14")
    session.drive([0, 0, 1, 0, 0, 0])
    session.restore(a.id)
    session.drive("a-24")
    session.pin(a.id)
    session.rename(a.id, "the door")
    return session.save(tmp_path / "kept" / "walk")


@pytest.mark.parametrize("limit", [4e9, 1])
def test_a_session_comes_back_whole(session, saved, world, limit):
    other = Session(world, memory_limit=limit)
    assert other.open(saved).id == session.current.id
    shutil.rmtree(saved)  # an opened session does not need its files any more
    assert list(other.tree.nodes) == list(session.tree.nodes)
    for node in session.tree.nodes:
        ours, theirs = session.tree[node], other.tree[node]
        for name in ("id", "parent", "branch", "scene", "chunk", "seed", "name", "pinned", "title"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert np.array_equal(ours.c2w, theirs.c2w)
        assert np.array_equal(ours.thumbnail, theirs.thumbnail)
        assert same(tensors(session, node), tensors(other, node))
    for each in (session, other):
        each.restore(1)
    mine, yours = session.drive("wd-24"), other.drive("wd-24")  # with what held keys carry on
    assert (mine.id, mine.branch) == (yours.id, yours.branch)
    assert same(tensors(session, mine.id), tensors(other, yours.id))
    other.close()


def test_saving_again_replaces_a_session_and_nothing_else(session, saved, tmp_path):
    session.drive("w-24")
    assert session.save(saved) == saved
    assert len(json.loads((saved / "session.json").read_text())["sha256"]) == len(session.tree.nodes) + 1
    assert sorted(path.name for path in saved.parent.iterdir()) == ["walk"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="holds no session"):
        session.save(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        session.save(tmp_path / "file" / "below")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def edit(folder: Path, **changes) -> None:
    header = json.loads((folder / "session.json").read_text())
    (folder / "session.json").write_text(json.dumps(header | changes))


def lead_out(folder: Path) -> None:
    (folder.parent / "x").write_bytes(b"")
    sums = json.loads((folder / "session.json").read_text())["sha256"]
    edit(folder, sha256={**sums, "../x": hashlib.sha256(b"").hexdigest()})


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


BROKEN = {
    "missing folder": (shutil.rmtree, "no session in"),
    "no JSON": (lambda f: (f / "session.json").write_text("{"), "does not describe a session"),
    "another JSON": (lambda f: (f / "session.json").write_text("[]"), "does not describe a session"),
    "another schema": (lambda f: edit(f, schema=99), "has schema 99"),
    "other weights": (lambda f: edit(f, weights_hash="0" * 64), "other weights"),
    "no nodes": (lambda f: edit(f, nodes=None), "not a complete session"),
    "a foreign class": (lambda f: edit(f, nodes=[{"type": "Popen", "fields": {}}]), "not a complete session"),
    "a present that is not there": (lambda f: edit(f, current=77), "not a complete session"),
    "no sums": (lambda f: edit(f, sha256={}), "not a complete session"),
    "a path that leads out": (lead_out, "../x is missing"),
    "a moment cut off": (lambda f: cut_off(f / "2.safetensors"), "2.safetensors is damaged"),
    "a moment gone": (lambda f: (f / "1.safetensors").unlink(), "1.safetensors is missing"),
    "arrays cut off": (lambda f: cut_off(f / "arrays.safetensors"), "arrays.safetensors is damaged"),
    "a moment of another node": (lambda f: shutil.copy(f / "1.safetensors", f / "2.safetensors"), "is damaged"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_file_that_is_no_session_is_said_and_changes_nothing(session, saved, damage):
    ruin, match = BROKEN[damage]
    ruin(saved)
    unchanged(session, lambda: session.open(saved), (ValueError, FileNotFoundError), match)


@pytest.mark.slow
def test_a_session_of_another_world_is_refused(saved, tmp_path):
    foreign = Session(World.load(write_tiny_world(tmp_path / "other", seed=1)))
    foreign.begin(picture(0))
    unchanged(foreign, lambda: foreign.open(saved), ValueError, "other weights")
    foreign.close()


# --- disks and processes ---


def test_on_a_full_disk_nothing_changes_and_what_is_shown_can_be_driven_anew(world, monkeypatch):
    session = Session(world, memory_limit=1)  # every moment but the present has to go to disk
    start, kept, last = session.begin(0, seed=1), session.drive("w-24"), session.drive("w-24")
    frames = session.frames(kept.id)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Snapshot, "save", full)
        for call in (
            lambda: session.drive("d-24"),
            lambda: session.drive("d-24", at=start.id),
            lambda: session.restore(start.id),
            lambda: session.reseed(last.id),
            lambda: session.begin(1),
        ):
            unchanged(session, call, OSError, "No space left")
        assert np.array_equal(session.frames(kept.id), frames)
        last = session.revise(last.id, "a-24")
        session.delete(last.id)
        last = session.drive("d-24")  # there was room for one
    other = Session(world)
    other.begin(0, seed=1)
    assert other._draw() == session._draw()  # nothing was drawn in vain
    for each in (session, other):
        each.close()


def test_what_dead_processes_left_is_cleared_and_nothing_else(world, tmp_path):
    living = Session(world, folder=tmp_path)
    living.begin(0)
    for name in ("dead", "beginning", "of-others"):
        (tmp_path / f"sanawm-play-{name}" / "opened-x").mkdir(parents=True)
    (tmp_path / "sanawm-play-dead" / ".sanawm-lock").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / ".sanawm-lock").touch()
    (tmp_path / "sanawm-play-link").symlink_to(tmp_path / "precious")
    (tmp_path / "sanawm-play-dead" / "link").symlink_to(tmp_path / "precious")
    second = Session(world, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ("precious", "sanawm-play-beginning", "sanawm-play-link", "sanawm-play-of-others", living.folder.name,
         second.folder.name)
    )  # fmt: skip
    assert (tmp_path / "precious" / ".sanawm-lock").exists()
    living.drive("w-24")
    for session in (living, second):
        session.close()
        assert not session.folder.exists()


def test_a_fork_of_a_process_leaves_its_folder_alone(world, tmp_path, monkeypatch):
    session = Session(world, folder=tmp_path)
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        session.close()
    assert session.folder.exists()


# --- threads ---


@pytest.mark.slow
def test_many_threads_share_a_session(world):
    session = Session(world, memory_limit=1)  # every moment comes and goes
    start, failures = session.begin(0, seed=1), []

    def work(number: int) -> None:
        try:
            for i in range(4):
                node = session.drive("wa-24" if number % 2 else "wd-24", at=start.id)
                session.rename(node.id, f"{number}.{i}")
                session.frames(node.id)
                session.drive("w-24", at=node.id)
                session.restore(start.id)
                assert session.tree[node.id].name == f"{number}.{i}"
                assert session.memory.on_device >= 1
                if i == 3:
                    session.delete(node.id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(session.tree.nodes) == 1 + 4 * 3 * 2
    frames = {move: {session.frames(n.id).tobytes() for n in session.tree.children(start.id) if n.title[0] in move}
              for move in ("02", "13")}  # fmt: skip
    assert [len(different) for different in frames.values()] == [1, 1]
    session.close()


def test_thumbnails_are_small():
    assert module.thumbnail(np.zeros((704, 1280, 3), np.uint8)).shape == (53, 96, 3)
    assert module.thumbnail(np.zeros((24, 32, 3), np.uint8)).shape == (24, 32, 3)
