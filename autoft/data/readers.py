"""`read_labelled`: the listing of whatever holds labelled images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from autoft.data.folder import ImageFolderReader
from autoft.data.manifest import ManifestReader
from autoft.data.walk import reading
from autoft.errors import DataError
from autoft.system.files import as_path, as_text
from autoft.system.parallel import Check, never_stop
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, DatasetInfo, Listing

MANIFESTS: Final = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
"""File name extensions of manifests, in lower case."""

METADATA: Final = frozenset(f"metadata{kind}" for kind in MANIFESTS)
"""Names, in small letters, of manifests that stand for the folder they lie in, as Hugging Face has them."""


def read_labelled(path: Path, check: Check = never_stop) -> Listing:
    """The labelled images of a folder of class folders, or of a manifest, which may lie in the folder as its metadata.

    `check` may raise to stop. Raises `DataError` for any other path, and when something is wrong with what lies there.
    """
    source = path.expanduser()
    if source.is_dir():
        metadata = metadata_of(source)
        return _by_metadata(metadata, check) if metadata else ImageFolderReader(check).read(source)
    if source.suffix.lower() in MANIFESTS and source.is_file():
        return ManifestReader(check).read(source)
    what = f"is neither a folder nor a {', '.join(sorted(MANIFESTS))} file" if source.exists() else "does not exist"
    raise DataError(f"{path} {what}; give the folder that holds the class folders, or a manifest of images and labels")


def metadata_of(folder: Path) -> Path | None:
    """The manifest that stands for a folder, if there is one.

    Raises `DataError` for several, and for one that cannot be read or is no manifest although it names images.
    """
    try:
        found = [path for path in sorted(folder.iterdir()) if path.name.casefold() in METADATA and path.is_file()]
    except OSError:  # which whoever lists the folder will say
        return None
    found = [path for path in found if ManifestReader.names_images(path)]
    if len(found) > 1:
        raise DataError(f"{folder} holds {found[0].name} and {found[1].name}, which both name images; keep one")
    return found[0] if found else None


def _by_metadata(metadata: Path, check: Check) -> Listing:
    """What the manifest lists, with a line on images in its folder that it does not name."""
    listing = ManifestReader(check).read(metadata)
    named = {entry.path for entry in listing.entries} | {problem.path for problem in listing.problems}
    with reading(metadata.parent, check) as walk:
        others = [path for path in map(as_text, walk.gathered(walk.top).images) if path not in named]
    unnamed = f"{counted(len(others), 'image')} that {metadata.name} does not name"
    remark = f"images and labels are those of {metadata.name} there"
    return replace(listing, remarks=(remark,), left_alone=tuple(DataProblem(path, unnamed) for path in others[:1]))


def data_folder(place: Path, found: Listing | DatasetInfo, images: Iterable[str]) -> Path | None:
    """The outermost folder of the user's data that the resolved `place` is, or lies in; None outside of it.

    That is the folder of class folders; of a manifest, whose own folder may hold anything, each that holds one of its
    `images`, paths below the root.
    """
    root = as_path(found.root)
    holding = {image.rpartition("/")[0] for image in images} if found.manifest else {""}
    folders = {(root / as_path(folder)).resolve() for folder in holding}
    return next((folder for folder in (*reversed(place.parents), place) if folder in folders), None)
