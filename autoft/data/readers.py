"""`read_labelled`: the listing of whatever holds labelled images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from autoft.data.folder import ImageFolderReader
from autoft.data.manifest import ManifestReader
from autoft.errors import DataError
from autoft.system.files import as_path
from autoft.system.parallel import Check, never_stop
from autoft.values.dataset import DatasetInfo, Listing

MANIFESTS: Final = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
"""File name extensions of manifests, in lower case."""

METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Manifests that stand for the folder they lie in, as Hugging Face's image folders have them."""


def read_labelled(path: Path, check: Check = never_stop) -> Listing:
    """The labelled images of a folder of class folders, or of a manifest, which may lie in the folder as its metadata.

    `check` may raise to stop.

    Raises `DataError` for any other path, and when there is something wrong with what lies there.
    """
    source = path.expanduser()
    if source.is_dir():
        if metadata := _metadata(source):
            remark = f"images and labels are those of {metadata.name} there"
            return replace(ManifestReader(check).read(metadata), remarks=(remark,))
        return ImageFolderReader(check).read(source)
    if source.suffix.lower() in MANIFESTS and source.is_file():
        return ManifestReader(check).read(source)
    what = f"is neither a folder nor a {', '.join(sorted(MANIFESTS))} file" if source.exists() else "does not exist"
    raise DataError(f"{path} {what}; give the folder that holds the class folders, or a manifest of images and labels")


def _metadata(folder: Path) -> Path | None:
    """The manifest that stands for a folder, if there is one."""
    return next((path for name in METADATA if (path := folder / name).is_file() and ManifestReader.knows(path)), None)


def data_folder(place: Path, found: Listing | DatasetInfo, images: Iterable[str]) -> Path | None:
    """The outermost folder of the user's data that the resolved `place` is, or lies in; None outside of it.

    That is the folder of class folders; of a manifest, whose own folder may hold anything, each that holds one of its
    `images`, paths below the root.
    """
    root = as_path(found.root)
    holding = {image.rpartition("/")[0] for image in images} if found.manifest else {""}
    folders = {(root / as_path(folder)).resolve() for folder in holding}
    return next((folder for folder in (*reversed(place.parents), place) if folder in folders), None)
