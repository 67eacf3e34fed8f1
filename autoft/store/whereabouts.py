"""Where a run is that was meant: what to say of a path that is none."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

STUDY: Final = "study.json"
"""What makes a folder a run."""
_SHOWN: Final = 3
_PLACE: Final = "runs"


def meant(path: Path) -> str:
    """Which run a path that leads to none may mean, as the end of a line; empty where none is near. Raises nothing.

    That is the run in which it lies; up to three of those in it, the latest first; or the one beside it that is called
    most like it, or after it, as those of data are.
    """
    with suppress(OSError, RuntimeError):  # a folder without permission; links in a circle, before Python 3.13
        for folder in path.resolve().parents:
            if (folder / STUDY).is_file():
                return f"it lies in a run: give {_as_given(folder, path)}"
    if inside := _runs_in(path):
        more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
        return f"it contains {', '.join(map(str, inside[:_SHOWN]))}{more}: give one of them"
    beside = {run.name: run for run in reversed(_runs_in(path.parent))}
    after = [name for name in reversed(beside) if name.startswith(f"{path.name}-")]
    near = difflib.get_close_matches(path.name, beside, n=1) or after
    return f"did you mean {beside[near[0]]}?" if near else ""


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, or where a search begun in it puts them, the latest first."""
    found: dict[Path, float] = {}
    with suppress(OSError):
        for place in (folder, folder / _PLACE):
            found |= {study.parent: study.stat().st_mtime for study in place.glob(f"*/{STUDY}")}
    return sorted(found, key=lambda run: (-found[run], run.name))


def _as_given(folder: Path, path: Path) -> Path:
    """The folder in the way in which the path in it was written, absolute or not."""
    return folder if path.is_absolute() else Path(os.path.relpath(folder))
