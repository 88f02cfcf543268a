"""A small Go-Explore (Ecoffet et al. 2021, Nature 590): an archive of episodes by viewpoint cell, returned to at will.

First return, then explore: pick a cell that was seldom picked, go on from its episode, walk at random, keep what is
new. Without going back the same explorer has to begin at the start each time, which is what other world models offer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.simulation.tasks import Explore
from sanawm_env.system.files import check_count
from sanawm_env.world import tree

Cell = tuple[int, int, int]
MOST = 1 << 40  # steps, and episodes of an archive


@dataclass
class Archive:
    """The first episode that was seen in every cell, up to `capacity`, and how often each was returned to."""

    capacity: int = 500
    episodes: dict[Cell, Episode] = field(default_factory=dict)
    visits: dict[Cell, int] = field(default_factory=dict)

    def add(self, cell: Cell, episode: Episode) -> None:
        """Keep the episode if the cell is new and there is room."""
        if cell not in self.episodes and len(self.episodes) < self.capacity:
            self.episodes[cell], self.visits[cell] = episode, 0

    def pick(self, rng: np.random.Generator) -> Episode:
        """An episode of a cell that was seldom picked: with a weight of 1 / sqrt(visits + 1)."""
        cells = list(self.episodes)
        weights = 1 / np.sqrt([self.visits[cell] + 1 for cell in cells])
        cell = cells[rng.choice(len(cells), p=weights / weights.sum())]
        self.visits[cell] += 1
        return self.episodes[cell]

    @property
    def nbytes(self) -> int:
        """Bytes that the archive keeps alive; what its episodes share counts once."""
        return tree.nbytes(tuple(self.episodes.values()))


@dataclass(frozen=True)
class GoExplore:
    """Settings. walk: random steps after each return. returns: to archived episodes, or (False) to a start each time.
    capacity: episodes that the archive keeps at most; what one weighs is its `nbytes`."""

    walk: int = 3
    returns: bool = True
    capacity: int = 500

    def __post_init__(self):
        for name in ("walk", "capacity"):
            check_count(f"{name} of Go-Explore", getattr(self, name), 1, MOST)

    def run(
        self,
        simulator: Simulator,
        start: Episode,
        slots: int,
        budget: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[np.ndarray, Archive]:
        """Explore from `start` with so many episodes at a time until `budget` steps (of all together) are spent.

        progress: is told steps and cells now and then. Returns the number of cells seen after every batched step, and
        the archive (of the start alone, without returns). Raises ValueError for a number that is not above zero.
        """
        budget = check_count("The budget of steps", budget, 1, MOST)
        slots = check_count("The number of episodes at a time", slots, 1, MOST)
        simulator.check(start)
        rng, cells, archive = np.random.default_rng(seed), Explore(), Archive(self.capacity)
        length = self.walk if self.returns else simulator.limits.max_episode_chunks
        seen, coverage = {_cell(cells, start)}, []
        archive.add(_cell(cells, start), start)
        episodes = [start] * slots
        left = np.zeros(slots, int)  # steps of each until it goes elsewhere
        while len(coverage) * slots < budget:
            for i in np.flatnonzero((left == 0) | [simulator.ended(episode) for episode in episodes]):
                there = archive.pick(rng) if self.returns else start
                episodes[i] = there.reseed(int(rng.integers(1 << 62)))
                left[i] = length
            actions = [simulator.controller.sample_walk_actions(rng, 1)[0] for _ in range(slots)]
            episodes, transition = simulator.step(episodes, actions)
            left -= 1
            for episode, c2w in zip(episodes, transition.c2w, strict=True):
                seen.update((x, z, heading) for x, z, heading in cells.cells(c2w).tolist())
                if self.returns and not simulator.ended(episode):
                    archive.add(_cell(cells, episode), episode.with_own_clip())
            coverage.append(len(seen))
            if progress is not None:
                progress(len(coverage) * slots, len(seen))
        return np.array(coverage), archive


def _cell(cells: Explore, episode: Episode) -> Cell:
    return tuple(cells.cells(episode.slot.c2w[None])[0].tolist())
