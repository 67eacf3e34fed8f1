"""What a search makes of one GPU: trials, passes, the pace of steady steps, and how long some kernel runs.

    python benchmarks/gpu_search.py --time 80 --shares 1,0.25

Needs a GPU; without one it says so and ends with code 2. Targets: the search trains until its deadline (the last report
within 10 s of it), and the best trial has more than ten passes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import common
from common import Check, RunFiles

LAST_REPORT_SECONDS, PASSES = 10.0, 10.0
SAMPLE_MS = 100


@dataclass(frozen=True)
class Search:
    """One search. `busy` is the share of samples, between first and last report, in which the GPU did something."""

    share: float
    seconds: float
    phases: dict[str, float]
    trials: int
    passes: float
    most_passes: float
    first_report: float
    last_report: float
    step_ms: float
    slowest_first_slice: float
    busy: float
    peak_gpu_mib: int
    validation: float
    test: float
    best: str


@dataclass(frozen=True)
class Result:
    """The device, and one search a share."""

    device: str
    searches: tuple[Search, ...]


@contextmanager
def utilisation() -> Iterator[list[str]]:
    """Lines of "percent" while the block runs, filled when it ends."""
    lines: list[str] = []
    query = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={SAMPLE_MS}")
    with subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True) as sampling:
        yield lines
        sampling.kill()
        lines += (sampling.stdout or iter(())).read().split()  # type: ignore[union-attr]


def measure(budget: float, share: float, runner: str) -> Search:
    """Search the example once."""
    options = ("--time", f"{budget:g}s", "--gpus-per-trial", str(share), "--runner", runner, "--backbones", "lite/*")
    with common.workplace() as place, utilisation() as samples:
        finished, run = common.search(place, *options)
        return read(run, share, finished.seconds, samples)


def read(run: RunFiles, share: float, seconds: float, samples: list[str]) -> Search:
    """What the run folder holds."""
    summary, records = run.summary, list(run.ledger.trials.values())
    reports = [report for record in records for report in record.reports]
    steps = [report.costs.step for report in reports if report.costs.step is not None]
    first, last = (pick(report.elapsed for report in reports) for pick in (min, max))
    seen = [float(text) for text in samples[int(first / seconds * len(samples)) : int(last / seconds * len(samples))]]
    metric = summary.metric
    return Search(
        share=share,
        seconds=round(seconds, 1),
        phases=dict(summary.seconds),
        trials=len(records),
        passes=round(sum(record.step for record in records), 1),
        most_passes=round(max(record.step for record in records), 1),
        first_report=round(first, 1),
        last_report=round(last, 1),
        step_ms=round(1000 * statistics.median(steps), 1) if steps else 0.0,
        slowest_first_slice=round(max(record.reports[0].seconds for record in records if record.reports), 1),
        busy=round(sum(value > 0 for value in seen) / len(seen), 3) if seen else 0.0,
        peak_gpu_mib=int(max((report.facts.get("peak_gpu_mib", 0) for report in reports), default=0)),
        validation=summary.validation.metrics[metric],
        test=summary.test.metrics[metric] if summary.test else 0.0,
        best=f"{summary.best.backbone} {summary.best.freeze}",
    )


def checks(result: Result, budget: float) -> Iterator[Check]:
    """Each search against the targets."""
    for one in result.searches:
        end = one.seconds - sum(one.phases.get(name, 0.0) for name in ("export", "gate", "test", "bundle"))
        gap, name = end - one.last_report, f"share {one.share:g}: "
        yield Check(f"{name}from last report to the end of the search, s", f"{gap:.1f}", "<= 10", gap <= 10)
        yield Check(f"{name}most passes of a trial", f"{one.most_passes}", f"> {PASSES:g}", one.most_passes > PASSES)
        late = one.seconds - budget
        yield Check(f"{name}seconds late", f"{late:.1f}", "<= 5", late <= 5)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=float, default=80.0, help="seconds given to each search")
    parser.add_argument("--shares", default="1,0.25", help="of the GPU for each trial, one search each")
    parser.add_argument("--runner", default="ray", choices=["ray", "inline"])
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here; nothing was measured")
        return 2
    searches = []
    for share in map(float, options.shares.split(",")):
        searches.append(measure(options.time, share, options.runner))
        print(searches[-1], flush=True)
    result = Result(torch.cuda.get_device_name(0), tuple(searches))
    return common.publish("gpu_search", result, list(checks(result, options.time)))


if __name__ == "__main__":
    sys.exit(main())
