"""Private memory of the driver and of each worker while 10,000 images are decoded, probed and trained on at 224 px.

    python benchmarks/memory.py

Private memory is what `/proc/PID/smaps_rollup` calls `Private_*` (USS): what a process alone would give back. Mapped
caches, which all workers share, do not count. Sampled four times a second; a page that a cache maps counts as private
while only one process has it, so the figures are on the safe side: `anonymous` is what has no file behind it, the most
that a process cannot do without. The images are Fashion-MNIST's, enlarged to 256 px.
Target: under 2 GB each, over decoding, the probe and at least 50 training steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import common
import make_fashion
from common import Check, Process, RunFiles
from PIL import Image

LIMIT_MB, STEPS = 2000.0, 50
SAMPLES_A_SECOND = 4
WORKER = "ray::"


@dataclass(frozen=True)
class Peak:
    """The most private memory of one process in MB (10^6 bytes), the second it was seen at, and the most of it that is
    anonymous at any time.
    """

    role: str
    pid: int
    private_mb: float
    at_second: float
    anonymous_mb: float


@dataclass(frozen=True)
class Result:
    """The peaks of driver and workers, and what the run did meanwhile; `steps` of the trial that trained longest."""

    images: int
    image_size: int
    budget: float
    seconds: float
    samples: int
    probes: int
    steps: int
    peaks: tuple[Peak, ...]


def enlarge(source: Path, target: Path, size: int) -> int:
    """Write every image of a class folder as a JPEG of `size` pixels; their number."""
    paths = sorted(source.glob("*/*.png"))
    for path in paths:
        file = target / path.parent.name / f"{path.stem}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)
    return len(paths)


def private_bytes(pid: int) -> tuple[int, int] | None:
    """USS of a process, and what of its memory is anonymous; None when it has ended or its memory may not be read."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None

    def total(name: str) -> int:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    return total("Private_"), total("Anonymous:")


def role(pid: int, driver: int) -> str | None:
    """ "driver", "worker", or None for what is neither, such as Ray's own servers."""
    if pid == driver:
        return "driver"
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return "worker" if title.startswith(WORKER) else None


def watch(process: Process) -> tuple[int, tuple[Peak, ...]]:
    """Sample until the process ends: the number of samples, and the peak of each process."""
    peaks: dict[int, Peak] = {}
    samples, began = 0, time.monotonic()
    while process.running():
        now = time.monotonic() - began
        for pid, kind, used, anonymous in _sample(process):
            before = peaks.get(pid, Peak(kind, pid, 0.0, 0.0, 0.0))
            if used > before.private_mb:
                before = replace(before, private_mb=round(used, 1), at_second=round(now, 1))
            peaks[pid] = replace(before, anonymous_mb=max(before.anonymous_mb, round(anonymous, 1)))
        samples += 1
        time.sleep(max(0.0, 1 / SAMPLES_A_SECOND - (time.monotonic() - began - now)))
    return samples, tuple(sorted(peaks.values(), key=lambda peak: (peak.role, -peak.private_mb)))


def _sample(process: Process) -> Iterator[tuple[int, str, float, float]]:
    for pid in process.family():
        kind, used = role(pid, process.pid), private_bytes(pid)
        if kind is not None and used is not None:
            yield pid, kind, used[0] / 1e6, used[1] / 1e6


def trained_steps(run: RunFiles) -> int:
    """Steps of the gradient trial that got furthest, at its own batch size."""
    images = run.record.data.counts["train"]
    gradient = [record for record in run.ledger.trials.values() if "batch_size" in record.trial.params]
    return max((int(r.step * images / float(r.trial.params["batch_size"])) for r in gradient), default=0)


def measure(a_class: int, size: int, budget: float, runner: str) -> Result:
    """Make the images, search them under observation."""
    with common.workplace() as place:
        further, data, out = place.path / "small", place.path / "data", place.path / "run"
        make_fashion.write_training(further, a_class)
        images = enlarge(further, data, size * 8 // 7)
        backbone = ("--backbones", "lite/efficientnet_lite0", "--image-size", str(size), "--freeze", "probe,full")
        options = (*backbone, "--time", f"{budget:g}s", "--runner", runner)
        process = place.start(common.search_command(out, *options, data=data))
        samples, peaks = watch(process)
        finished, run = process.wait().require_success(), RunFiles(out)
        probes = [record for record in run.ledger.trials.values() if record.state == "finished" and record.step <= 1.0]
        return Result(
            images=images,
            image_size=size,
            budget=budget,
            seconds=round(finished.seconds, 1),
            samples=samples,
            probes=len(probes),
            steps=trained_steps(run),
            peaks=peaks,
        )


def checks(result: Result) -> list[Check]:
    """The result against its targets."""
    most = {kind: max((p.private_mb for p in result.peaks if p.role == kind), default=None) for kind in _roles(result)}
    under = [
        Check(f"{kind}, MB at most", f"{used:.0f}", f"< {LIMIT_MB:g}", used < LIMIT_MB)
        for kind, used in most.items()
        if used is not None
    ]
    steps = Check("training steps of one trial", str(result.steps), f">= {STEPS}", result.steps >= STEPS)
    return [*under, steps, Check("probes", str(result.probes), ">= 1", result.probes >= 1)]


def _roles(result: Result) -> list[str]:
    return sorted({peak.role for peak in result.peaks})


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="how many, a tenth of them in each class")
    parser.add_argument("--size", type=int, default=224, help="input size in pixels")
    parser.add_argument("--time", type=float, default=600.0, help="seconds given to the search")
    parser.add_argument("--runner", default="ray", choices=["ray", "inline"])
    options = parser.parse_args()
    result = measure(options.images // 10, options.size, options.time, options.runner)
    rows = [
        (peak.role, peak.pid, f"{peak.private_mb:.0f}", f"{peak.at_second:.0f}", f"{peak.anonymous_mb:.0f}")
        for peak in result.peaks
    ]
    columns = ("process", "pid", "peak MB", "at second", "anonymous")
    common.show(f"private memory, {result.images} images", columns, rows)
    return common.publish("memory", result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
