"""LICENSES/: what in a bundle is whose, and under which licence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from autoft.bundle.values import LICENSES, VECTORS
from autoft.types import Backbone

NOTICE: Final = "NOTICE.txt"
TOOL_LICENCE: Final = "apache-2.0"
SHIPPED: Final = (TOOL_LICENCE, "mit", "bsd-3-clause")
"""Licences, as SPDX identifiers in lower case, whose text can go into a bundle."""


def write_licenses(folder: Path, backbone: Backbone) -> None:
    """Write `folder`/LICENSES: NOTICE.txt, and the texts of the licences it names, as far as they are shipped."""
    place = folder / LICENSES
    place.mkdir(parents=True, exist_ok=True)
    for licence in sorted({TOOL_LICENCE, backbone.license} & set(SHIPPED)):
        text = files("autoft.bundle") / "licenses" / f"{licence}.txt"
        (place / f"{licence}.txt").write_bytes(text.read_bytes())
    (place / NOTICE).write_text(_notice(backbone), encoding="utf-8", newline="\n")


def _notice(backbone: Backbone) -> str:
    name, licence, source = map(_one_line, (backbone.name, backbone.license, backbone.source))
    return f"""What this folder holds, and under which licence

Pretrained weights, from which model.onnx and model.core.onnx were made
    name:    {name}
    licence: {licence or "unknown"}
    source:  {source or "not given"}
    {_where_the_text_is(licence)}

The pretraining data
    The images that the pretrained weights were made from have terms of their own. They are not in this folder and
    nothing here says what they are; the source of the weights does, if anything.

What fine-tuning added to the weights, the labels, and the images in {VECTORS}
    They belong to whoever trained this model and to the owners of the images. The licence of the pretrained weights
    goes on applying to what was made from them.

verify.py and examples, written by autoft
    licence: {TOOL_LICENCE}
    Its text is in {TOOL_LICENCE}.txt.
"""


def _where_the_text_is(licence: str) -> str:
    if licence in SHIPPED:
        return (
            f"The text of the licence is in {licence}.txt. The copyright notice of the weights' authors, and a NOTICE\n"
            "    file if they have one, are at the source; keep them with the weights when you pass them on."
        )
    if licence in ("", "unknown"):
        return "Nobody has said under which licence they are. Ask their authors before you pass this folder on."
    return "The text of the licence is not in this folder. Read it at the source before you use or pass on the model."


def _one_line(text: str) -> str:
    return " ".join(text.split())
