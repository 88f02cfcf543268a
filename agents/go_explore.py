"""A small Go-Explore (Ecoffet et al. 2021, Nature 590): an archive of moments by viewpoint cell, returned to at will.

First return, then explore: pick a cell that was seldom picked, restore its snapshot, walk on at random, keep what is
new. Without snapshots the same explorer has to begin at a start each time, which is what other world models offer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sanawm_env.envs.snapshot import Snapshot
from sanawm_env.envs.tasks import Explore
from sanawm_env.envs.vector import SanaWMVectorEnv
from sanawm_env.world import tree
from sanawm_env.world.files import check_count

Cell = tuple[int, int, int]
MOST = 1 << 40  # steps, and moments of an archive


@dataclass
class Archive:
    """The first moment that was seen in every cell, up to `capacity`, and how often each was returned to."""

    capacity: int = 500
    moments: dict[Cell, Snapshot] = field(default_factory=dict)
    visits: dict[Cell, int] = field(default_factory=dict)

    def add(self, cell: Cell, moment: Snapshot) -> None:
        """Keep the moment if the cell is new and there is room."""
        if cell not in self.moments and len(self.moments) < self.capacity:
            self.moments[cell], self.visits[cell] = moment, 0

    def pick(self, rng: np.random.Generator) -> Snapshot:
        """A moment of a cell that was seldom picked: with a weight of 1 / sqrt(visits + 1)."""
        cells = list(self.moments)
        weights = 1 / np.sqrt([self.visits[cell] + 1 for cell in cells])
        cell = cells[rng.choice(len(cells), p=weights / weights.sum())]
        self.visits[cell] += 1
        return self.moments[cell]

    @property
    def nbytes(self) -> int:
        """Bytes that the archive keeps alive; what its moments share counts once."""
        return tree.nbytes(tuple(self.moments.values()))


@dataclass(frozen=True)
class GoExplore:
    """Settings. walk: random steps after each return. returns: to archived moments, or (False) to a start each time.
    capacity: moments that the archive keeps at most; what one weighs is its `Snapshot.nbytes`."""

    walk: int = 3
    returns: bool = True
    capacity: int = 500

    def __post_init__(self):
        for name in ("walk", "capacity"):
            check_count(f"{name} of Go-Explore", getattr(self, name), 1, MOST)

    def run(
        self,
        envs: SanaWMVectorEnv,
        budget: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[np.ndarray, Archive]:
        """Explore with all slots until `budget` steps (of all slots together) are spent.

        envs: with autoreset_mode "Disabled", one start image, and episodes long enough. progress: is told steps and
        cells now and then. Returns the number of cells seen after every batched step, and the archive
        (of the start alone, without returns).
        Raises ValueError for another autoreset mode or a budget that is not above zero.
        """
        budget = check_count("The budget of steps", budget, 1, MOST)
        if envs.autoreset_mode.value != "Disabled":
            raise ValueError('Go-Explore restores slots itself: make the environment with autoreset_mode="Disabled".')
        rng, cells, archive = np.random.default_rng(seed), Explore(), Archive(self.capacity)
        envs.reset(seed=seed)
        begin = envs.snapshot([0])[0]
        envs.restore([begin] * envs.num_envs)
        seen, coverage = {_cell(cells, begin)}, []
        archive.add(_cell(cells, begin), begin)
        left = np.zeros(envs.num_envs, int)  # steps of each slot until it goes elsewhere
        while len(coverage) * envs.num_envs < budget:
            for i in np.flatnonzero((left == 0) | [any(env.ended) for env in envs.envs]):
                envs.restore([archive.pick(rng) if self.returns else begin], [i], reseed=[int(rng.integers(1 << 62))])
                left[i] = self.walk if self.returns else envs.envs[i].max_episode_chunks
            actions = [env.sample_actions(rng, 1)[0] for env in envs.envs]
            *_, infos = envs.step(np.stack(actions))
            left -= 1
            for i, moment in enumerate(envs.snapshot()):
                seen.update(map(tuple, cells.cells(infos["c2w"][i]).tolist()))
                if self.returns and not any(envs.envs[i].ended):
                    archive.add(_cell(cells, moment), moment)
            coverage.append(len(seen))
            if progress is not None:
                progress(len(coverage) * envs.num_envs, len(seen))
        return np.array(coverage), archive


def _cell(cells: Explore, moment: Snapshot) -> Cell:
    return tuple(cells.cells(moment.slot.c2w[None])[0].tolist())
