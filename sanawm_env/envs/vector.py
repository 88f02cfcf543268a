"""Many episodes of one world in one batch: `gym.make_vec("SanaWM/Explore-v0", num_envs=8)`.

One `Simulator` steps the episodes of all slots. Each slot is a `SanaWMEnv` around it, with its own episode and random
generator, so seeds, snapshots and rules are those of the single environment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from sanawm_env.envs.env import Move, SanaWMEnv, begun, reset_options, stepped
from sanawm_env.envs.making import check_keywords, described, keywords, load_options
from sanawm_env.envs.observations import Observation
from sanawm_env.simulation.controllers import host
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.simulation.simulator import MOST_CHUNKS, Simulator
from sanawm_env.system.files import brief, check_count
from sanawm_env.world.world import World

MOST_ENVS = 1 << 16
OF_BATCH = ("num_envs", "autoreset_mode", "batch_invariant", "max_episode_steps", "vectorization_mode")
SHARED = ("simulator", "task", "reward_fn")  # one for all slots

Arrays = tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class SanaWMVectorEnv(VectorEnv):
    """`num_envs` episodes that step together: one batched forward pass a step.

    Slot i is seeded with seed + i. Only slots whose episode is over are reset. An error about a slot names it, and then
    no slot has changed. `call`, `get_attr`, `set_attr`, `np_random` and `np_random_seed` are those of
    `gymnasium.vector.SyncVectorEnv`.

    Args:
        num_envs: number of slots.
        autoreset_mode: what happens to a slot whose episode is over. "NextStep" (default): the next step resets it and
            ignores its action. "SameStep": it is reset at once; `infos["final_obs"]` and `infos["final_info"]` hold how
            it ended. "Disabled": you reset it with `reset(options={"reset_mask": ended})`.
        batch_invariant: step slots one by one, so that each equals the single environment bit for bit; in a batch it
            does up to rounding.
        max_episode_steps: `max_episode_chunks` under Gymnasium's name; with both, the smaller. None and -1 are ignored.
        **settings: of every slot, the arguments of `SanaWMEnv`.

    Raises:
        ValueError, TypeError, FileNotFoundError: as `SanaWMEnv`.
    """

    slot_type: ClassVar[type[SanaWMEnv]] = SanaWMEnv
    """What its slots are."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        batch_invariant: bool = False,
        max_episode_steps: int | None = None,
        **settings: Any,
    ):
        known = keywords(SanaWMVectorEnv.__init__) + keywords(self.slot_type.__init__)
        of_world = load_options(settings.get("world", "nano")) if "world" in known else ()
        check_keywords(f"{type(self).__name__}.__init__", settings, known, of_world)
        self.num_envs, self.batch_invariant = check_count("num_envs", num_envs, 1, MOST_ENVS), batch_invariant
        if not isinstance(batch_invariant, bool | np.bool_):
            raise ValueError(f"batch_invariant must be True or False, got {brief(batch_invariant)}.")
        self.autoreset_mode = _mode(autoreset_mode)
        if max_episode_steps is not None and max_episode_steps != -1:
            steps = check_count("max_episode_steps", max_episode_steps, 1, MOST_CHUNKS)
            chunks = check_count("max_episode_chunks", settings.get("max_episode_chunks", steps), 1, MOST_CHUNKS)
            settings["max_episode_chunks"] = min(steps, chunks)
        first = self.slot_type(**settings)
        self.envs = [first, *(first.sibling() for _ in range(self.num_envs - 1))]
        self.simulator: Simulator = first.simulator
        self.render_mode = first.render_mode
        self.metadata = first.metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How `gymnasium.make_vec` made it, in plain values, with the length of an episode as `max_episode_steps`."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = described(spec, self.envs[0].max_episode_chunks)
        if spec is not None:
            settings = {name: value for name, value in spec.kwargs.items() if name not in OF_BATCH}
            spec = replace(spec, kwargs=settings | {"max_episode_chunks": self.envs[0].max_episode_chunks})
        for env in self.envs:
            env.spec = spec

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each slot. May be set: to one for each, or to one from which each gets a child."""
        return self.get_attr("np_random")

    @np_random.setter
    def np_random(  # ty: ignore[incompatible-property-override]  of every slot, where Gymnasium has one
        self, value: np.random.Generator | Sequence[np.random.Generator]
    ) -> None:
        self.set_attr("np_random", value.spawn(self.num_envs) if isinstance(value, np.random.Generator) else value)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # ty: ignore[incompatible-property-override]  as np_random
        """What the generator of each slot was seeded with; -1 where it was set."""
        return self.get_attr("np_random_seed")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The result of a method of every slot, or the attribute of that name.

        Raises:
            AttributeError: where there is none.
        """
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(each(*args, **kwargs) if callable(each) else each for each in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every slot. AttributeError where there is none."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every slot.

        Args:
            name: of the attribute.
            values: one for each slot in a list or tuple, or one for all.

        Raises:
            ValueError: for another number of values, different values of what all slots share (the task, the reward
                function), or what the attribute itself refuses; nothing has changed then.
        """
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                "Values must be a list or tuple with length equal to the number of environments: got "
                f"{len(values)} values for {self.num_envs}."
            )
        if name in SHARED and any(value is not values[0] for value in values):
            raise ValueError(f"All slots share their {name}: give one value for all of them.")
        before = [vars(env).copy() for env in self.envs]
        try:
            for env, value in zip(self.envs, values, strict=True):
                env.set_wrapper_attr(name, value)
            self.simulator = self._shared()
        except BaseException:
            for env, attributes in zip(self.envs, before, strict=True):
                vars(env).clear()
                vars(env).update(attributes)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "simulator"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self.simulator = self._shared()

    def _shared(self) -> Simulator:
        """The simulator of all slots, with the largest `max_episode_chunks`; each slot checks its own."""
        simulator, longest = self.envs[0].simulator, max(env.max_episode_chunks for env in self.envs)
        return replace(simulator, limits=replace(simulator.limits, max_episode_chunks=longest))

    @property
    def world(self) -> World:
        """The world of all slots."""
        return self.simulator.world

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every slot, or in those of `options["reset_mask"]` (num_envs,) bool.

        Args:
            seed: slot i gets seed + i; or one per slot.
            options: as of `SanaWMEnv.reset`, for all slots (a seed among them as above); or a list of one per slot.

        Returns:
            Observations of all slots, and infos of those that were reset.

        Raises:
            ValueError: as `SanaWMEnv.reset`, and for unequal numbers.
            TypeError: as `SanaWMEnv.reset`.
        """
        each = list(options) if isinstance(options, list | tuple) else None
        options = reset_options(cast(dict[str, Any] | None, options)) if each is None else {}
        slots = self._masked(options.pop("reset_mask", None))
        if seed is None or (isinstance(seed, int | np.integer) and not isinstance(seed, bool)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = _listed(seed, "reset takes one seed or one for each slot")
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset takes one seed or one for each of {self.num_envs} slots, got {len(seeds)}.")
        if each is None:
            moves = begun(self.simulator, [self.envs[i] for i in slots], [seeds[i] for i in slots], options)
        elif len(each) != self.num_envs:
            raise ValueError(f"reset takes options for all or for each of {self.num_envs} slots, got {len(each)}.")
        else:
            moves = [move for i in slots for move in begun(self.simulator, [self.envs[i]], [seeds[i]], each[i])]
        return self._go(dict(zip(slots, moves, strict=True)), slots)

    def step(self, actions: Any) -> Arrays:
        """Predict the next chunk of every slot in one batch. `autoreset_mode` says what happens to slots whose episode
        is over.

        Args:
            actions: a batch of the action space, one action for each slot.

        Returns:
            Observations, rewards (num_envs,) float64, terminated and truncated (num_envs,) bool, infos.

        Raises:
            ResetNeeded: before the first reset, and with autoreset_mode "Disabled" while an episode is over.
            ValueError: for a wrong action of a slot, or another number of actions.
            TypeError: for anything but a batch of actions.
        """
        given, over = self._actions(actions), self._over()
        resetting = np.flatnonzero(over).tolist() if self.autoreset_mode == AutoresetMode.NEXT_STEP else []
        stepping = [i for i in range(self.num_envs) if i not in resetting]
        envs = [self.envs[i] for i in stepping]
        rewards, ended, moves = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool), {}
        if stepping:
            actions = [given[i] for i in stepping]
            after, transition = stepped(self.simulator, envs, actions, self.batch_invariant, stepping)
            moves = {i: Move(self.envs[i], episode) for i, episode in zip(stepping, after, strict=True)}
            rewards[stepping] = transition.rewards
            for i in stepping:
                ended[:, i] = moves[i].ended
        moves |= self._begun(resetting)
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            finished = np.flatnonzero(ended.any(axis=0)).tolist()
            for i in finished:
                obs, info = moves[i].seen
                infos = self._add_info(infos, {"final_obs": obs, "final_info": info}, i)
            moves |= self._begun(finished)
        obs, infos = self._go(moves, range(self.num_envs), infos)
        terminated, truncated = ended
        return obs, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """The frames that every slot renders."""
        return None if self.render_mode is None else tuple(env.render() for env in self.envs)

    def snapshot(self, indices: Sequence[int] | None = None) -> list[Snapshot]:
        """Snapshots, which can be restored into any slot and into a single environment.

        Args:
            indices: the slots; None for all.

        Raises:
            ValueError: for unknown slots.
            ResetNeeded: before the first reset.
        """
        return [self.envs[i].snapshot() for i in self._indices(indices, distinct=False)]

    def set_prompt(self, prompt: str | Sequence[str], indices: Sequence[int] | None = None) -> None:
        """Use another prompt in these slots (all by default) from the next step on.

        Args:
            prompt: one for all, or one for each.
            indices: the slots.

        Raises:
            ValueError: as `SanaWMEnv.set_prompt`, and for unequal numbers or unknown slots; no slot has changed
                then.
        """
        slots = self._indices(indices)
        prompts = [prompt] * len(slots) if isinstance(prompt, str) else _listed(prompt, "prompts are given in a list")
        if len(prompts) != len(slots):
            raise ValueError(f"set_prompt takes one prompt or one for each of {len(slots)} slots, got {len(prompts)}.")
        episodes = [self.envs[i].prompted(text) for i, text in zip(slots, prompts, strict=True)]
        for i, episode in zip(slots, episodes, strict=True):
            Move(self.envs[i], episode).go()

    def restore(
        self, snapshots: Sequence[Snapshot], indices: Sequence[int] | None = None, reseed: Sequence[int] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Restore snapshots into slots (all by default). Other slots stay. A slot that waits for its reset continues
        from the snapshot.

        Args:
            snapshots: one for each slot.
            indices: the slots.
            reseed: an episode seed for each, for other futures.

        Raises:
            ValueError: for unknown slots, a slot named twice, unequal numbers, or snapshots of another world, task or
                action mode; nothing has changed then.
            TypeError: for what is not a list of snapshots.
        """
        slots, snapshots = self._indices(indices), _listed(snapshots, "restore takes a list of snapshots")
        seeds = [None] * len(slots) if reseed is None else _listed(reseed, "reseed takes a seed for each slot")
        if not len(snapshots) == len(slots) == len(seeds):
            also, and_seeds = ("", "") if reseed is None else (" and a seed", f" and {len(seeds)} seeds")
            raise ValueError(
                f"restore needs a snapshot{also} for each slot, got {len(snapshots)} snapshots{and_seeds} for "
                f"{len(slots)} slots."
            )
        given = zip(slots, snapshots, seeds, strict=True)
        moves = [self.envs[i].restored(snapshot, seed) for i, snapshot, seed in given]
        return self._go(dict(zip(slots, moves, strict=True)), slots)

    def fork(
        self, source: int, slots: Sequence[int] | None = None, reseed: Sequence[int] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put the episode of one slot into others: many futures of one past. No tensor of its state is copied.

        Args:
            source: the slot to fork.
            slots: where to; all others by default.
            reseed: an episode seed for each; None for the noise of the source.

        Raises:
            ValueError: as `restore`, for a source whose episode is over, and for slots that the next step will
                reset.
        """
        (source,), over = self._indices([source]), self._over()
        if over[source]:
            raise ValueError(f"Slot {source} is waiting for its reset: its episode is over, it has no future to fork.")
        slots = [i for i in range(self.num_envs) if i != source] if slots is None else self._indices(slots)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and over[slots].any():
            waiting = next(i for i in slots if over[i])
            raise ValueError(
                f"Slot {waiting} is waiting for its reset: step once more before you fork into it, restore a snapshot "
                'there, or make the environment with autoreset_mode="Disabled".'
            )
        here = self.envs[source].snapshot()
        return self.restore([here] * len(slots), slots, reseed)

    def _over(self) -> np.ndarray:
        """Which slots (num_envs,) have ended."""
        return np.array([not env.fresh and any(env.ended) for env in self.envs])

    def _begun(self, slots: Sequence[int]) -> dict[int, Move]:
        envs = [self.envs[i] for i in slots]
        return dict(zip(slots, begun(self.simulator, envs, [None] * len(slots)), strict=True))

    def _go(
        self, moves: dict[int, Move], slots: Iterable[int], infos: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Set the episodes of these slots, after everything that can fail."""
        infos = {} if infos is None else infos
        obs = self.envs[0].observe([moves[i].episode if i in moves else env.episode for i, env in enumerate(self.envs)])
        for i in slots:
            infos = self._add_info(infos, moves[i].info, i)
        for move in moves.values():
            move.go()
        return obs, infos

    def _actions(self, actions: Any) -> list[Any]:
        actions = host(actions)
        try:
            given = list(iterate(self.action_space, actions))
        except TypeError:
            raise TypeError(f"step takes a batch of {self.num_envs} actions, got {brief(actions)}.") from None
        if len(given) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, one for each slot, got {len(given)}.")
        return given

    def _masked(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise TypeError(f'options["reset_mask"] must be a NumPy array of bools, got {brief(mask)}.')
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f'options["reset_mask"] must have the shape ({self.num_envs},) and select a slot, got {brief(mask)}.'
            )
        if any(env.fresh for env, reset in zip(self.envs, mask, strict=True) if not reset):
            raise ResetNeeded("The first reset must be of all slots: leave reset_mask out.")
        return np.flatnonzero(mask).tolist()

    def _indices(self, indices: Sequence[int] | None, distinct: bool = True) -> list[int]:
        slots = range(self.num_envs) if indices is None else _listed(indices, "slots are given in a list")
        for i in slots:
            if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < self.num_envs:
                raise ValueError(f"There is no slot {brief(i)}: slots are 0 to {self.num_envs - 1}.")
        if distinct and len(set(slots)) < len(slots):
            raise ValueError(f"Slots must be different, got {brief(slots)}.")
        return [int(i) for i in slots]


def _listed(values: Any, says: str) -> list[Any]:
    """The values as a list. Raises TypeError, which begins with `says`, for anything that is none."""
    if isinstance(values, Iterable) and not isinstance(values, str | bytes) and np.ndim(values) > 0:
        return list(values)
    raise TypeError(f"{says}, got {brief(values)}.")


def _mode(mode: str | AutoresetMode) -> AutoresetMode:
    known: dict[str, AutoresetMode] = {m.value.lower(): m for m in AutoresetMode} | {
        m.name.lower(): m for m in AutoresetMode
    }
    if isinstance(mode, AutoresetMode):
        return mode
    if not isinstance(mode, str) or mode.lower() not in known:
        names = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}, got {brief(mode)}.")
    return known[mode.lower()]
