"""Does what works in nano work in the truth? Policies ranked in both; planning in the one, acting in the other.

    python benchmarks/compare.py                    # goes on where it was stopped; numbers so far are always complete
    python benchmarks/compare.py --part plan        # or rank

rank: 18 policies of graded skill on ImageNav and 17 on PointNav, in known places and in rooms nobody trained on, with
walls that let a camera pass and walls that stop it (`sanawm compare` does one of these). plan: CEM predicts 64 futures
of two steps at each decision of ImageNav from true images, and does the first action in the truth, where walls stop.
Episodes have six steps at most. Every run and every episode is kept in runs/compare. Success rates have 95 % Wilson
intervals; r has Fisher's, over policies; rank violation and gap have bootstrap intervals over episodes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from harness import console, header, kept, numbers_file, parser, plot, plot_file, show, write
from rich.progress import track
from sanawm_env.agents.compare import (
    SETTINGS,
    Setup,
    anchors_of,
    choose,
    compare,
    draw_setups,
    load_truth,
    run,
    simulators,
)
from sanawm_env.agents.compare_numbers import Comparison, rate, scatter
from sanawm_env.agents.compare_planning import first_plan, plan_and_act
from sanawm_env.agents.planners import CEM, Plan

from sanawm_env import World
from sanawm_env.cli.compare import show as show_comparison

SEED, STEPS, EPISODES = 2032, 6, 16
SCENES = {"known": "known places", "rooms:test": "unknown rooms"}
WALLS = {False: "walls let pass", True: "walls stop"}
PLANNER = CEM(horizon=2, candidates=32, iterations=2, elites=5)
WAYS = {
    "truth": "CEM, the truth as its model",
    "fresh": "CEM, a fresh prediction at each decision",
    "kept": "CEM, a prediction kept and corrected",
}
FLOOR, FLOOR_ROUNDS = ("walk", "random"), 6
RUN = Path("runs/compare")


def drawn(predicted: World, solid: World, task: str, scenes: str, episodes: int) -> list[Setup]:
    anchors = anchors_of(scenes, predicted.config, solid.config, episodes, SEED)
    unseen = load_truth("rooms", predicted, walls=True, small=True)
    acting = simulators(predicted, solid, SETTINGS[task].task, STEPS)[1]
    return draw_setups(acting, anchors, SEED, SETTINGS[task].chunks, unseen)


def ranking(predicted: World, solid: World, episodes: int, every: int) -> Iterator[Comparison]:
    """Every n-th policy, by task, scenes and walls. Policies shrink pictures tenfold, so one ray a pixel will do."""
    size = {"height": predicted.config.height, "width": predicted.config.width, "supersample": 1}
    truths = {walls: World.load("rooms", collisions=walls, **size) for walls in WALLS}
    for task, scenes in product(SETTINGS, SCENES):
        setting, setups = SETTINGS[task], drawn(predicted, solid, task, scenes, episodes)
        for walls, truth in truths.items():
            title = f"{task}, {SCENES[scenes]}, {WALLS[walls]}"
            comparison = compare(
                *simulators(predicted, truth, setting.task, STEPS),
                setups,
                setting.policies[::every],
                unseen=load_truth("rooms", predicted, walls, small=True),
                title=title,
                keep=RUN / "ranking",
                progress=lambda done, title=title: console.print(f"{title}: {done}", highlight=False),
            )
            show_comparison(comparison)
            yield comparison


def planning(predicted: World, solid: World, episodes: int) -> dict[str, dict]:
    """Success in the truth, by scenes and by who acts."""
    size = {"height": predicted.config.height, "width": predicted.config.width, "supersample": 1}
    task, model = SETTINGS["image-nav"].task, World.load("rooms", collisions=True, **size)
    predicting, acting = simulators(predicted, solid, task, STEPS)
    exact = simulators(model, solid, task, STEPS)[0]
    small = replace(acting, world=load_truth("rooms", predicted, walls=True, small=True))
    found = {}
    for scenes, where in SCENES.items():
        setups = drawn(predicted, solid, "image-nav", scenes, episodes)

        def planned(setup: Setup, first: Callable[[], Plan], way: str) -> dict:
            if way == "truth":
                return plan_and_act(acting, setup, exact, PLANNER, "kept")._asdict()
            return plan_and_act(acting, setup, predicting, PLANNER, way, first())._asdict()

        decides = sha256(repr((predicted.weights_hash, PLANNER, STEPS, SEED)).encode()).hexdigest()[:12]
        folder = RUN / f"planning-{decides}" / scenes.replace(":", "-")
        ways: dict[str, list[bool]] = {name: [] for name in WAYS.values()}
        for i, setup in enumerate(track(setups, f"planning in {where}", console=console)):
            first = cache(partial(first_plan, setup, predicting, PLANNER))  # of both predictions
            for way, name in WAYS.items():
                outcome = kept(folder / f"{i:02}-{way}.json", partial(planned, setup, first, way))
                ways[name].append(outcome["success"])
        again = [replace(setup, seed=setup.seed + i) for setup in setups for i in range(FLOOR_ROUNDS)]
        for policy in choose(SETTINGS["image-nav"].policies, FLOOR):
            ways[f"{policy.name}, looks at nothing"] = [outcome.success for outcome in run(small, again, policy)]
        found[scenes] = {name: rate(s)._asdict() | {"episodes": len(s)} for name, s in ways.items()}
        rows = [
            [name, f"{row['value']:.0%}", f"{row['low']:.0%} to {row['high']:.0%}"]
            for name, row in found[scenes].items()
        ]
        show(f"ImageNav in {where}, acting in the truth", ["who acts", "success", "95 % interval"], rows)
    return found


def draw_ranking(comparisons: list[Comparison], file: Path) -> None:
    """Of walls that let pass: predicted success against that in the truth."""
    shown = [comparison for comparison in comparisons if comparison.title.endswith(WALLS[False])]
    with plot(file, 1, len(shown), size=(3.6 * len(shown), 3.9)) as axes:
        for each, comparison in zip(axes, shown, strict=True):
            scatter(each, comparison)
            each.set_title(comparison.title.removesuffix(f", {WALLS[False]}"), fontsize=9)
        axes[0].legend(title="acts on", fontsize=8, loc="upper left")


def draw_planning(found: dict[str, dict], file: Path) -> None:
    with plot(file, 1, 1, size=(8, 3.2)) as axes:
        for k, (scenes, where) in enumerate(SCENES.items()):
            rows = found[scenes]
            values, low, high = (np.array([row[part] for row in rows.values()]) for part in ("value", "low", "high"))
            at = np.arange(len(rows)) + 0.38 * (k - 0.5)
            errors = np.clip([values - low, high - values], 0, None)
            axes.bar(at, values, 0.36, yerr=errors, capsize=3, label=where)
        axes.set_xticks(np.arange(len(rows)), [fill(name, 16) for name in rows], fontsize=8)
        axes.set(ylim=(0, 1), ylabel="true success")
        axes.legend(frameon=False)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("rank", "plan", "all"), default="all")
    options.add_argument("--episodes", type=int, default=EPISODES, help="of each task, in each kind of scenes")
    options = options.parse_args()
    torch.set_num_threads(1)
    episodes, every = (2, 6) if options.quick else (options.episodes, 1)
    predicted = World.load("nano")
    solid = load_truth("rooms", predicted, walls=True)
    about = header() | {"world": predicted.weights_hash, "picture": [predicted.config.height, predicted.config.width]}
    if options.part != "plan":
        comparisons, file = [], numbers_file(options, "compare")
        for comparison in ranking(predicted, solid, episodes, every):
            comparisons.append(comparison)
            write(file, about | {"comparisons": [each.to_plain() for each in comparisons]})
        draw_ranking(comparisons, plot_file(file))
    if options.part != "rank":
        found, file = planning(predicted, solid, episodes), numbers_file(options, "compare_planning")
        write(file, about | {"planner": vars(PLANNER), "steps": STEPS, "scenes": found})
        draw_planning(found, plot_file(file))


if __name__ == "__main__":
    main()
