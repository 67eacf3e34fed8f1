"""`Metric`: one figure of how good predictions are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from autoft.values.target import Form, MetricFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float64]"
Counts: TypeAlias = "NDArray[np.int64]"
Statistic: TypeAlias = Callable[[Counts], Floats]
"""From how often each image counts, `(resamples, n)`, to one figure a resample, `(resamples,)`."""

ByClass: TypeAlias = "tuple[Floats, Floats]"
"""What a mean over classes is made of: of each class that occurs its own figure, 0 to 1, and of how many images."""

Bootstrap = Literal["percentile", "log_odds"]
"""How an interval is taken from the figures of resamples; "log_odds" suits a figure in [0, 1] that these push up."""


@dataclass(frozen=True)
class Metric:
    """One figure of a task: `statistic` is made of what `Task.judged` gives `(n, ...)` and of targets `(n, ...)`.

    A statistic instead of a number, so that one bootstrap serves all figures. It is greater for better predictions: of
    a loss the negative. One that `is_proportion` is the part of the images that is right. `Metric.of` makes one of a
    plain function. `form`: a metric that a plugin offers by itself is one of all tasks whose answers are of that form;
    None where a task brings it along. `bootstrap` is how its 95 % interval comes about, unless it is a proportion;
    `by_class`, of judged outputs and targets, widens that of a mean over classes where a class has few images.
    """

    facts: MetricFacts
    statistic: Callable[[NDArray[Any], NDArray[Any]], Statistic]
    is_proportion: bool = False
    form: Form | None = None
    bootstrap: Bootstrap = "percentile"
    by_class: Callable[[NDArray[Any], NDArray[Any]], ByClass] | None = None

    @classmethod
    def of(
        cls,
        facts: MetricFacts,
        score: Callable[[NDArray[Any], NDArray[Any]], float],
        form: Form | None = None,
        is_proportion: bool = False,
    ) -> Metric:
        """The metric of a function of judged outputs `(n, ...)` and targets `(n, ...)` to a number, greater is better.

        It is also asked of resamples, in which images stand several times or not at all; NaN where it has no figure.
        """
        import numpy as np

        def statistic(judged: NDArray[Any], targets: NDArray[Any]) -> Statistic:
            rows = np.arange(len(targets))

            def figures(counts: Counts) -> Floats:
                drawn = (np.repeat(rows, count) for count in counts)
                found = [score(judged[chosen], targets[chosen]) for chosen in drawn]
                if any(one is None for one in found):  # which numpy takes for NaN
                    raise TypeError("it gives None")
                return np.array(found, np.float64)

            return figures

        return cls(facts, statistic, is_proportion, form)

    @property
    def name(self) -> str:
        """As `--metric` takes it."""
        return self.facts.name

    def score(self, judged: NDArray[Any], targets: NDArray[Any]) -> float:
        """The score of judged outputs `(n, ...)` for targets `(n, ...)`; greater is better."""
        import numpy as np

        return float(self.statistic(judged, targets)(np.ones((1, len(targets)), np.int64))[0])
