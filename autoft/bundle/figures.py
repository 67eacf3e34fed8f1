"""What was measured of a model, as sections of its card: score, calibration, parity, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from autoft.bundle.markdown import plain, table
from autoft.values.bundle import (
    CORE,
    METRICS,
    MODEL,
    Beside,
    Calibration,
    CoreParity,
    Latency,
    MetricsReport,
    ParityReport,
    PixelParity,
)

WORST_CLASSES: Final = 5

_SPLITS: Final[Mapping[str, str]] = {"train": "training", "val": "validation"}
_MEANING: Final[Mapping[str, str]] = {
    "accuracy": "part of the images that is right",
    "balanced_accuracy": "mean recall of the classes",
    "macro_f1": "mean F1 of the classes",
    "log_loss": "natural logarithm; smaller is better",
    "ece": "expected calibration error; smaller is better",
}


def split_name(split: str) -> str:
    """What a split is called in prose."""
    return _SPLITS.get(split, plain(split))


def score(metrics: MetricsReport) -> str:
    """Every metric with its interval, and the classes of the smallest recall."""
    rows = [
        (plain(name), f"{one.value:.4f}", f"{one.ci95[0]:.4f} to {one.ci95[1]:.4f}", _MEANING.get(name, ""))
        for name, one in metrics.metrics.items()
    ]
    note = f" {plain(metrics.note)}" if metrics.note else ""
    recalls = [(one.recall, one) for one in metrics.per_class if one.recall is not None]
    worst = [
        (plain(one.label), f"{one.n:,}", f"{recall:.4f}", _figure(one.precision), _figure(one.f1))
        for recall, one in sorted(recalls, key=lambda pair: pair[0])[:WORST_CLASSES]
    ]
    return f"""## Score

Of {metrics.n:,} images of the {split_name(metrics.split)} split `{CORE}` got {metrics.correct:,} right.{note}
{_missed(metrics)}{table(("Metric", "Value", "95 % interval", ""), rows)}

The classes of the smallest recall; `{METRICS}` has all:

{table(("Class", "Images", "Recall", "Precision", "F1"), worst)}"""


def _missed(metrics: MetricsReport) -> str:
    shown = ", ".join(f"{plain(label)} ({n:,})" for label, n in list(metrics.missed.items())[:WORST_CLASSES])
    more = ", and more" if len(metrics.missed) > WORST_CLASSES else ""
    return f"\n**Not one image of these classes was recognised:** {shown}{more}.\n\n" if shown else "\n"


def calibration(metrics: MetricsReport) -> str:
    """The temperature, why it is what it is, and what it does to the calibration error."""
    found, before, after = metrics.calibration, metrics.ece_before_temperature, metrics.metrics.get("ece")
    with_it = f", {after.value:.4f} with it" if after else ""
    return f"""## Calibration

`{MODEL}` divides logits by a temperature of {found.temperature:.4g}; there were {found.n:,} validation images to fit
it on. {plain(found.reason)}{_losses(found)}

Expected calibration error on the {split_name(metrics.split)} split:
{before.value:.4f} without the temperature{with_it}."""


def parity(report: ParityReport) -> str:
    """How far both files are from torch, and what was allowed."""
    return f"""## Parity

{_core(report.core)}

{_pixels(report.pixels)}

Exported by {plain(report.exporter)}; ways of exporting that were tried before and refused: {len(report.refused)}.\
{"".join(map(_beside, report.beside))}"""


def speed(latency: Latency) -> str:
    """Milliseconds by file, batch and size, and the machine they hold for."""
    rows = [
        (plain(one.file), str(one.batch), plain(one.pixels), f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", str(one.runs))
        for one in latency.timings
    ]
    memory = f"{latency.peak_memory_mib:,} MiB" if latency.peak_memory_mib else "not known"
    sizes = ", ".join(f"{plain(name)} {size:,} bytes" for name, size in latency.file_bytes.items())
    return f"""## Speed

Measured on {plain(latency.machine)}, with onnxruntime {plain(latency.onnxruntime)} and {latency.threads} threads.
`{latency.command}` measures again where you are.

{table(("File", "Images a call", "Pixels", "p50 ms", "p95 ms", "Calls"), rows)}

Peak memory of the process: {memory}. Files: {sizes}."""


def _losses(found: Calibration) -> str:
    if found.log_loss_before is None or found.log_loss_after is None:
        return ""
    before, after = found.log_loss_before, found.log_loss_after
    return f" Log loss, cross-fitted on those: {before:.4f} without a temperature, {after:.4f} with one."


def _core(settings: Sequence[CoreParity]) -> str:
    """The setting that is nearest to its limit speaks for all."""
    worst = max(settings, key=lambda one: one.max_delta / one.limit)
    batches = " and ".join(map(str, sorted({one.batch for one in settings})))
    optimised = " and ".join(sorted({"on" if one.optimised else "off" for one in settings}, reverse=True))
    return (
        f"`{CORE}` against torch on {worst.n} validation images, in batches of {batches}, onnxruntime's optimisations\n"
        f"{optimised}: logits differ by at most {worst.max_delta:.3g} (allowed: {worst.limit:.3g}, which is "
        f"{worst.limit / worst.scale:.2g} of the logit\nscale), probabilities by at most "
        f"{worst.probability_delta:.3g} ({worst.probability_limit:.3g} is what nobody feels), and\n"
        f"{sum(one.flips for one in settings)} clear answers change."
    )


def _beside(found: Beside) -> str:
    if found.parity is None:
        return f"\n\nFrom exporter {plain(found.exporter)}: {plain(found.path) or 'nothing'}; {plain(found.note)}."
    most = f"logits differ from torch by at most {found.parity.max_delta:.3g}"
    verdict = "refused and left out" if found.note else plain(found.path)
    return f"\n\nFrom exporter {plain(found.exporter)}: {verdict}; {most}."


def _pixels(found: PixelParity) -> str:
    return (
        f"`{MODEL}`, fed with pixels, against Pillow and torch on {found.n} validation images: probabilities\n"
        f"differ by at most {found.max_delta:.3g} (allowed: {found.limit:g}), and {found.flips} answers with a margin "
        f"above {found.clear_margin:g} change."
    )


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
