"""What the engine makes of cores: head-only trials from a cache, first models of photos, where workers' CPU time goes.

    python benchmarks/engine_cpu.py
    python benchmarks/engine_cpu.py --parts heads,probes

heads: images per CPU second of a trial whose head alone is fitted, in closed form on cached features and by gradient
from a kept prefix, against full fine-tuning; one thread. probes: a search of 348 photos at 224 px with the three Lite
backbones, the first score and the last probe's in seconds from process start. share: of the workers' CPU time in a
five-minute search, from their first forward pass to their last, what forward and backward passes take
(parts/forward_backward.py). Passes behind a frozen prefix are what prefix.py measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import budget
import common
import numpy as np
import torch
from common import FASHION, Check
from prefix import kept_prefix, one_pass
from subject import CLASSES, TASK, Subject

from autoft.train.features import FeatureCache
from autoft.values.trial import Report

HEADS = (("tf_efficientnet_lite0", 64, 512), ("tf_efficientnet_lite0", 224, 128))
HEAD_TIMES, FIRST_MODEL_SECONDS, PROBES_SECONDS, SHARE = 50.0, 8.0, 12.0, 0.9
PHOTOS = 348
PLUGIN = Path(__file__).parent / "parts" / "forward_backward.py"
WORKER = "ray::"


@dataclass(frozen=True)
class Heads:
    """Images per CPU second: of full fine-tuning, of a probe from cached features, of a head trained from a prefix."""

    network: str
    size: int
    images: int
    full: float
    closed_form: float
    by_gradient: float


@dataclass(frozen=True)
class Probes:
    """Seconds from process start: first score and the score of each probe by backbone."""

    first: float
    each: dict[str, float]


@dataclass(frozen=True)
class Process:
    """CPU seconds of a worker from its first pass to its last, and of its passes."""

    everything: float
    passes: float


@dataclass(frozen=True)
class Result:
    """What was asked for."""

    heads: tuple[Heads, ...] = ()
    probes: Probes | None = None
    workers: tuple[Process, ...] = ()

    @property
    def share(self) -> float:
        """Of all workers' CPU time, what passes take."""
        return sum(one.passes for one in self.workers) / sum(one.everything for one in self.workers)


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some calls."""
    each = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        each.append(time.process_time() - began)
    return statistics.median(each)


def heads(repeats: int) -> Iterator[Heads]:
    """Each of `HEADS`."""
    for name, size, count in HEADS:
        subject = Subject.of(name, size, count)
        full = subject.run()
        full.advance()  # warm-up
        with kept_prefix(subject, len(subject.network.stages)) as (run, _):
            one_pass(run)  # fills the prefix
            by_gradient = cpu_seconds(lambda run=run: one_pass(run), repeats)
        closed_form, whole = probe_seconds(subject, repeats), cpu_seconds(lambda run=full: one_pass(run), repeats)
        rates = (round(count / seconds, 1) for seconds in (whole, closed_form, by_gradient))
        yield Heads(name, size, count, *rates)


def probe_seconds(subject: Subject, repeats: int) -> float:
    """CPU seconds of fitting the head in closed form on features that are cached."""
    rows = np.arange(len(subject.images.pixels))
    labels = torch.from_numpy(rows % CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder, "features"), "noise", "centre")
        pixels = np.memmap(Path(folder, "pixels"), np.uint8, "w+", shape=subject.images.pixels.shape)
        pixels[:] = subject.images.pixels
        images = dataclasses.replace(subject.images, pixels=pixels)

        def probe() -> None:
            features = cache.features(subject.network, images, rows)
            TASK.closed_form(features, labels, lambda: None)

        probe()  # fills the cache
        return cpu_seconds(probe, repeats)


def probes(seconds: float) -> Probes:
    """Search photos once with nothing cached."""
    with common.workplace() as place:
        data = budget.make_images(place.path / "data", PHOTOS)
        _, run = common.search(place, "--time", f"{seconds:g}s", "--backbones", "lite/*", data=data)
        closed_form = {(c.backbone, c.freeze) for c in run.record.candidates if c.fit == "closed_form"}
        scored = [event for event in run.events if isinstance(event, Report) and event.score is not None]
        trials = {number: record.trial for number, record in run.ledger.trials.items()}
    each = {
        trials[report.trial].backbone: round(report.elapsed, 2)
        for report in scored
        if (trials[report.trial].backbone, trials[report.trial].freeze) in closed_form
    }
    return Probes(round(min(report.elapsed for report in scored), 2), each)


def workers(seconds: float) -> Iterator[Process]:
    """Search the example once, with the plugin that counts."""
    with tempfile.TemporaryDirectory() as folder, common.workplace(FORWARD_BACKWARD=folder) as place:
        common.search(place, "--time", f"{seconds:g}s", "--runner", "ray", "-p", PLUGIN, data=FASHION)
        for path in sorted(Path(folder).glob("*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["title"].startswith(WORKER):
                yield Process(round(found["all"], 2), round(found["passes"], 2))


def checks(result: Result) -> Iterator[Check]:
    """What was measured against the targets."""
    for one in result.heads:
        for how, rate in (("in closed form", one.closed_form), ("by gradient", one.by_gradient)):
            what = f"{one.network}, {one.size} px: head alone {how}, times full fine-tuning"
            yield Check(what, f"{rate / one.full:.0f}", f">= {HEAD_TIMES:g}", rate >= HEAD_TIMES * one.full)
    if (found := result.probes) is not None:
        limit, first = FIRST_MODEL_SECONDS, found.first
        last, names = max(found.each.values(), default=0.0), len(found.each)
        yield Check(
            f"{PHOTOS} photos, first model, s from process start", f"{first:.1f}", f"<= {limit:g}", first <= limit
        )
        in_time = names == 3 and last <= PROBES_SECONDS
        yield Check("all three probes, s", f"{last:.1f} ({names} of 3)", f"<= {PROBES_SECONDS:g}", in_time)
    if result.workers:
        what = f"forward and backward, of the CPU time of {len(result.workers)} workers"
        yield Check(what, f"{result.share:.3f}", f">= {SHARE}", result.share >= SHARE)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="heads,probes,share")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--probes-time", type=float, default=60.0, help="seconds given to the search of photos")
    parser.add_argument("--share-time", type=float, default=300.0, help="seconds given to the search of the example")
    options = parser.parse_args()
    parts, result = options.parts.split(","), Result()
    if "heads" in parts:
        torch.set_num_threads(1)
        result = dataclasses.replace(result, heads=tuple(heads(options.repeats)))
        rows = [(h.network, h.size, h.images, h.full, h.closed_form, h.by_gradient) for h in result.heads]
        columns = ("network", "px", "images", "full", "head in closed form", "head by gradient")
        common.show("images per CPU second, one thread", columns, rows)
    if "probes" in parts:
        result = dataclasses.replace(result, probes=probes(options.probes_time))
        print(result.probes, flush=True)
    if "share" in parts:
        result = dataclasses.replace(result, workers=tuple(workers(options.share_time)))
        print(result.workers, flush=True)
    return common.publish("engine_cpu", result, list(checks(result)))


if __name__ == "__main__":
    sys.exit(main())
