"""Success rates of policies in a predicted and in a rendered world (the truth): intervals, correlation, rank violation
and a scatter plot.
"""

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
    """A number with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


def rate(successes: ArrayLike) -> Estimate:
    """The share of successes (E,) bool, with Wilson's interval."""
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
    """Pearson's r of success rates (P,), with the interval of Fisher's transformation, as though policies were drawn at
    random. The interval is NaN for fewer than four policies.
    """
    r = float(pearson(predicted, truth))
    if np.isnan(r) or len(np.asarray(predicted)) < 4:
        return Estimate(r, float("nan"), float("nan"))
    interval = stats.pearsonr(np.asarray(predicted, float), np.asarray(truth, float)).confidence_interval(0.95)
    return Estimate(r, float(interval.low), float(interval.high))


def rank_violation(predicted: ArrayLike, truth: ArrayLike) -> NDArray:
    """Mean maximum rank violation (Li et al. 2024, SIMPLER, arXiv 2405.05941):

        violation(i, j) = |truth_i - truth_j| * [(predicted_i < predicted_j) != (truth_i < truth_j)]
        result = mean over i of max over j of violation(i, j)

    It says how much worse, in the truth, a policy may be than one that the predicted world ranks below it.

    Args:
        predicted: success rates (..., P) in the predicted world.
        truth: success rates (..., P) of the same policies in the rendered world.

    Returns:
        (...), from 0 (the ranks agree) to 1.
    """
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    apart = np.abs(truth[..., :, None] - truth[..., None, :])
    wrong = (predicted[..., :, None] < predicted[..., None, :]) != (truth[..., :, None] < truth[..., None, :])
    return (apart * wrong).max(-1).mean(-1)


def mean_gap(predicted: ArrayLike, truth: ArrayLike) -> NDArray:
    """The mean over policies of success rates (..., P) in the predicted world minus those in the truth."""
    return (np.asarray(predicted) - np.asarray(truth)).mean(-1)


def over_episodes(statistic: Callable[[NDArray, NDArray], NDArray], predicted: NDArray, truth: NDArray) -> Estimate:
    """A statistic of success rates with its percentile bootstrap interval. Each of `RESAMPLES` samples draws episodes
    with replacement, the same ones for all policies in both worlds.

    Args:
        statistic: a function of rates (..., P) in the predicted world and in the truth. Samples for which it is NaN are
            left out.
        predicted: successes (P, E) bool.
        truth: successes (P, E) bool of the same episodes.
    """
    episodes = predicted.shape[1]
    often = np.random.default_rng(0).multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES)  # (R, E)
    drawn = statistic(*(often @ world.T / episodes for world in (predicted, truth)))  # of rates (R, P)
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(statistic(predicted.mean(1), truth.mean(1))), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """The success rates of one policy.

    Attributes:
        name: of the policy.
        acts_on: see `compare_policies.Policy`.
        predicted: in the predicted world.
        truth: in the rendered world.
    """

    name: str
    acts_on: str
    predicted: Estimate
    truth: Estimate

    @property
    def gap(self) -> float:
        """Success rate in the predicted world minus that in the truth."""
        return self.predicted.value - self.truth.value


@dataclass(frozen=True)
class Agreement:
    """How far two worlds agree on some policies.

    Attributes:
        policies: how many.
        r: Pearson's r, with an interval over policies.
        r_episodes: Pearson's r, with an interval over episodes.
        violation: rank violation, with an interval over episodes.
        gap: mean success rate in the predicted world minus that in the truth, with an interval over episodes.
    """

    policies: int
    r: Estimate
    r_episodes: Estimate
    violation: Estimate
    gap: Estimate

    @classmethod
    def of(cls, predicted: NDArray, truth: NDArray) -> "Agreement":
        """The agreement of successes (P, E) bool."""
        return cls(
            len(predicted),
            pearson_of_policies(predicted.mean(1), truth.mean(1)),
            over_episodes(pearson, predicted, truth),
            over_episodes(rank_violation, predicted, truth),
            over_episodes(mean_gap, predicted, truth),
        )


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Policies that do not act on images do the same in both worlds unless a wall stops them, so their agreement says
    little.

    Attributes:
        title: of the comparison.
        episodes: how many.
        rows: one per policy.
        every: agreement on all policies.
        images: agreement on policies that act on images; None without any.
    """

    title: str
    episodes: int
    rows: tuple[Row, ...]
    every: Agreement
    images: Agreement | None

    def to_plain(self) -> dict[str, Any]:
        """The comparison as plain values, for JSON."""
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
    """With None in place of NaN, which JSON does not have."""
    return {
        name: [None if np.isnan(number) else number for number in value] if isinstance(value, tuple) else value
        for name, value in estimates.items()
    }


def compared(
    title: str, names: Sequence[str], acts_on: Sequence[str], predicted: ArrayLike, truth: ArrayLike
) -> Comparison:
    """A comparison from successes (P, E) bool of P policies in the same E episodes of both worlds."""
    predicted, truth, kinds = np.asarray(predicted, bool), np.asarray(truth, bool), np.asarray(acts_on)
    rows = [
        Row(name, kind, rate(here), rate(there))
        for name, kind, here, there in zip(names, acts_on, predicted, truth, strict=True)
    ]
    look = kinds == "images"
    seeing = Agreement.of(predicted[look], truth[look]) if look.any() else None
    return Comparison(title, predicted.shape[1], tuple(rows), Agreement.of(predicted, truth), seeing)


def scatter(axes: "Axes", comparison: Comparison) -> None:
    """Draw predicted success rates over true ones, with intervals, on matplotlib's axes."""
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
