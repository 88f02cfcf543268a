"""The one thread that steps the world. Waiting steps of all clients go through one batch.

A batch begins with the step that has waited longest. It waits for other clients for at most a twentieth of the time
that a batch takes, and not once all clients of the last two batches are there. Other requests (a reset, a prompt, a
file) run between batches, in the order they arrived.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.simulator import Simulator

PATIENCE = 0.05  # of the time of a batch
ENDING = "The server is ending: connect to another one."
Batching = Literal["shared", "own", "one by one"]


class Stepped(NamedTuple):
    """The result of a step.

    Attributes:
        after: the episodes after it.
        rewards: (B,) float64.
        waited: seconds until its batch began.
        took: seconds of the batch.
        batch: episodes in the batch.
    """

    after: list[Episode]
    rewards: np.ndarray
    waited: float
    took: float
    batch: int


@dataclass(eq=False)
class Step:
    """One step of B episodes of one client.

    Attributes:
        client: whose step it is.
        episodes: B of them.
        actions: one for each.
        batching: "shared": in one batch with whoever steps at the same time. "own": in a batch of its own, so that
            frames do not depend on other clients. "one by one": each episode alone.
        numbers: how errors name the episodes; None for a single episode without a name.
        at: when it was asked for, by the worker's clock.
        future: gets the result.
    """

    client: Hashable
    episodes: Sequence[Episode]
    actions: Sequence[Any]
    batching: Batching = "shared"
    numbers: Sequence[int] | None = None
    at: float = 0.0
    future: "Future[Stepped]" = field(default_factory=Future)


@dataclass(eq=False)
class _Call:
    function: Callable[[], Any]
    future: Future = field(default_factory=Future)


class Worker:
    """Runs a simulator in a thread until `close`.

    Args:
        simulator: what steps.
        most: episodes in a shared batch.
        on_batch: called after each batch with its number of episodes and its seconds.
        clock: seconds.
    """

    def __init__(
        self,
        simulator: Simulator,
        most: int = 64,
        on_batch: Callable[[int, float], None] = lambda episodes, took: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.simulator, self.most, self.on_batch, self.clock = simulator, most, on_batch, clock
        self._queue: deque[Step | _Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._usual = 0.0  # seconds that the last shared batch took
        self._recent: deque[frozenset[Hashable]] = deque(maxlen=2)  # who was in the last batches
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def step(self, step: Step) -> "Future[Stepped]":
        """Queue a step. The future gets a `Stepped`, or the ValueError or TypeError of a wrong action.

        Raises:
            RuntimeError: after `close`.
        """
        step.at = self.clock()
        return self._put(step)

    def call(self, function: Callable[[], Any]) -> Future:
        """Queue a function, which is called between batches. The future gets its result or error.

        Raises:
            RuntimeError: after `close`.
        """
        return self._put(_Call(function))

    @property
    def waiting(self) -> int:
        """Number of queued steps and calls."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after what is under way. Whatever is queued fails with a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for each in self._queue:
            each.future.set_exception(RuntimeError(ENDING))

    def _put(self, item: Step | _Call) -> Future:
        with self._changed:
            if self._closed:
                raise RuntimeError(ENDING)
            item.future.set_running_or_notify_cancel()  # who waits for it may leave: it is done all the same
            self._queue.append(item)
            self._changed.notify_all()
        return item.future

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                if isinstance(self._queue[0], Step) and self._queue[0].batching == "shared":
                    self._changed.wait_for(lambda: self._closed or self._all_here(), PATIENCE * self._usual)
                taken = self._take()
            if isinstance(taken, _Call):
                _answer(taken.future, taken.function)
            elif taken:
                self._batch(taken)

    def _all_here(self) -> bool:
        """Whether all clients of the last two batches wait, or a batch is full."""
        waiting = [item for item in self._queue if isinstance(item, Step)]
        here = {step.client for step in waiting}
        return sum(len(step.episodes) for step in waiting) >= self.most or here.issuperset(
            frozenset().union(*self._recent)
        )

    def _take(self) -> list[Step] | _Call:
        """What is done next: a call, a step in a batch of its own, or the steps that share a batch."""
        first = self._queue.popleft()
        if isinstance(first, _Call):
            return first
        taken, count = [first], len(first.episodes)
        if first.batching != "shared":
            return taken
        for item in list(self._queue):
            if isinstance(item, Step) and item.batching == "shared" and count + len(item.episodes) <= self.most:
                taken.append(item)
                count += len(item.episodes)
                self._queue.remove(item)
        return taken

    def _batch(self, steps: list[Step]) -> None:
        """Step in one batch. If it fails, steps with a wrong action fail alone, and the others are taken."""
        began = self.clock()
        episodes = [episode for step in steps for episode in step.episodes]
        actions = [action for step in steps for action in step.actions]
        one_by_one, numbers = steps[0].batching == "one by one", None
        if len(steps) == 1:
            numbers = steps[0].numbers
        try:
            after, transition = self.simulator.step(episodes, actions, one_by_one, numbers)
        except Exception as error:
            if len(steps) == 1:
                steps[0].future.set_exception(error)
                return
            good = [step for step in steps if self._fits(step)]
            if len(good) < len(steps):
                if good:
                    self._batch(good)
            else:  # nobody's action: it may be one of the episodes
                for step in steps:
                    self._batch([step])
            return
        took = self.clock() - began
        if steps[0].batching == "shared":
            self._usual = took
            self._recent.append(frozenset(step.client for step in steps))
        self.on_batch(len(episodes), took)
        begin = 0
        for step in steps:
            part = slice(begin, begin := begin + len(step.episodes))
            rewards = np.asarray(transition.rewards[part], np.float64)
            step.future.set_result(Stepped(after[part], rewards, began - step.at, took, len(episodes)))

    def _fits(self, step: Step) -> bool:
        """Whether the actions of a step are valid; if not, its future gets the error."""
        names = range(len(step.episodes)) if step.numbers is None else step.numbers
        for number, episode, action in zip(names, step.episodes, step.actions, strict=True):
            try:
                self.simulator.plan(episode, action)
            except Exception as error:  # named as in `Simulator.step`
                alone = step.numbers is None and len(step.episodes) == 1
                named = not alone and isinstance(error, ValueError | TypeError)
                step.future.set_exception(type(error)(f"Slot {number}: {error}") if named else error)
                return False
        return True


def _answer(future: Future, function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
