"""`read_labelled`: the listing of whatever holds labelled images."""

from __future__ import annotations

from pathlib import Path

from autoft.data.folder import ImageFolderReader
from autoft.system.parallel import Check, never_stop
from autoft.values.dataset import Listing


def read_labelled(path: Path, check: Check = never_stop) -> Listing:
    """The labelled images of a folder. Raises `DataError`."""
    return ImageFolderReader(check).read(path)
