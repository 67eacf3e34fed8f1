"""Sources of weights as they may be shown to a stranger: where they lie on this machine is nobody's business."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def without_place(source: str) -> str:
    """A source that is a path on this machine keeps only its last part; a URL or a package's name stays."""
    path = source.removeprefix("file:")
    if path != source or path.startswith("~"):
        return _last_part(path)
    if any(flavour(path).is_absolute() for flavour in (PurePosixPath, PureWindowsPath)):
        return _last_part(path)
    return source


def _last_part(path: str) -> str:
    """What stands after the last separator of either kind; "" for a bare root."""
    return PureWindowsPath(path).name
