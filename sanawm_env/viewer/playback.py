"""Play and drive a session: frames are due 16 times a second while the next chunk is being predicted.

A chunk shows 24 frames. The next one is predicted just before it is needed, so that keys are read as late as possible.
A key that changes in the middle of a chunk does not wait for its end: because states are values, the chunk is predicted
again from the node before it, with the same noise, and the same poses up to the frames that will have been shown by
then. Its new rest replaces the old one. A newly pressed key takes effect at a latent (every 8 frames): within a latent,
frames that have been shown would change too much (a jump of 24 dB on nano; at a latent's border it is 27 to 33, as from
one latent to the next anyway). A released key slows the camera from any frame on.

`Player.tick` does one piece of work and returns when it is to be called again. A thread calls it (`start`); tests call
it with a clock of their own.
"""

import math
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sanawm_env.camera.presets import KEY_ORDER
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.system.files import brief
from sanawm_env.viewer.moves import Held, Parts, Pushed, cut
from sanawm_env.viewer.session import Session
from sanawm_env.viewer.tree import Node

COASTS = 0.6  # share of full speed above which a camera without keys gets another chunk to come to rest
MARGIN = 0.04  # seconds, for encoding frames and taking them to the page
TAP = 2  # frames that a key is held at least
REMEMBERED = 16  # chunks whose time to predict is looked at
THINKING = 0.05  # seconds between two looks at what a driver has come up with
MAX_SENTENCE = 500  # characters
KNOWN = frozenset(KEY_ORDER)
Viewer = Hashable


@dataclass(frozen=True, eq=False)
class Imagined:
    """A future that a driver has predicted.

    Attributes:
        c2w: (F, 4, 4), the poses.
        end: (h, w, 3) uint8, the last frame.
    """

    c2w: NDArray
    end: NDArray


@dataclass(frozen=True, eq=False)
class Decision:
    """What a driver does next.

    Attributes:
        move: as `Session.drive` takes it; None: it has arrived.
        futures: what it compared.
    """

    move: str | ArrayLike | Parts | None
    futures: Sequence[Imagined] = ()


class Driver(Protocol):
    """Drives in place of keys. It is called in a thread of its own with the snapshot to continue from. A slow one may
    also have a method `give_up()`, which is called when its answer is no longer wanted.

    Attributes:
        name: shown to viewers.
    """

    name: str

    def __call__(self, snapshot: Snapshot) -> Decision: ...


@dataclass(frozen=True, eq=False)
class Shown:
    """Frames for the viewers.

    Attributes:
        node: whose frames they are.
        frames: (n, H, W, 3) uint8, those of the node from `first` on.
        first: index of the first frame in the node.
        starts: frame i of the node is due at starts + i / fps on the player's clock.
        answers: for each viewer the number of its newest input that these frames follow.
    """

    node: int
    frames: NDArray
    first: int
    starts: float
    answers: Mapping[Viewer, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """A chunk that is played, or comes next.

    Attributes:
        node: of the chunk.
        parts: how it is driven.
        starts: when its frame 0 is due.
        by_hand: driven by keys or sliders, not by a driver.
    """

    node: int
    parts: Parts
    starts: float
    by_hand: bool


class Player:
    """Plays a session for any number of viewers, who drive it together.

    Args:
        session: to play.
        clock: seconds.
        on_show: called with frames for the viewers.
        on_tree: called when the tree has changed.
        on_futures: called with a node and the futures that a driver predicts from it.
        on_error: called with a viewer (None for all) and a sentence. All of them are called from the player's thread.
    """

    def __init__(
        self,
        session: Session,
        clock: Callable[[], float] = time.monotonic,
        on_show: Callable[[Shown], object] = lambda shown: None,
        on_tree: Callable[[], None] = lambda: None,
        on_futures: Callable[[int, Sequence[Imagined]], object] = lambda node, futures: None,
        on_error: Callable[[Viewer | None, str], None] = lambda viewer, sentence: None,
    ):
        self.session, self.clock = session, clock
        self.on_show, self.on_tree, self.on_futures, self.on_error = on_show, on_tree, on_futures, on_error
        self.length = session.frames_per_chunk
        self.seconds = self.length / session.fps
        latents = session.world.config.latent_shape
        self.stride = 1 if latents is None else self.length // latents[1]  # frames of a latent
        self.shown: Shown | None = None  # the newest, for viewers who come later
        self._driver: Driver | None = None
        self.latencies: deque[float] = deque(maxlen=4096)  # seconds from an input to the first frame that follows it
        self.stalls: deque[float] = deque(maxlen=4096)  # seconds that a chunk was late
        self._imagining: deque[float] = deque(maxlen=REMEMBERED)
        self._input = threading.Lock()
        self._held: dict[Viewer, frozenset[str]] = {}
        self._pushed: dict[Viewer, tuple[float, ...]] = {}
        self._numbers: dict[Viewer, int] = {}
        self._tapped: frozenset[str] = frozenset()  # pressed since they were last looked at
        self._pressed: list[float] = []  # when, since then
        self._asked: list[float] = []  # when keys were pressed that frames have yet to follow
        self._answers: dict[Viewer, int] = {}
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Viewer | None]] = queue.SimpleQueue()
        self._now: _Chunk | None = None
        self._next: _Chunk | None = None
        self._thinker = ThreadPoolExecutor(1, thread_name_prefix="driver")
        self._thought: tuple[int, Driver, Future[Decision]] | None = None
        self._wake, self._closed = threading.Event(), False
        self._thread: threading.Thread | None = None

    # --- from the viewers, in any thread ---

    def press(self, viewer: Viewer, keys: frozenset[str], number: int = 0) -> None:
        """Set the held keys of a viewer.

        Args:
            viewer: whose keys.
            keys: of wasdijkl.
            number: of this input; `Shown.answers` returns it.

        Raises:
            ValueError: for other keys.
        """
        if not keys <= KNOWN:
            raise ValueError(f"Keys must be some of {KEY_ORDER}, got {brief(''.join(sorted(keys)))}.")
        with self._input:
            fresh = keys - self._held.get(viewer, frozenset())
            if fresh:
                self._pressed.append(self.clock())
            self._tapped |= fresh
            self._held[viewer], self._numbers[viewer] = keys, number
        self._wake.set()

    def push(self, viewer: Viewer, twist: Sequence[float], number: int = 0) -> None:
        """Set the body twist of a viewer's sliders.

        Args:
            viewer: whose sliders.
            twist: (6,) in [-1, 1].
            number: of this input; `Shown.answers` returns it.

        Raises:
            ValueError: for anything but six finite numbers.
        """
        array = np.asarray(twist, np.float64)
        if array.shape != (6,) or not np.isfinite(array).all():
            raise ValueError(f"A twist must be six finite numbers, got {brief(twist)}.")
        with self._input:
            self._pushed[viewer] = tuple(np.clip(array, -1, 1).tolist())
            self._numbers[viewer] = number
        self._wake.set()

    def forget(self, viewer: Viewer) -> None:
        """Release everything that a viewer holds, because it has left."""
        with self._input:
            for held in (self._held, self._pushed, self._numbers):
                held.pop(viewer, None)
        self._wake.set()

    @property
    def resting(self) -> bool:
        """Whether nothing is played and no command waits."""
        return self._now is None and self._next is None and self._commands.empty()

    @property
    def driver(self) -> Driver | None:
        """The driver, or None while keys drive. May be set."""
        return self._driver

    @driver.setter
    def driver(self, driver: Driver | None) -> None:
        before, self._driver = self._driver, driver
        give_up = getattr(before, "give_up", None)
        if before is not driver and give_up is not None:
            give_up()

    def stage(self, driver: Driver | None) -> None:
        """Let a driver drive; None stops it. Any key stops it too."""
        self.driver = driver
        self._wake.set()

    def do(self, command: Callable[[], Any], viewer: Viewer | None = None) -> None:
        """Call a command between two chunks.

        Args:
            command: changes the session.
            viewer: who is told of errors; None for all.
        """
        self._commands.put((command, viewer))
        self._wake.set()

    # --- the thread ---

    def start(self) -> None:
        """Show the current node, and start the thread."""
        self.do(self.rest)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the chunk that is being predicted."""
        self._closed, self.driver = True, None
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._thinker.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._closed:
            wait = self.tick()
            self._wake.wait(min(wait, 3600))
            self._wake.clear()

    def tick(self) -> float:
        """Do the most urgent piece of work.

        Returns:
            Seconds until there may be more (inf: when a viewer does something).
        """
        try:
            return self._tick()
        except Exception as error:  # whatever it was, it is said on the page and the session goes on
            self._let_go()
            self.driver = self._thought = self._now = self._next = None
            self.on_error(None, sentence(error))
            with suppress(Exception):
                self.rest()
            return 0.0

    def _tick(self) -> float:
        if not self._commands.empty():
            self._obey(*self._commands.get())
            return 0.0
        hand, now = self._hand(), self.clock()
        if not self.session.tree.nodes:
            if hand is None and self.driver is None:
                return math.inf
            raise ValueError("There is no scene yet: choose one, or drop an image.")
        if hand is not None:
            self.driver = None  # any key takes over
        if self._next is not None and now >= self._next.starts:
            self._now, self._next = self._next, None
        if self._now is None or (self._next is None and now >= self._now.starts + self.seconds):
            return self._go_on(hand)
        return self._play_on(self._now, hand, now)

    def _go_on(self, hand: Parts | None) -> float:
        """Nothing is left to show: predict the next chunk from the current node, if somebody drives."""
        late, present = self._now, self.session.current
        move = self._decided(present) if hand is None else hand
        if move is None and self.driver is not None:
            return THINKING
        if move is None:
            self._now = None
            return math.inf
        node = self._timed(lambda: self.session.drive(move))
        self._now = _Chunk(node.id, node.parts, self.clock(), hand is not None)
        if late is not None:
            self.stalls.append(self._now.starts - late.starts - self.seconds)
        self._show(self._now, 0)
        return 0.0

    def _play_on(self, chunk: _Chunk, hand: Parts | None, now: float) -> float:
        """While a chunk is shown: answer changed keys, and predict the next chunk in time."""
        ahead, ends = self._next, chunk.starts + self.seconds
        wanted = (Held(frozenset(), self.length),) if hand is None and chunk.by_hand else hand
        if wanted is not None and self.driver is None:
            at = math.ceil((now + self.answer - chunk.starts) * self.session.fps)
            here, differs = self._from(chunk.parts, wanted, at), _differs(chunk.parts, wanted)
            if differs and here < self.length and self._may_revise(chunk):
                self._drop_next()
                self._now = self._revised(chunk, wanted, here)
                return 0.0
            if ahead is not None and (not differs or here >= self.length) and _differs(ahead.parts, wanted):
                if hand is None and self._coasting(self.session.tree[chunk.node]) is None:
                    self._drop_next()
                    return 0.0
                if self._may_revise(ahead):
                    there = max(self._from(ahead.parts, wanted, at - self.length, chunk.parts), 0)
                    self._next = self._revised(ahead, wanted, there)
                    return 0.0
        if ahead is not None:
            return max(ahead.starts - now, 0.0)
        present = self.session.tree[chunk.node]
        if self.driver is not None:  # drivers take their time: they are asked as soon as can be
            move, by_hand = self._decided(present), False
        elif now < ends - self.lead:
            return ends - self.lead - now
        else:
            move, by_hand = self._coasting(present) if hand is None and chunk.by_hand else hand, True
        if move is None:
            return max(ends - now, 0.001) if self.driver is None else THINKING
        node = self._timed(lambda: self.session.drive(move, chunk.node))
        self._next = _Chunk(node.id, node.parts, max(self.clock(), ends), by_hand)
        self.stalls.append(self._next.starts - ends)
        self._show(self._next, 0)
        return 0.0

    # --- pieces of work ---

    @property
    def lead(self) -> float:
        """Seconds before its first frame is due at which the prediction of a chunk has to begin."""
        return 1.5 * (max(self._imagining, default=0.2) + MARGIN)

    @property
    def answer(self) -> float:
        """Seconds that a prediction usually takes. If it takes longer, some of its frames are left out."""
        return (median(self._imagining) if self._imagining else 0.2) + MARGIN

    def _timed(self, imagine: Callable[[], Node]) -> Node:
        begin = self.clock()
        node = imagine()
        self._imagining.append(self.clock() - begin)
        return node

    def _revised(self, chunk: _Chunk, wanted: Parts, at: int) -> _Chunk:
        """The chunk with another rest from frame `at` on, which is shown."""
        parts = (*cut(chunk.parts, at), *cut(wanted, self.length - at))
        node = self._timed(lambda: self.session.revise(chunk.node, parts))
        revised = _Chunk(node.id, node.parts, chunk.starts, True)
        self._show(revised, at)
        return revised

    def _show(self, chunk: _Chunk, first: int) -> None:
        """Hand frames to the viewers. Frames whose time is over are left out, but never the last one."""
        now = self.clock()
        first = min(max(first, math.floor((now - chunk.starts) * self.session.fps)), self.length - 1)
        due = max(now, chunk.starts + first / self.session.fps)
        self.latencies.extend(due - pressed for pressed in self._asked)
        self._asked = []
        self._hand_out(chunk.node, first, chunk.starts)
        self.on_tree()

    def _hand_out(self, node: int, first: int, starts: float) -> None:
        self.shown = Shown(node, self.session.frames(node)[first:], first, starts, self._answers)
        self.on_show(self.shown)

    def _obey(self, command: Callable[[], Any], viewer: Viewer | None) -> None:
        """Run a viewer's command. A new node is played. If the current node is now an old one, its last frame is
        shown."""
        before, made = self.session.tree, None
        try:
            made = command()
        except Exception as error:  # said to who asked, and the session goes on
            self.on_error(viewer, sentence(error))
        nodes = self.session.tree.nodes
        gone = any(chunk is not None and chunk.node not in nodes for chunk in (self._now, self._next))
        if self.session.tree.current != before.current or gone:
            self.rest()
        if isinstance(made, Node) and made.parts and made.id in nodes and made.id not in before.nodes:
            self._now = _Chunk(made.id, made.parts, self.clock(), False)
            self._show(self._now, 0)
        self.on_tree()

    def rest(self) -> None:
        """Stop moving, and show the last frame of the current node. Call it in the player's thread, through `do`."""
        self._drop_next()
        self._now = None
        if self.session.tree.nodes:
            present = self.session.current
            last = len(present.c2w) - 1
            self._hand_out(present.id, last, self.clock() - last / self.session.fps)

    def _drop_next(self) -> None:
        """Delete a chunk that was predicted ahead and never shown."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead.node in self.session.tree.nodes and self.session.plain(ahead.node):
            self.session.delete(ahead.node)
            self.on_tree()

    def _from(self, parts: Parts, wanted: Parts, at: int, before: Parts = ()) -> int:
        """The frame, `at` or later, from which a chunk of these parts can follow a new wish: at a latent for a new
        key, at once for a released key. A key that is released before its effect has begun is still held briefly, so
        that a tap is not lost. before: parts of the chunk before."""
        last, goal = parts[-1], wanted[0]
        if not (isinstance(last, Held) and isinstance(goal, Held) and goal.keys <= last.keys):
            return math.ceil(at / self.stride) * self.stride
        earlier = (*before, *parts[:-1])[-1:]
        old = earlier[0].keys if earlier and isinstance(earlier[0], Held) else frozenset()
        tapped = last.keys - old - goal.keys
        return max(at, self.length - last.frames + TAP) if tapped else at

    def _may_revise(self, chunk: _Chunk) -> bool:
        """Whether a chunk has no name, no pin and no children but an unseen one."""
        tree, ahead = self.session.tree, self._next
        node = tree[chunk.node]
        unseen = {ahead.node} if ahead is not None and self.session.plain(ahead.node) else set()
        return not (node.name or node.pinned) and {child.id for child in tree.children(node.id)} <= unseen

    def _hand(self) -> Parts | None:
        """What the viewers hold, or None. A key that was pressed and released since the last call counts as held."""
        with self._input:
            keys = self._tapped.union(*self._held.values())
            twist = np.clip(sum(map(np.array, self._pushed.values()), np.zeros(6)), -1, 1)
            self._tapped, self._answers = frozenset(), dict(self._numbers)
            self._asked += self._pressed
            self._pressed = []
        if keys:
            return (Held(keys, self.length),)
        return (Pushed(tuple(twist.tolist()), self.length),) if twist.any() else None

    def _let_go(self) -> None:
        with self._input:
            self._held.clear()
            self._pushed.clear()
            self._tapped = frozenset()

    def _coasting(self, node: Node) -> Parts | None:
        """A chunk without keys, while the camera is still fast."""
        dynamics, keys = self.session.controllers.keys.dynamics, node.controller_state
        if keys is None:
            return None
        turn = math.radians(dynamics.rotation_speed_deg)
        full = (dynamics.translation_speed, dynamics.translation_speed, turn, turn)
        speed = max(abs(v) / f for v, f in zip(keys.velocity, full, strict=True))
        return (Held(frozenset(), self.length),) if speed > COASTS else None

    def _decided(self, node: Node) -> Any:
        """The driver's move after a node; None while it computes. Its futures are shown when it is done."""
        driver = self.driver
        if driver is None:
            return None
        if self._thought is None or self._thought[0] != node.id or self._thought[1] is not driver:
            future = self._thinker.submit(driver, self.session.snapshot(node.id))
            future.add_done_callback(lambda _: self._wake.set())
            self._thought = node.id, driver, future
        if not self._thought[2].done():
            return None
        thought, self._thought = self._thought[2], None
        decision = thought.result()
        self.on_futures(node.id, decision.futures)
        if decision.move is None:
            self.driver = None
            self.on_error(None, f"{driver.name} has arrived.")
            self.on_tree()
        return decision.move


def sentence(error: Exception) -> str:
    """An error as a sentence for the page."""
    said = str(error).strip()
    first = re.sub(r"^\[Errno \d+\] ", "", said.splitlines()[0]) if said else ""
    first = first if len(first) <= MAX_SENTENCE else f"{first[: MAX_SENTENCE - 1]}…"
    if isinstance(error, ValueError | TypeError | OSError | MemoryError | ImportError) and first:
        return first
    if "memory" in said.lower() and "alloc" in said.lower():
        return "Out of memory: delete branches, or start with a lower memory limit."
    return f"Something went wrong: {type(error).__name__}{': ' + first if first else ''}."


def _differs(parts: Parts, wanted: Parts) -> bool:
    """Whether the last part does something else than what is wanted."""
    last, goal = parts[-1], wanted[0]
    if isinstance(last, Held) and isinstance(goal, Held):
        return last.keys != goal.keys
    return not (isinstance(last, Pushed) and isinstance(goal, Pushed) and last.twist == goal.twist)
