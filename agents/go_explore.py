"""A small Go-Explore (Ecoffet et al. 2021, Nature 590): an archive of episodes, one per viewpoint cell.

First return, then explore: pick the episode of a cell that was seldom picked, walk at random from there, and archive
the episodes that reach new cells. Without returns, the explorer begins every walk at the start, as in a world model
that cannot go back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.simulation.tasks import Explore
from sanawm_env.system.files import check_count
from sanawm_env.system.settings import check_fields

Cell = tuple[int, int, int]
MOST = 1 << 40  # steps, and episodes of an archive


@dataclass
class Archive:
    """The first episode that reached each cell.

    Attributes:
        capacity: the most episodes.
        episodes: by cell.
        visits: how often each cell was picked.
    """

    capacity: int = 500
    episodes: dict[Cell, Episode] = field(default_factory=dict)
    visits: dict[Cell, int] = field(default_factory=dict)

    def add(self, cell: Cell, episode: Episode) -> None:
        """Keep the episode if its cell is new and the archive is not full."""
        if cell not in self.episodes and len(self.episodes) < self.capacity:
            self.episodes[cell], self.visits[cell] = episode, 0

    def pick(self, rng: np.random.Generator) -> Episode:
        """Draw an episode, with weights 1 / sqrt(visits + 1) of the cells, and count the visit."""
        cells = list(self.episodes)
        weights = 1 / np.sqrt([self.visits[cell] + 1 for cell in cells])
        cell = cells[rng.choice(len(cells), p=weights / weights.sum())]
        self.visits[cell] += 1
        return self.episodes[cell]


@dataclass(frozen=True)
class GoExplore:
    """The settings of an exploration.

    Attributes:
        walk: random steps after each return.
        returns: whether walks begin at archived episodes; False begins each one at the start.
        capacity: the most episodes of the archive.

    Raises:
        ValueError: for a walk or capacity below 1.
    """

    walk: Annotated[int, Field(ge=1, le=MOST)] = 3
    returns: bool = True
    capacity: Annotated[int, Field(ge=1, le=MOST)] = 500

    def __post_init__(self):
        check_fields(self)

    def run(
        self,
        simulator: Simulator,
        start: Episode,
        slots: int,
        budget: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[np.ndarray, Archive]:
        """Explore until `budget` steps are done.

        Args:
            simulator: of the episode.
            start: the episode to begin from.
            slots: how many episodes step in one batch.
            budget: steps of all episodes together.
            seed: of actions, picks and noise.
            progress: called with the steps done and the cells seen, after each batched step.

        Returns:
            The number of cells seen after each batched step, and the archive; without returns it holds the start alone.

        Raises:
            ValueError: for a number below 1, or a start of another world or task.
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
