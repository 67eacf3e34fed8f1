"""The gate: a pair of files that agrees with torch, on floats and from pixels, or a refusal with the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.bundle.order import Order
from autoft.bundle.parity import core_parity, core_refusal, pixel_parity, pixel_refusal
from autoft.bundle.standalone.verify import Broken, core_milliseconds
from autoft.errors import DataError, GateFailed, TooSlow, UserError
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.forms.base import Answering
from autoft.tasks.forms.table import answering
from autoft.tasks.statistics import Logits
from autoft.values.bundle import CORE, MODEL, CoreParity, ParityReport, PixelParity
from autoft.values.counts import milliseconds
from autoft.values.dataset import SplitName
from autoft.values.handoff import Artifact
from autoft.values.latency import refusal

_SCORING_BATCH: Final = 32
_FURTHER_TRIES: Final = 2


class Refused(Exception):
    """A file is not handed over; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Passed:
    """A pair of files that passed: the exporter's artifact, logits `(n, outputs)` of the validation split.

    `core_milliseconds` is what the core takes for one image, where that is limited.
    """

    artifact: Artifact
    validation_logits: Logits
    answering: Answering
    parity: ParityReport
    core_milliseconds: float | None = None


def first_that_passes(order: Order, exports: Iterator[Artifact], folder: Path, watch: Stopwatch) -> Passed:
    """model.core.onnx, from the first of the `exports` that agrees with torch, and model.onnx beside it.

    Each of the `exports` writes model.core.onnx into `folder` when it is asked for. Raises `GateFailed` with the
    numbers and the worst images when none passes, and when the classifier is not the one that was scored; `TooSlow`
    for the first file that takes longer than it may, `DataError` when images of the gate are gone.
    """
    refused: list[str] = []
    for artifact in watch.each("export", exports):
        refused += [cause for cause in artifact.failed if cause not in refused]  # a later way repeats the earlier ones
        try:
            with watch.phase("gate"):
                return _passed(order, artifact, folder, tuple(refused))
        except DataError:
            raise
        except (Refused, UserError, ValueError) as reason:  # it differs, does not load, does not run, is no such file
            refused.append(f"{artifact.exporter}: {str(reason).replace(f'{folder}/', '')}")
    raise GateFailed("; ".join(refused) or "the exporter wrote no file")


def logits_of(order: Order, core: Path, split: SplitName) -> Logits:
    """Logits `(n, outputs)` of a whole split, from the file alone. Raises `Refused` when they are not finite."""
    model, rows = CoreModel(core), order.dataset.rows(split)
    starts = range(0, len(rows), _SCORING_BATCH)
    logits = np.concatenate([model.logits(order.inputs(rows[start : start + _SCORING_BATCH])) for start in starts])
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits)).any(axis=1).sum())
        raise Refused(f"{CORE} gives no finite logits for {broken} of {len(logits)} {split} images")
    return logits


def _passed(order: Order, artifact: Artifact, folder: Path, refused: tuple[str, ...]) -> Passed:
    core, model = folder / CORE, folder / MODEL
    taken = None if order.max_latency is None else _milliseconds(order, core, order.max_latency)
    logits = _validation_logits(order, core)
    how = answering(order.task, order.task.calibrate(logits, order.dataset.targets("val")))
    core_parities = tuple(_core_parities(order, core, how))
    write_raw_pixel_model(core, model, order.handoff.preprocess, how.ending(), order.layout)
    report = ParityReport(artifact.exporter, refused, core_parities, _pixel_parity(order, model, how))
    return Passed(artifact, logits, how, report, taken)


def _validation_logits(order: Order, core: Path) -> Logits:
    """Those the search scored, which the gate shows to be the file's; the file's own where figures come of them.

    Of a refit always its twin's: its own are of images that it has trained on. Raises `Refused` without them.
    """
    if order.twin is not None:
        return order.twin
    if order.scored is None or order.reported == "val":
        return logits_of(order, core, "val")
    return order.scored


def _core_parities(order: Order, core: Path, how: Answering) -> Iterator[CoreParity]:
    compared = order.compared
    for setting in order.gate.settings:
        model = CoreModel(core, optimisations=setting.optimisations)
        parity = core_parity(model, setting, compared.images, compared.logits, compared.names, how)
        if reason := core_refusal(parity):
            raise Refused(reason)
        yield parity


def _pixel_parity(order: Order, path: Path, how: Answering) -> PixelParity:
    compared = order.compared
    parity = pixel_parity(PixelModel(path), order.decoded(compared.samples), compared.logits, compared.names, how)
    if reason := pixel_refusal(parity):
        raise Refused(reason)
    return parity


def _milliseconds(order: Order, core: Path, most: float) -> float:
    """What the core takes for one image, in this process, which is idle now. Raises `TooSlow` where that is above."""
    try:
        found = core_milliseconds(core)
        if found > most:  # by chance perhaps
            found = min(found, *(core_milliseconds(core) for _ in range(_FURTHER_TRIES)))
    except Broken as problem:
        raise Refused(f"{core.name} cannot be timed: {problem}") from problem
    if found > most:
        trial, takes = order.handoff.trial, f"takes {milliseconds(found)}"
        raise TooSlow(refusal(trial.network, takes, most), found)
    return found
