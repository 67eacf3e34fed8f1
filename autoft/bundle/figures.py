"""What was measured of a model, as sections of its card: score, calibration, parity, speed."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.bundle.standalone.verify import BATCHES
from autoft.system.markdown import plain, table
from autoft.tasks.forms.base import AnswerForm
from autoft.values.bundle import CORE, MODEL, Beside, CoreParity, Latency, ParityReport, PixelParity
from autoft.values.counts import counted


def parity(report: ParityReport, form: AnswerForm) -> str:
    """How far both files are from torch, and what was allowed."""
    return f"""## Parity

{_core(report.core, form)}

{_pixels(report.pixels, form)}

Exported by {plain(report.exporter)}; ways of exporting that were tried before and refused: {len(report.refused)}.\
{"".join(map(_beside, report.beside))}"""


def speed(latency: Latency) -> str:
    """Milliseconds by file, batch and size, and the machine they hold for."""
    rows = [
        (plain(one.file), str(one.batch), plain(one.pixels), f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", str(one.runs))
        for one in latency.timings
    ]
    memory = f"{latency.peak_memory_mib:,} MiB" if latency.peak_memory_mib else "not known"
    threads = counted(latency.threads, "thread")
    sizes = ", ".join(f"{plain(name)} {size:,} bytes" for name, size in latency.file_bytes.items())
    return f"""## Speed

Measured on {plain(latency.machine)}, with onnxruntime {plain(latency.onnxruntime)} and {threads}.
`{latency.command}` measures again where you are.

{table(("File", "Images a call", "Pixels", "p50 ms", "p95 ms", "Calls"), rows)}

{_untimed(latency)}Peak memory of the process: {memory}. Files: {sizes}."""


def _untimed(latency: Latency) -> str:
    """Which batches were left out, where anything was timed."""
    timed = {one.batch for one in latency.timings}
    missing = " and ".join(str(batch) for batch in BATCHES if timed and batch not in timed)
    return f"There was no time to measure {missing} images a call. " if missing else ""


def _core(settings: Sequence[CoreParity], form: AnswerForm) -> str:
    """The setting that is nearest to its limit speaks for all."""
    worst = max(settings, key=lambda one: one.max_delta / one.limit)
    batches = " and ".join(map(str, sorted({one.batch for one in settings})))
    optimised = " and ".join(sorted({"on" if one.optimised else "off" for one in settings}, reverse=True))
    return (
        f"`{CORE}` against torch on {worst.n} validation images, in batches of {batches}, onnxruntime's optimisations\n"
        f"{optimised}: logits differ by at most {worst.max_delta:.3g} (allowed: {worst.limit:.3g}, which is "
        f"{worst.limit / worst.scale:.2g} of the logit\nscale), {form.compared} by at most "
        f"{worst.answer_delta:.3g} ({worst.answer_limit:.3g} is what nobody feels)"
        f"{_changed(form, sum(one.flips for one in settings), f'clear {form.decided}')}."
    )


def _changed(form: AnswerForm, flips: int, decisions: str) -> str:
    return f", and\n{flips} {decisions} change" if form.decided else ""


def _beside(found: Beside) -> str:
    if found.parity is None:
        return f"\n\nFrom exporter {plain(found.exporter)}: {plain(found.path) or 'nothing'}; {plain(found.note)}."
    most = f"logits differ from torch by at most {found.parity.max_delta:.3g}"
    verdict = "refused and left out" if found.note else plain(found.path)
    return f"\n\nFrom exporter {plain(found.exporter)}: {verdict}; {most}."


def _pixels(found: PixelParity, form: AnswerForm) -> str:
    return (
        f"`{MODEL}`, fed with pixels, against Pillow and torch on {found.n} validation images: {form.compared}\n"
        f"differ by at most {found.max_delta:.3g} (allowed: {found.limit:g})"
        f"{_changed(form, found.flips, f'{form.decided} with a margin above {found.clear_margin:g}')}."
    )
