"""`tail_problem`: whether the tail of a task is the arithmetic of its `answers`, without any network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.onnx_runtime import results_of
from autoft.media.image.raw_pixels import ending_model
from autoft.tasks.forms.base import Answering
from autoft.tasks.statistics import Logits
from autoft.values.handoff import Ending, Output

TOLERANCE = 1e-4
"""Largest difference of an answer in units, as a part of the greatest: rounding alone is far less."""

_SHOWN = 4


def tail_problem(answering: Answering, outputs: Logits) -> str | None:
    """Why the task's tail does not give its `answers` of outputs `(n, outputs)`, all and one alone; None when it does.

    That is what differs, or why the tail is no ONNX.
    """
    task, name = answering.task, answering.form.output
    names = len(task.targets.names)
    ending = Ending(task.tail(answering.calibration), (Output(name, "answers", names),), {})
    try:
        model = ending_model(ending, outputs.shape[1], "batch")
        for given in (outputs, outputs[:1]):
            if problem := _different(answering, given, results_of(model, name, given)):
                return problem
    except ValueError as error:
        return str(error)
    return None


def _different(answering: Answering, outputs: Logits, found: NDArray[np.float32]) -> str | None:
    expected = answering.answers(outputs)
    shape = (len(outputs), len(answering.task.targets.names))
    if expected.shape != shape or found.shape != shape:
        return f"answers() gives {expected.shape}, tail() {found.shape}; of {len(outputs)} images both are {shape}"
    units, wanted = (answering.in_units(answers) for answers in (found, expected))
    deltas = np.abs(units - wanted).max(axis=1) / max(1.0, float(np.abs(wanted).max()))
    worst = int(np.nan_to_num(deltas, nan=np.inf).argmax())
    if deltas[worst] <= TOLERANCE:
        return None
    by = f"they differ, calibrated by a temperature of {answering.calibration.temperature:.4g}"
    says = f"of outputs {_shown(outputs[worst])} tail() makes {_shown(found[worst])}"
    return f"{by}: {says}, answers() {_shown(expected[worst])}"


def _shown(row: NDArray[np.float32]) -> str:
    """The first numbers of a row."""
    more = ", ..." if len(row) > _SHOWN else ""
    return f"({', '.join(f'{number:.4g}' for number in row[:_SHOWN])}{more})"
