"""The player of the live viewer, under a clock of the tests' own: when frames are due, and how keys are answered."""

import errno
import threading

import numpy as np
import pytest

from sanawm_env.camera.presets import pitch_of
from sanawm_env.viewer.moves import text
from sanawm_env.viewer.playback import MARGIN, Decision, Imagined, Player, sentence
from sanawm_env.viewer.session import Session
from sanawm_env.world.world import World
from tests.worlds import with_starts, write_tiny_world

FPS, CHUNK, LATENT = 16, 1.5, 8  # frames a second, seconds, frames
W, A, NONE = frozenset("w"), frozenset("a"), frozenset()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World.load(with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")))


class Stage:
    """A player whose clock stands still but for what the test lets pass, and for `cost` seconds a chunk."""

    def __init__(self, world: World, cost: float = 0.1, scene: bool = True):
        self.now, self.cost = 100.0, cost
        self.shown, self.futures, self.errors = [], [], []
        self.session = Session(world)
        if scene:
            self.session.begin(0, seed=3)
        for name in ("drive", "revise"):
            setattr(self.session, name, self.costly(getattr(self.session, name)))
        self.player = Player(
            self.session, lambda: self.now, self.shown.append,
            on_futures=lambda *seen: self.futures.append(seen), on_error=lambda *said: self.errors.append(said),
        )  # fmt: skip

    def costly(self, imagine):
        def imagined(*arguments):
            self.now += self.cost
            return imagine(*arguments)

        return imagined

    def until(self, moment: float) -> None:
        """Let time pass, with a player that is as busy as its thread would be."""
        while self.now < moment:
            wait = self.player.tick()
            self.now = max(self.now, min(self.now + wait, moment))

    def after(self, seconds: float) -> None:
        self.until(self.now + seconds)

    def press(self, keys, viewer="me", number=0) -> None:
        self.player.press(viewer, keys, number)

    @property
    def titles(self) -> list[str]:
        return [text(node.parts) for node in self.session.tree.line(self.session.current.id)[1:]]


@pytest.fixture
def stage(world):
    made = Stage(world)
    yield made
    made.player.close()
    made.session.close()


def test_nothing_happens_while_nobody_drives(stage):
    assert stage.player.tick() == float("inf")
    assert stage.shown == []
    assert len(stage.session.tree.nodes) == 1


def test_a_key_from_rest_is_answered_as_soon_as_the_chunk_is_imagined(stage):
    begin = stage.now
    stage.press(W, number=7)
    stage.player.tick()
    (shown,) = stage.shown
    assert (shown.first, len(shown.frames), shown.starts) == (0, 24, begin + stage.cost)
    assert shown.answers == {"me": 7}
    assert np.array_equal(shown.frames, stage.session.frames(shown.node))
    assert list(stage.player.latencies) == [pytest.approx(stage.cost)]


def test_held_keys_drive_on_without_a_gap(stage):
    stage.press(W)
    stage.after(10)
    starts = [shown.starts for shown in stage.shown]
    assert len(starts) == 7
    assert np.allclose(np.diff(starts), CHUNK)
    assert max(stage.player.stalls) == 0
    assert stage.titles == ["w-24"] * 7
    poses = np.concatenate([node.c2w for node in stage.session.tree.line(stage.session.current.id)])
    assert (np.diff(poses[:, 2, 3]) > 0).all()


def test_the_next_chunk_is_imagined_late_so_that_keys_are_read_late(stage):
    stage.press(W)
    stage.after(4 * CHUNK)
    begun = stage.shown[-1].starts
    stage.until(begun + CHUNK - stage.player.lead - 0.01)
    before = len(stage.shown)
    stage.after(0.02 + stage.cost)
    assert len(stage.shown) == before + 1


def test_a_world_slower_than_its_film_is_late_by_the_difference(world):
    slow = Stage(world, cost=2.0)
    slow.press(W)
    slow.after(10)
    assert list(slow.player.stalls)[1:] == pytest.approx([2.0 - CHUNK] * (len(slow.player.stalls) - 1), abs=0.01)
    assert all(shown.first == 0 for shown in slow.shown)
    slow.player.close(), slow.session.close()


def test_a_key_in_the_middle_of_a_chunk_is_answered_within_it(stage):
    stage.press(W)
    stage.after(0.6)
    pressed, old = stage.now, stage.shown[-1]
    stage.press(W | A, number=2)
    stage.after(0.3)
    new = stage.shown[-1]
    assert new.answers == {"me": 2}
    assert new.starts == old.starts
    assert new.first == 16  # where a latent begins
    delay = new.starts + new.first / FPS - pressed
    assert stage.cost + MARGIN <= delay <= stage.cost + MARGIN + LATENT / FPS
    assert stage.player.latencies[-1] == pytest.approx(delay)
    assert stage.titles == [f"w-{new.first},wa-{24 - new.first}"]
    assert np.array_equal(new.frames, stage.session.frames(new.node)[new.first :])
    assert old.node not in stage.session.tree.nodes


def test_what_was_shown_before_an_answer_has_the_poses_it_was_shown_with(stage):
    stage.press(W)
    stage.after(0.5)
    before = stage.session.tree[stage.shown[-1].node].c2w
    stage.press(A)
    stage.after(0.3)
    first, after = stage.shown[-1].first, stage.session.tree[stage.shown[-1].node].c2w
    assert np.array_equal(before[:first], after[:first])
    assert not np.allclose(before[first:], after[first:])


def test_a_key_that_is_let_go_lets_the_camera_come_to_rest(stage):
    stage.press(W)
    stage.after(0.4)
    released = stage.now
    stage.press(NONE)
    stage.after(10)
    (title,) = stage.titles
    shown = stage.shown[-1]  # from any frame on
    assert shown.starts + shown.first / FPS - released <= stage.cost + MARGIN + 1 / FPS + 1e-6
    held = int(title.split("-")[1].split(",")[0])
    assert title == f"w-{held},none-{24 - held}"
    steps = np.diff(stage.session.current.c2w[:, 2, 3])
    assert (np.diff(steps[held:]) < 0).all()
    assert stage.player.tick() == float("inf")


def test_a_tap_between_two_looks_is_not_lost(stage):
    stage.press(W, number=1)
    stage.press(NONE, number=2)
    stage.after(5)
    assert len(stage.titles) == 1
    assert stage.titles[0].startswith("w-")
    assert stage.session.current.c2w[-1, 2, 3] > 0


def test_a_tap_that_ends_before_its_latent_begins_is_not_lost(stage):
    stage.press(W)
    stage.after(0.6)
    stage.press(W | A)
    stage.after(0.15)
    stage.press(W)
    stage.after(1.2)
    assert stage.titles[0] == "w-16,wa-2,w-6"
    assert stage.titles[1] == "w-24"


def test_a_key_too_late_for_its_chunk_changes_the_next_one(stage):
    stage.press(W)
    stage.until(stage.now + stage.cost)
    begun = stage.shown[-1].starts
    stage.until(begun + CHUNK - stage.player.lead + 0.02 + stage.cost)  # the next one is imagined, not yet shown
    assert stage.shown[-1].starts > stage.now
    stage.until(begun + CHUNK - 0.08)
    stage.press(A)
    stage.after(0.5)
    assert stage.titles[0] == "w-24"
    assert stage.titles[1].endswith(f"a-{24 - stage.shown[-1].first}")


def test_a_chunk_imagined_ahead_and_never_shown_leaves_no_trace(stage):
    stage.player.push("me", [0, 0, 1, 0, 0, 0])
    stage.until(stage.now + stage.cost)
    begun = stage.shown[-1].starts
    stage.until(begun + CHUNK - 0.1)
    assert len(stage.session.tree.nodes) == 3
    stage.player.push("me", [0] * 6)
    stage.after(3)
    assert len(stage.session.tree.nodes) == 2
    assert stage.session.current.chunk == 1


def test_a_chunk_that_somebody_keeps_is_not_changed_any_more(stage):
    stage.press(W)
    stage.after(0.5)
    kept = stage.shown[-1].node
    stage.player.do(lambda: stage.session.pin(kept))
    stage.press(A)
    stage.after(2)
    assert text(stage.session.tree[kept].parts) == "w-24"
    assert stage.titles == ["w-24", "a-24"]


def test_sliders_push_and_stop_dead(stage):
    stage.player.push("me", [0, 0, 0.5, 0, 0, 0], number=4)
    stage.after(0.6)
    stage.player.push("me", [0] * 6)
    stage.after(3)
    (title,) = stage.titles
    pushed = int(title.split("-")[1].split(",")[0])
    assert title == f"twist-{pushed},none-{24 - pushed}"
    poses = stage.session.current.c2w
    assert np.ptp(poses[pushed - 1 :, 2, 3]) == 0
    assert stage.shown[0].answers == {"me": 4}


@pytest.mark.parametrize("twist", [[0, 0, 1], [0, 0, np.nan, 0, 0, 0], "forward"])
def test_what_is_no_twist_is_refused(stage, twist):
    with pytest.raises(ValueError):
        stage.player.push("me", twist)
    assert stage.player.tick() == float("inf")


def test_what_is_no_key_is_refused(stage):
    with pytest.raises(ValueError, match="Keys must be some of wsadikjl"):
        stage.press(frozenset("wx"))
    assert stage.player.tick() == float("inf")


def test_viewers_steer_together_and_who_goes_lets_go(stage):
    stage.press(W, "me")
    stage.press(frozenset("i"), "you")
    stage.after(1)
    assert stage.titles[0].endswith("wi-24")
    assert pitch_of(stage.session.current.c2w[-1]) > 0
    stage.player.forget("you")
    stage.after(1.5)
    assert stage.titles[-1].endswith("w-24") or ",w-" in stage.titles[-1]
    stage.player.forget("me")
    stage.after(3)
    assert stage.player.tick() == float("inf")


# --- what is done to the session ---


def test_going_back_shows_the_last_frame_of_that_moment(stage):
    stage.press(W)
    stage.after(2)
    stage.press(NONE)
    stage.after(3)
    first = stage.session.tree.line(stage.session.current.id)[1]
    stage.player.do(lambda: stage.session.restore(first.id))
    stage.after(0.1)
    shown = stage.shown[-1]
    assert (shown.node, shown.first, len(shown.frames)) == (first.id, 23, 1)
    assert np.array_equal(shown.frames[0], stage.session.frames(first.id)[-1])
    stage.press(A)
    stage.after(0.5)
    assert stage.titles == [text(first.parts), "a-24"]


def test_going_back_while_a_key_is_held_drives_on_from_there(stage):
    stage.press(W)
    stage.after(4)
    start = stage.session.tree.line(stage.session.current.id)[0]
    stage.player.do(lambda: stage.session.restore(start.id))
    stage.after(0.5)
    assert stage.titles == ["w-24"]
    assert len({child.branch for child in stage.session.tree.children(start.id)}) == 2


def test_a_dream_that_was_asked_for_is_played_whole(stage):
    stage.press(W)
    stage.after(0.5)
    stage.press(NONE)
    stage.after(3)
    node = stage.session.current
    stage.player.do(lambda: stage.session.reseed(node.id))
    stage.after(0.2)
    shown = stage.shown[-1]
    assert (shown.node != node.id, shown.first, len(shown.frames)) == (True, 0, 24)


def test_what_cannot_be_done_is_said_to_who_asked_and_the_film_goes_on(stage):
    stage.press(W)
    stage.after(0.5)
    stage.player.do(lambda: stage.session.restore(77), "you")
    stage.after(2)
    assert stage.errors == [("you", "There is no node 77: it was deleted, or never existed.")]
    assert len(stage.titles) == 2


def test_an_error_while_driving_is_said_to_all_and_ends_the_drive(stage):
    def broken(*_):
        raise MemoryError("cpu is out of memory: delete branches.")

    stage.session.drive = broken
    stage.press(W)
    stage.after(1)
    assert stage.errors == [(None, "cpu is out of memory: delete branches.")]
    assert stage.player.tick() == float("inf")


def test_without_a_scene_keys_say_so(world):
    empty = Stage(world, scene=False)
    assert empty.player.tick() == float("inf")
    empty.press(W)
    empty.after(0.1)
    assert empty.errors == [(None, "There is no scene yet: choose one, or drop an image.")]
    empty.player.do(lambda: empty.session.begin(1))
    empty.after(0.1)
    assert len(empty.shown[-1].frames) == 1
    empty.player.close(), empty.session.close()


def test_errors_become_one_sentence():
    assert sentence(ValueError("Two\nlines")) == "Two"
    assert sentence(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("Out of memory")
    assert sentence(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert len(sentence(ValueError("x" * 10**6))) == 500
    assert sentence(KeyError("node")) == "Something went wrong: KeyError: 'node'."


# --- drivers ---


class Straight:
    """Pushes forward for some chunks, and has thought of two futures each time."""

    name = "straight"

    def __init__(self, chunks: int = 99):
        self.left, self.moments = chunks, []

    def __call__(self, moment) -> Decision:
        self.moments.append(moment)
        self.left -= 1
        futures = [Imagined(np.tile(np.eye(4), (48, 1, 1)), np.zeros((4, 6, 3), np.uint8))] * 2
        return Decision([0, 0, 1, 0, 0, 0] if self.left >= 0 else None, futures)


def settle(stage: Stage, seconds: float) -> None:
    """Let time pass for drivers too, who think in a thread of their own."""
    end = stage.now + seconds
    while stage.now < end:
        stage.until(min(end, stage.now + 0.05))
        if stage.player._thought is not None:
            stage.player._thought[2].exception(60)


def test_a_driver_drives_and_its_futures_are_seen(stage):
    driver = Straight()
    stage.player.stage(driver)
    settle(stage, 5)
    line = stage.session.tree.line(stage.session.current.id)
    assert [node.title for node in line[1:]] == ["twist-24"] * (len(line) - 1)
    assert len(line) >= 4
    assert [node for node, _ in stage.futures] == [node.id for node in line[: len(stage.futures)]]
    assert all(len(futures) == 2 for _, futures in stage.futures)
    assert driver.moments[1].slot.chunk == 1


def test_any_key_takes_over_within_the_chunk(stage):
    stage.player.stage(Straight())
    settle(stage, 2.3)
    playing = next(s for s in reversed(stage.shown) if s.starts <= stage.now)
    pressed = stage.now
    stage.press(A, number=9)
    stage.after(0.3)
    shown = stage.shown[-1]
    assert stage.player.driver is None
    assert (shown.starts, shown.answers) == (playing.starts, {"me": 9})
    assert shown.first % LATENT == 0
    assert shown.starts + shown.first / FPS - pressed <= stage.cost + MARGIN + LATENT / FPS + 1e-6
    assert stage.titles[-1] == f"twist-{shown.first},a-{24 - shown.first}"


def test_a_driver_that_has_arrived_leaves_the_stage(stage):
    stage.player.stage(Straight(1))
    settle(stage, 4)
    assert stage.player.driver is None
    assert stage.titles == ["twist-24"]
    assert stage.errors == [(None, "straight has arrived.")]


def test_a_driver_that_fails_is_said_and_leaves_the_stage(stage):
    def failing(moment):
        raise ValueError("An objective must return finite scores.")

    failing.name = "failing"
    stage.player.stage(failing)
    settle(stage, 1)
    assert stage.errors == [(None, "An objective must return finite scores.")]
    assert stage.player.driver is None
    stage.press(W)
    stage.after(0.5)
    assert stage.titles == ["w-24"]


def test_a_driver_whose_answer_is_not_wanted_any_more_is_told_to_give_up(stage):
    begun, given_up = threading.Event(), threading.Event()

    class Slow:
        name = "slow"
        give_up = staticmethod(given_up.set)

        def __call__(self, moment) -> Decision:
            begun.set()
            assert given_up.wait(60)
            raise ValueError("Nobody is told of this.")

    stage.player.stage(Slow())
    stage.player.tick()
    assert begun.wait(60)
    assert not given_up.is_set()
    stage.press(W)
    stage.after(0.5)
    assert given_up.is_set()
    assert (stage.titles, stage.errors) == (["w-24"], [])


# --- the thread ---


def test_the_players_thread_plays_and_ends(world):
    session, shown = Session(world), threading.Event()
    session.begin(0)
    player = Player(session, on_show=lambda _: shown.set())
    player.start()
    player.press("me", W)
    assert shown.wait(60)
    player.press("me", NONE)
    done = threading.Event()
    player.do(done.set)
    assert done.wait(60)

    def hammer(viewer: int) -> None:
        for k in range(50):
            player.press(viewer, W if k % 2 else A)

    threads = [threading.Thread(target=hammer, args=(viewer,)) for viewer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        player.forget(i)
    done.clear()
    player.do(done.set)
    assert done.wait(60)
    player.close()
    nodes = session.tree.nodes
    assert all(node.parent in nodes for node in nodes.values() if node.parent is not None)
    assert all(sum(part.frames for part in node.parts) == 24 for node in nodes.values() if node.parent is not None)
    session.close()
