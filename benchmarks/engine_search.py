"""What a search makes of one GPU: trials, passes, first kernel, the share of time in which some kernel runs, accuracy.

    python benchmarks/engine_search.py
    python benchmarks/engine_search.py --time 80 --shares 1,0.25     # --gpus-per-trial given, one search each

Kernels are seen through NVML (the package nvidia-ml-py), asked twenty times a second: its utilisation is the share of
the last fraction of a second in which one or more kernels ran. Without NVML, or where it says nothing but 0, they count
as not measured; the share of time in which some slice is being executed, from the journal, is shown in any case and is
no substitute. Targets: first kernel within 12 s of process start; kernels run in 85 % of the time from then to the
export; 300 passes in all; a test accuracy as on 2 cores; nothing late.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import common
from common import FASHION, RESULTS, Check, RunFiles

FIRST_KERNEL_SECONDS, BUSY, PASSES, LATE_SECONDS = 12.0, 0.85, 300.0, 5.0
ENDING = ("export", "gate", "test", "bundle")
SAMPLE_SECONDS = 0.05
DEFAULT = "default"


@dataclass(frozen=True)
class Sample:
    """Seconds since the process was started, percent of time with a kernel, MiB taken of the GPU."""

    at: float
    percent: int
    mib: int


class Gpu(threading.Thread):
    """Samples the first GPU while the block runs; none where NVML cannot be had, and `why` says so."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self.why = ""
        self._ended = threading.Event()
        self._began = time.monotonic()

    def run(self) -> None:
        """Until the block ends."""
        try:
            import pynvml

            pynvml.nvmlInit()
            device = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._ended.wait(SAMPLE_SECONDS):
                self.samples.append(self._sample(pynvml, device))
        except Exception as error:  # whatever is missing: package, library, driver, permission
            self.why = f"{type(error).__name__}: {error}"

    def _sample(self, nvml: Any, device: Any) -> Sample:
        percent = int(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
        mib = int(nvml.nvmlDeviceGetMemoryInfo(device).used) >> 20
        return Sample(round(time.monotonic() - self._began, 3), percent, mib)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self.join()


@dataclass(frozen=True)
class Kernels:
    """When the first one of a slice was seen, when the GPU first had more memory taken, in seconds of the run.

    `busy` is the share of the time from the first one to the export in which some kernel ran.

    What is seen before the first slice begins is the start of MPS, or somebody else's. None for what was not seen.
    """

    first: float | None
    first_memory: float | None
    busy: float | None
    peak_mib: int

    @classmethod
    def of(cls, samples: list[Sample], begin: float, end: float) -> Kernels:
        """From the samples of a run whose first slice began, and which went over to its end, after so many seconds."""
        first = next((one.at for one in samples if one.percent > 0 and one.at >= begin), None)
        more = next((one.at for one in samples if one.mib > samples[0].mib), None)
        seen = [one.percent for one in samples if first is not None and first <= one.at <= end]
        busy = round(statistics.mean(seen) / 100, 3) if seen else None
        return cls(first, more, busy, max((one.mib for one in samples), default=0))


@dataclass(frozen=True)
class Search:
    """One search. `in_slices`: the share of time from the first slice's begin to the end in which one was executed."""

    share: str
    seconds: float
    late: float
    phases: dict[str, float]
    trials: int
    passes: float
    most_passes: float
    first_report: float
    last_report: float
    step_ms: float
    slowest_first_slice: float
    in_slices: float
    kernels: Kernels
    peak_gpu_mib: int
    validation: float
    test: float
    best: str


@dataclass(frozen=True)
class Result:
    """The device, one search a share, what they are held against, and why kernels were not seen."""

    device: str
    searches: tuple[Search, ...]
    accuracy_of_cores: float
    why: str


def measure(budget: float, share: str, backbones: str, runner: str) -> tuple[Search, Gpu]:
    """Search the example once."""
    options = ["--time", f"{budget:g}s", "--runner", runner, "--backbones", backbones]
    if share != DEFAULT:
        options += ["--gpus-per-trial", share]
    with ExitStack() as stack:
        place, gpu = stack.enter_context(common.workplace()), stack.enter_context(Gpu())
        finished, run = common.search(place, *options)
        return read(run, share, budget, finished.seconds, gpu.samples), gpu


def read(run: RunFiles, share: str, budget: float, seconds: float, samples: list[Sample]) -> Search:
    """What the run folder holds, and the samples."""
    summary, records = run.summary, list(run.ledger.trials.values())
    reports = [report for record in records for report in record.reports]
    steps = [report.costs.step for report in reports if report.costs.step is not None]
    end = seconds - sum(summary.seconds.get(name, 0.0) for name in ENDING)
    return Search(
        share=share,
        seconds=round(seconds, 1),
        late=round(seconds - budget, 1),
        phases=dict(summary.seconds),
        trials=len(records),
        passes=round(sum(record.step for record in records), 1),
        most_passes=round(max(record.step for record in records), 1),
        first_report=round(min(report.elapsed for report in reports), 1),
        last_report=round(max(report.elapsed for report in reports), 1),
        step_ms=round(1000 * statistics.median(steps), 1) if steps else 0.0,
        slowest_first_slice=round(max(record.reports[0].seconds for record in records if record.reports), 1),
        in_slices=round(_covered((report.elapsed - report.seconds, report.elapsed) for report in reports), 3),
        kernels=Kernels.of(samples, min(report.elapsed - report.seconds for report in reports), end),
        peak_gpu_mib=int(max((report.facts.get("peak_gpu_mib", 0) for report in reports), default=0)),
        validation=summary.validation.metrics[summary.metric],
        test=summary.test.metrics[summary.metric] if summary.test else 0.0,
        best=f"{summary.best.backbone} {summary.best.freeze}",
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first begin to the last end that lies in some span."""
    ordered = sorted(spans)
    reached, covered = ordered[0][0], 0.0
    for begin, end in ordered:
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered / (reached - ordered[0][0])


def known_accuracy() -> float:
    """The test accuracy of the two-minute search on 2 cores that is in results/."""
    found = json.loads((RESULTS / "fashion_search.json").read_text(encoding="utf-8"))["result"]
    return round(found["correct_by_summary"] / found["test_images"], 4)


def checks(result: Result) -> Iterator[Check]:
    """Each search against the targets."""
    for one in result.searches:
        name, kernels, wanted = f"share {one.share}: ", one.kernels, result.accuracy_of_cores
        first, busy = kernels.first, kernels.busy
        yield Check(
            f"{name}first kernel, s from process start",
            "not measured" if first is None else f"{first:.1f}",
            f"<= {FIRST_KERNEL_SECONDS:g}",
            first is not None and first <= FIRST_KERNEL_SECONDS,
        )
        yield Check(
            f"{name}share of time with a kernel, from the first to the export",
            "not measured" if busy is None else f"{busy:.3f}",
            f">= {BUSY}",
            busy is not None and busy >= BUSY,
        )
        yield Check(f"{name}passes in all", f"{one.passes:g}", f">= {PASSES:g}", one.passes >= PASSES)
        yield Check(f"{name}test accuracy", f"{one.test:.4f}", f">= {wanted}, 2 cores", one.test >= wanted)
        yield Check(f"{name}seconds late", f"{one.late:.1f}", f"<= {LATE_SECONDS:g}", one.late <= LATE_SECONDS)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=float, default=120.0, help="seconds given to each search")
    parser.add_argument("--shares", default=DEFAULT, help="of the GPU for each trial, one search each")
    parser.add_argument("--backbones", default="lite/*")
    parser.add_argument("--runner", default="ray", choices=["ray", "inline"])
    parser.add_argument("--accuracy", type=float, default=known_accuracy(), help="what 2 cores reach on the same test")
    options = parser.parse_args()
    searches, gpus = [], []
    for share in options.shares.split(","):
        search, gpu = measure(options.time, share, options.backbones, options.runner)
        searches.append(search)
        gpus.append(gpu)
        print(search, gpu.why, flush=True)
    from engine_training import device_name

    result = Result(device_name(), tuple(searches), options.accuracy, gpus[0].why)
    rows = [
        (
            one.share,
            *(one.trials, one.passes, one.most_passes, one.step_ms, one.first_report, one.last_report, one.seconds),
            *(one.kernels.first, one.kernels.first_memory, one.kernels.busy, one.in_slices, one.test, one.best),
        )
        for one in searches
    ]
    columns = ("share", "trials", "passes", "most", "step ms", "first report s", "last", "seconds")
    kernels = ("first kernel s", "memory s", "busy", "in slices", "test", "best")
    common.show(f"search of {FASHION.name}, {options.time:g} s, {result.device}", (*columns, *kernels), rows)
    return common.publish("engine_search", result, list(checks(result)))


if __name__ == "__main__":
    sys.exit(main())
