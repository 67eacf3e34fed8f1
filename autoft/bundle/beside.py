"""What further exporters write beside the model: compared as far as it can be, and left out when it does not agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from autoft.bundle.onnx_runtime import CoreModel
from autoft.bundle.order import Order
from autoft.bundle.parity import Setting, core_parity, core_refusal
from autoft.errors import UserError
from autoft.tasks.forms.base import Answering
from autoft.values.bundle import BESIDE, Beside
from autoft.values.handoff import Artifact

_SETTING: Final = Setting(8, "all")


def write_beside(order: Order, folder: Path, answering: Answering) -> Iterator[Beside]:
    """Have each further exporter of the order write into a folder of its own below `folder`; what came of each.

    One that fails, or whose files are all refused, costs its own folder and no more. Raises `OSError` when the disk is
    full.
    """
    for name, export in order.beside.items():
        place = folder / BESIDE / name
        place.mkdir(parents=True)
        found = _written(order, name, export(place), place, answering)
        if found.path:
            found = replace(found, path=(place / found.path).relative_to(folder).as_posix())
        else:
            shutil.rmtree(place)
        yield found


def _written(order: Order, name: str, exports: Iterator[Artifact], place: Path, answering: Answering) -> Beside:
    """The first artifact that is not refused; its path is relative to `place`, and empty when there is none."""
    causes: list[str] = []
    try:
        for artifact in exports:
            found = _compared(order, name, artifact, place / Path(artifact.path).name, answering)
            if found.path:
                return found
            causes.append(found.note)
    except OSError:
        raise
    except Exception as error:  # a plugin's own
        causes.append(" ".join(f"{type(error).__name__}: {error}".split()))
    return Beside(name, "", "", None, "; ".join(causes) or "it wrote nothing")


def _compared(order: Order, name: str, artifact: Artifact, file: Path, answering: Answering) -> Beside:
    if not file.exists():
        return Beside(name, "", artifact.format, None, f"{file.name} is not where it was said to be")
    if file.suffix != ".onnx":
        return Beside(name, file.name, artifact.format, None, f"not compared: {artifact.format} is not run here")
    compared = order.compared
    try:
        parity = core_parity(CoreModel(file), _SETTING, compared.images, compared.logits, compared.names, answering)
    except UserError as problem:  # it has another interface, which may be what it is for
        cause = str(problem).replace(str(file), file.name)
        return Beside(name, file.name, artifact.format, None, f"not compared: {cause}")
    if reason := core_refusal(parity):
        return Beside(name, "", artifact.format, parity, reason)
    return Beside(name, file.name, artifact.format, parity, "")
