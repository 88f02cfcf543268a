"""Many episodes of one world in one batch: `gym.make_vec("SanaWM/Explore-v0", num_envs=8)`.

Every slot is a `SanaWMEnv` of its own; what they share is the forward pass. So a slot has the seeds, the snapshots and
the rules of the single environment, and the two agree by construction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from sanawm_env.envs.env import SanaWMEnv, reset_together, step_together
from sanawm_env.envs.observations import Observation
from sanawm_env.envs.snapshot import Snapshot
from sanawm_env.world.world import World

Arrays = tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class SanaWMVectorEnv(VectorEnv):
    """`num_envs` episodes that step together: one batched forward pass a step.

    Args:
        num_envs: how many slots.
        autoreset_mode: what happens to a slot whose episode is over. "NextStep" (default): the next step resets it and
            ignores its action. "SameStep": it is reset at once, and `infos["final_obs"]` and `infos["final_info"]` hold
            copies of how it ended. "Disabled": reset it yourself, `reset(options={"reset_mask": ended})`.
        batch_invariant: imagine slots one by one, so that each is bit for bit what it would be alone; in a batch it is
            so up to rounding.
        settings: of every slot, the arguments of `SanaWMEnv`.

    Slot i is seeded seed + i. Only slots whose episode is over are reset. Episodes are truncated by the slots
    themselves. Raises what `SanaWMEnv` raises; an error that is about a slot names it, and then no slot has moved.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        batch_invariant: bool = False,
        **settings: Any,
    ):
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be a whole number above zero, got {num_envs!r}.")
        self.num_envs, self.batch_invariant = int(num_envs), batch_invariant
        self.autoreset_mode = _mode(autoreset_mode)
        self.envs = [SanaWMEnv(**settings) for _ in range(self.num_envs)]
        lead = self.envs[0]
        self.render_mode = lead.render_mode
        self.metadata = lead.metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = lead.observation_space, lead.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over = np.zeros(self.num_envs, bool)

    @property
    def world(self) -> World:
        """The world that all slots walk in."""
        return self.envs[0].world

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every slot, or in those of `options["reset_mask"]` (num_envs,) bool.

        seed: slot i gets seed + i; or one per slot. options: as `SanaWMEnv.reset`, for every slot. Observations are of
        all slots, infos of those that were reset.
        """
        options = dict(options or {})
        slots = self._masked(options.pop("reset_mask", None))
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset takes one seed or one for each of {self.num_envs} slots, got {len(seeds)}.")
        reset_together([self.envs[i] for i in slots], [seeds[i] for i in slots], options)
        self._over[slots] = False
        return self._observations(), self._infos(slots)

    def step(self, actions: Any) -> Arrays:
        """Imagine the next chunk of every slot, in one batch; see the class for slots whose episode is over.

        Raises ResetNeeded before the first reset, and with autoreset_mode "Disabled" while an episode is over.
        """
        given = self._actions(actions)
        resetting = np.flatnonzero(self._over) if self.autoreset_mode == AutoresetMode.NEXT_STEP else ()
        stepping = [i for i in range(self.num_envs) if i not in resetting]
        rewards, ended = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool)
        envs = [self.envs[i] for i in stepping]
        rewards[stepping] = step_together(envs, [given[i] for i in stepping], self.batch_invariant, stepping)
        for i in stepping:
            ended[:, i] = self.envs[i].ended
        self._over = ended.any(axis=0)
        reset_together([self.envs[i] for i in resetting], [None] * len(resetting))
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._over.any():
            infos = self._start_over()
        return self._observations(), rewards, *ended, self._infos(range(self.num_envs), infos)

    def render(self) -> tuple[Any, ...] | None:
        """What every slot renders."""
        return None if self.render_mode is None else tuple(env.render() for env in self.envs)

    def snapshot(self, indices: Sequence[int] | None = None) -> list[Snapshot]:
        """The moments of these slots, of all by default. They go into any slot, and into a single environment."""
        return [self.envs[i].snapshot() for i in self._indices(indices, distinct=False)]

    def restore(
        self, snapshots: Sequence[Snapshot], indices: Sequence[int] | None = None, reseed: Sequence[int] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put moments into slots (into all by default), and what those slots showed back. Other slots stay. A slot that
        waits for its reset goes on with the moment instead.

        reseed: an episode seed for each, for other futures. Raises ValueError for slots that are not there, for one
        named twice, for unequal counts; TypeError or ValueError for snapshots as `SanaWMEnv.restore`. Nothing has
        changed then.
        """
        slots, snapshots = self._indices(indices), list(snapshots)
        seeds = [None] * len(slots) if reseed is None else list(reseed)
        if not len(snapshots) == len(slots) == len(seeds):
            raise ValueError(
                f"restore needs a snapshot{'' if reseed is None else ' and a seed'} for each slot, got "
                f"{len(snapshots)} snapshots for {len(slots)} slots."
            )
        for i, snapshot in zip(slots, snapshots, strict=True):
            self.envs[i].check_snapshot(snapshot)
        for i, snapshot, seed in zip(slots, snapshots, seeds, strict=True):
            self.envs[i].put(snapshot, seed)
            self._over[i] = any(self.envs[i].ended)
        return self._observations(), self._infos(slots)

    def fork(
        self, source: int, slots: Sequence[int] | None = None, reseed: Sequence[int] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put the moment of slot `source` into `slots` (all others by default): many futures of one moment. Copies no
        tensor. Slots go on with the noise of the source, or with that of `reseed`, one seed for each.

        Raises ValueError as `restore`, for a source whose episode is over, and for slots that the next step will reset.
        """
        (source,) = self._indices([source])
        if self._over[source]:
            raise ValueError(f"Slot {source} is waiting for its reset: its episode is over, it has no future to fork.")
        slots = [i for i in range(self.num_envs) if i != source] if slots is None else self._indices(slots)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and self._over[slots].any():
            waiting = next(i for i in slots if self._over[i])
            raise ValueError(
                f"Slot {waiting} is in the middle of its reset: step once more before a fork into it, restore one "
                'there, or make the environment with autoreset_mode="Disabled".'
            )
        here = self.envs[source].snapshot()
        return self.restore([here] * len(slots), slots, reseed)

    def _observations(self) -> Observation:
        return self.envs[0].observe(self.envs)

    def _infos(self, slots: Sequence[int], infos: dict[str, Any] | None = None) -> dict[str, Any]:
        infos = {} if infos is None else infos
        for i in slots:
            infos = self._add_info(infos, self.envs[i].info, i)
        return infos

    def _start_over(self) -> dict[str, Any]:
        """Reset the slots that are over; how they ended, as infos."""
        slots, infos = np.flatnonzero(self._over), {}
        for i in slots:
            final = {"final_obs": self.envs[i].observation, "final_info": self.envs[i].info}
            infos = self._add_info(infos, final, int(i))
        reset_together([self.envs[i] for i in slots], [None] * len(slots))
        self._over[:] = False
        return infos

    def _actions(self, actions: Any) -> list[Any]:
        try:
            given = list(iterate(self.action_space, actions))
        except TypeError:
            raise TypeError(f"step takes a batch of {self.num_envs} actions, got {type(actions).__name__}.") from None
        if len(given) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, one for each slot, got {len(given)}.")
        return given

    def _masked(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise TypeError('options["reset_mask"] must be a NumPy array of bools.')
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f'options["reset_mask"] must have the shape ({self.num_envs},) and name a slot, got {mask.tolist()}.'
            )
        if any(env.fresh for env, reset in zip(self.envs, mask, strict=True) if not reset):
            raise ResetNeeded("The first reset must be of all slots: leave reset_mask out.")
        return np.flatnonzero(mask).tolist()

    def _indices(self, indices: Sequence[int] | None, distinct: bool = True) -> list[int]:
        slots = list(range(self.num_envs)) if indices is None else list(indices)
        for i in slots:
            if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < self.num_envs:
                raise ValueError(f"There is no slot {i!r}: slots are 0 to {self.num_envs - 1}.")
        if distinct and len(set(slots)) < len(slots):
            raise ValueError(f"A slot can hold one moment: {slots} names one twice.")
        return [int(i) for i in slots]


def _mode(mode: str | AutoresetMode) -> AutoresetMode:
    known = {m.value.lower(): m for m in AutoresetMode} | {m.name.lower(): m for m in AutoresetMode}
    if isinstance(mode, AutoresetMode):
        return mode
    if not isinstance(mode, str) or mode.lower() not in known:
        names = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}.")
    return known[mode.lower()]
