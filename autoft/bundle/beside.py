"""What further exporters write beside the model: compared as far as it can be, and left out when it does not agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from autoft.bundle.onnx_runtime import CoreModel
from autoft.bundle.order import Order
from autoft.bundle.parity import Setting, core_parity, core_refusal
from autoft.errors import PluginError, UserError
from autoft.system import faults
from autoft.system.signals import TimeOver, time_limit
from autoft.tasks.forms.base import Answering
from autoft.values.bundle import BESIDE, Beside
from autoft.values.handoff import Artifact

_SETTING: Final = Setting(8, "all")


def write_beside(order: Order, folder: Path, answering: Answering) -> Iterator[Beside]:
    """Have each further exporter of the order write into a folder of its own below `folder`; what came of each.

    One that fails, for which there is no time, or whose files are all refused, costs its own folder and no more; why
    says nothing of where its plugin lies. Raises `OSError` when the disk is full.
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
    with suppress(OSError):  # something is in it
        (folder / BESIDE).rmdir()


def _written(order: Order, name: str, exports: Iterator[Artifact], place: Path, answering: Answering) -> Beside:
    """The first artifact that is not refused; its path is relative to `place`, and empty when there is none."""
    causes: list[str] = []
    try:
        if (left := order.seconds_left()) <= 0:
            raise TimeOver
        with time_limit(left):
            for artifact in exports:
                found = _compared(order, name, artifact, place, answering)
                if found.path:
                    return found
                causes.append(found.note)
    except TimeOver:
        causes.append("there was no time for it; autoft export writes it")
    except OSError:
        raise
    except Exception as error:  # a plugin's own, perhaps in a line that says where plugin and traceback are
        causes.append(faults.cause(_raised(error)))
    causes = [cause.replace(f"{place}/", "") for cause in causes]
    return Beside(name, "", "", None, "; ".join(causes) or "it wrote nothing")


def _raised(error: Exception) -> BaseException:
    """What a plugin raised, where the line that blames it for that says where the plugin and its traceback are."""
    raised = error.__cause__ if isinstance(error, PluginError) else None
    return raised if raised and faults.cause(raised) in str(error) else error


def _compared(order: Order, name: str, artifact: Artifact, place: Path, answering: Answering) -> Beside:
    file = place / Path(artifact.path).name
    if not file.is_file():
        wanted = "Artifact.path names a file in the folder that export() is given"
        called = Path(artifact.path).name or "a file without a name"
        return Beside(name, "", artifact.format, None, f"{called} is not there; {wanted}")
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
