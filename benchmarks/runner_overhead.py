"""What a runner adds to each slice: the median over 32 probe slices on cached features, journal written durably.

    python benchmarks/runner_overhead.py

Overhead is the wall time between two consecutive reports of one worker, less the `seconds` the second slice took by its
own clock: journal, hand-over, the way to the worker and back. The first slice of each worker, which starts processes
and fills the feature cache, has no report before it and does not count. Targets: at most 0.25 s on Ray, 0.03 s inline.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import common
from common import Check

from autoft.values.trial import Event, Report, Started

MOST_SECONDS: Mapping[str, float] = {"ray": 0.25, "inline": 0.03}
SLICES = 32
WORKERS_AT_MOST = 8


def overheads(events: Iterable[Event]) -> list[float]:
    """Overhead in seconds of every slice that followed another on its worker, from a journal.

    The journal does not name workers, and need not: a slice that starts while all are busy takes the place of the one
    that was reported first and not yet followed.
    """
    freed: deque[float] = deque()
    before: dict[int, float] = {}
    found = []
    for event in events:
        match event:
            case Started() if freed:
                before[event.trial] = freed.popleft()
            case Report():
                if event.trial in before:
                    found.append(event.elapsed - before.pop(event.trial) - event.seconds)
                freed.append(event.elapsed)
            case _:
                pass
    return found


@dataclass(frozen=True)
class Overhead:
    """Seconds of overhead a slice on one runner; `slice_median` is what the slices themselves took."""

    runner: str
    slices: int
    median: float
    p90: float
    most: float
    slice_median: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One line a runner."""

    runners: tuple[Overhead, ...]


def measure(runner: str, slices: int) -> Overhead:
    """Search with `many_probes` on one runner."""
    plugin = Path(__file__).with_name("many_probes.py")
    trials = slices + WORKERS_AT_MOST
    with common.workplace() as place:
        searcher = ("-p", plugin, "--searcher", "many_probes", "--trials", str(trials))
        lite0 = ("--backbones", "lite/efficientnet_lite0", "--freeze", "probe")
        _, run = common.search(place, *searcher, *lite0, "--time", "10m", "--runner", runner)
        events = run.events
    failed = [event for event in events if isinstance(event, Report) and event.event != "finished"]
    if failed:
        raise RuntimeError(f"a probe failed: {failed[0].error}")
    each = overheads(events)[:slices]
    if len(each) < slices:
        raise RuntimeError(f"{len(each)} slices followed another, {slices} are wanted")
    seconds = [event.seconds for event in events if isinstance(event, Report)]
    return Overhead(
        runner=runner,
        slices=len(each),
        median=statistics.median(each),
        p90=statistics.quantiles(each, n=10)[-1],
        most=max(each),
        slice_median=statistics.median(seconds),
        each=tuple(round(value, 4) for value in each),
    )


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runners", nargs="+", default=list(MOST_SECONDS), choices=list(MOST_SECONDS))
    parser.add_argument("--slices", type=int, default=SLICES)
    options = parser.parse_args()
    found = tuple(measure(runner, options.slices) for runner in options.runners)
    columns = ("runner", "slices", "median s", "90 % s", "most s", "slice itself, median s")
    rows = [
        (o.runner, o.slices, f"{o.median:.4f}", f"{o.p90:.4f}", f"{o.most:.3f}", f"{o.slice_median:.3f}") for o in found
    ]
    common.show("overhead a slice", columns, rows)
    checks = [
        Check(f"median on {o.runner}, s", f"{o.median:.4f}", f"<= {limit}", o.median <= limit)
        for o in found
        for limit in (MOST_SECONDS[o.runner],)
    ]
    return common.publish("runner_overhead", Result(found), checks)


if __name__ == "__main__":
    sys.exit(main())
