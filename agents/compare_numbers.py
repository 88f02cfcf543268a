"""Policies' success in a predicted world and in the truth: intervals, correlation, rank violation, a plot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sanawm_env.metrics.figures import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A number and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


def rate(successes: ArrayLike) -> Estimate:
    """Share of successes (E,) bool, with Wilson's interval."""
    successes = np.asarray(successes, bool)
    found = stats.binomtest(int(successes.sum()), len(successes))
    return Estimate(found.statistic, *found.proportion_ci(method="wilson"))


def pearson(predicted: ArrayLike, truth: ArrayLike) -> NDArray:
    """Pearson's r over the last axis of two series (..., P); NaN where one of them does not vary."""
    predicted, truth = (
        series - series.mean(-1, keepdims=True) for series in (np.asarray(predicted), np.asarray(truth))
    )
    with np.errstate(invalid="ignore"):
        return (predicted * truth).sum(-1) / np.sqrt(np.square(predicted).sum(-1) * np.square(truth).sum(-1))


def pearson_of_policies(predicted: ArrayLike, truth: ArrayLike) -> Estimate:
    """Pearson's r with the interval of Fisher's transformation, as though policies were drawn at random; from four
    policies on."""
    r = float(pearson(predicted, truth))
    if np.isnan(r) or len(np.asarray(predicted)) < 4:
        return Estimate(r, float("nan"), float("nan"))
    interval = stats.pearsonr(np.asarray(predicted, float), np.asarray(truth, float)).confidence_interval(0.95)
    return Estimate(r, float(interval.low), float(interval.high))


def rank_violation(predicted: ArrayLike, truth: ArrayLike) -> NDArray:
    """Mean maximum rank violation of success rates (..., P) of the same policies (Li et al. 2024, SIMPLER, arXiv
    2405.05941):

        violation(i, j) = |truth_i - truth_j| * [(predicted_i < predicted_j) != (truth_i < truth_j)]
        result = mean over i of max over j of violation(i, j)

    How much worse a policy may be in truth than one that the predicted world ranks below it; 0 is best, 1 worst.
    """
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    apart = np.abs(truth[..., :, None] - truth[..., None, :])
    wrong = (predicted[..., :, None] < predicted[..., None, :]) != (truth[..., :, None] < truth[..., None, :])
    return (apart * wrong).max(-1).mean(-1)


def mean_gap(predicted: ArrayLike, truth: ArrayLike) -> NDArray:
    """How much better policies (..., P) look in the predicted world, on average."""
    return (np.asarray(predicted) - np.asarray(truth)).mean(-1)


def over_episodes(statistic: Callable[[NDArray, NDArray], NDArray], predicted: NDArray, truth: NDArray) -> Estimate:
    """A statistic of success rates, and its percentile bootstrap interval: episodes are drawn again, the same ones for
    all policies in both worlds. predicted, truth: successes (P, E) bool. Draws that have no value are left out."""
    episodes = predicted.shape[1]
    often = np.random.default_rng(0).multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES)  # (R, E)
    drawn = statistic(*(often @ world.T / episodes for world in (predicted, truth)))  # of rates (R, P)
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(statistic(predicted.mean(1), truth.mean(1))), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One policy. acts_on: see `compare_policies`."""

    name: str
    acts_on: str
    predicted: Estimate
    truth: Estimate

    @property
    def gap(self) -> float:
        """How much better it looks in the predicted world."""
        return self.predicted.value - self.truth.value


@dataclass(frozen=True)
class Agreement:
    """Of some policies. r: over policies (Fisher). r_episodes, violation, gap: intervals over episodes; gap is the mean
    of success in the predicted world minus that in the truth."""

    policies: int
    r: Estimate
    r_episodes: Estimate
    violation: Estimate
    gap: Estimate

    @classmethod
    def of(cls, predicted: NDArray, truth: NDArray) -> "Agreement":
        """Of successes (P, E) bool."""
        return cls(
            len(predicted),
            pearson_of_policies(predicted.mean(1), truth.mean(1)),
            over_episodes(pearson, predicted, truth),
            over_episodes(rank_violation, predicted, truth),
            over_episodes(mean_gap, predicted, truth),
        )


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row for each policy, and how far the worlds agree on all of them and on those that act on
    frames. The others do the same in both worlds unless a wall stops them, so their agreement says little."""

    title: str
    episodes: int
    rows: tuple[Row, ...]
    every: Agreement
    images: Agreement | None

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "title": self.title,
            "episodes": self.episodes,
            "all policies": _plain(vars(self.every)),
            "those that act on images": self.images and _plain(vars(self.images)),
            "rows": [
                {
                    "policy": row.name,
                    "acts_on": row.acts_on,
                    "predicted": row.predicted,
                    "truth": row.truth,
                    "gap": row.gap,
                }
                for row in self.rows
            ],
        }


def _plain(estimates: Mapping[str, Any]) -> dict[str, Any]:
    """With None in place of NaN, which JSON has not."""
    return {
        name: [None if np.isnan(number) else number for number in value] if isinstance(value, tuple) else value
        for name, value in estimates.items()
    }


def compared(
    title: str, names: Sequence[str], acts_on: Sequence[str], predicted: ArrayLike, truth: ArrayLike
) -> Comparison:
    """Of successes (P, E) of P policies in the same E episodes."""
    predicted, truth, kinds = np.asarray(predicted, bool), np.asarray(truth, bool), np.asarray(acts_on)
    rows = [
        Row(name, kind, rate(here), rate(there))
        for name, kind, here, there in zip(names, acts_on, predicted, truth, strict=True)
    ]
    look = kinds == "images"
    seeing = Agreement.of(predicted[look], truth[look]) if look.any() else None
    return Comparison(title, predicted.shape[1], tuple(rows), Agreement.of(predicted, truth), seeing)


def scatter(axes: "Axes", comparison: Comparison) -> None:
    """Success in the predicted world against true success, with intervals, on matplotlib's axes."""
    axes.plot((0, 1), (0, 1), color="0.8", linewidth=1, zorder=0)
    for kind, colour in COLOURS.items():
        rows = [row for row in comparison.rows if row.acts_on == kind]
        if not rows:
            continue
        x, y = (np.array([getattr(row, world) for row in rows]) for world in ("truth", "predicted"))
        bars = [np.clip([v[:, 0] - v[:, 1], v[:, 2] - v[:, 0]], 0, None) for v in (x, y)]
        axes.errorbar(
            x[:, 0], y[:, 0], xerr=bars[0], yerr=bars[1], fmt="o", color=colour, markersize=4, linewidth=0.6, label=kind
        )
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="true success", ylabel="predicted success")
    axes.set_title(literal(comparison.title, 80), fontsize=9)


COLOURS = {"nothing": "tab:grey", "odometry": "tab:blue", "images": "tab:red"}
