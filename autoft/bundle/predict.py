"""`predict`: what a bundle's model.onnx says about image files. Runs without torch."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from autoft.bundle.onnx_runtime import PixelModel
from autoft.bundle.place import bundle_of, holds_bundle
from autoft.data.manifest import ManifestReader
from autoft.data.readers import MANIFESTS
from autoft.data.walk import is_data_folder, is_hidden, suffix_of
from autoft.errors import AutoftError, DataError, RunFolderError, UnreadableImage, UserError
from autoft.media.image.decode import PHOTOS_OF_PHONES, Pixels, decode, readable_extensions
from autoft.store.whereabouts import STUDY, meant
from autoft.system.files import as_text, sha256
from autoft.system.natural import natural_key
from autoft.system.parallel import ordered_map
from autoft.tasks.forms.base import Answers
from autoft.values.bundle import MANIFEST, MODEL, Manifest
from autoft.values.codec import decode as decode_json
from autoft.values.dataset import ValueRange
from autoft.values.prediction import Prediction
from autoft.values.summary import Summary

_DECODERS: Final = 4


def predict(model: Path, inputs: Sequence[str]) -> Iterator[Prediction]:
    """One prediction an image, in order: of files, of folders with all below them, of manifests, of glob patterns.

    `model` is a run folder, a bundle or its model.onnx; see `find_model`. Raises `UserError` at once when it is none of
    these or has been changed, and `DataError` at the end when not one image could be read.
    """
    return predictions(open_model(model), inputs)


def open_model(path: Path) -> PixelModel:
    """The model.onnx that a path leads to, as `find_model` does. Raises as it does."""
    return PixelModel(find_model(path))


def find_bundle(path: Path) -> Path:
    """The bundle that a path leads to: a run folder (as its summary.json says), the bundle, or its model.onnx.

    Raises `UserError` when it leads to none, or to one that is gone.
    """
    wanted = f"give a run folder, a bundle or its {MODEL}"
    if path.name == MODEL and holds_bundle(path.parent):
        return path.parent
    if holds_bundle(path):
        return path
    if (path / "summary.json").is_file():
        return bundle_of(path, _summary(path / "summary.json"))
    if (path / "study.json").is_file():
        raise RunFolderError(f"the run in {shlex.quote(str(path))} has exported no model yet: {_ways_to_a_model(path)}")
    if not path.exists():
        if (path.parent / "summary.json").is_file():
            bundle_of(path.parent, _summary(path.parent / "summary.json"))
            if holds_bundle(path):  # a kill had left it half replaced
                return path
        raise UserError(f"there is no {path}; {meant(path) or wanted}")
    raise UserError(f"{path} is no bundle: there is no {MANIFEST} in it; {meant(path) or wanted}")


def _ways_to_a_model(path: Path) -> str:
    """What to do about a run that has exported none."""
    from autoft.study.latency import beyond_the_limit
    from autoft.study.run import Run

    name = shlex.quote(str(path))
    with suppress(AutoftError):  # what ails the run, the command says that goes on with it
        run = Run.open(path)
        ledger = run.ledger()
        if ledger.barred and ledger.ranking() and not ledger.exportable():
            return f"all that it has is above its --max-latency; {beyond_the_limit(run)}"
    return f"`autoft resume {name}` goes on with it, and `autoft export {name}` writes the best so far"


def find_model(path: Path) -> Path:
    """The model.onnx that a path leads to, as `find_bundle` does; any other file is taken for one.

    Raises `UserError` when there is none, or when it is not the one that the bundle's manifest speaks of.
    """
    alone = path.is_file() and not (path.name == MODEL and holds_bundle(path.parent))
    return path if alone else _unchanged(find_bundle(path))


def searched_on(path: Path) -> Path | None:
    """The run whose model a path leads to, if it was searched on since, and its best may be another by now.

    None where that is not so, and where no run can tell, as of a bundle that was copied. Raises nothing for a path that
    `find_model` takes.
    """
    place = path.resolve()
    place = place.parent if place.is_file() else place
    folder = next((one for one in (place, place.parent) if (one / STUDY).is_file()), None)
    if folder is None:
        return None
    from autoft.study.run import Run  # costs a tenth of a second, and most models are not in a run

    with suppress(AutoftError):  # what ails the run is no matter of its model
        run = Run.open(folder)
        summary = run.summary()
        if summary and place in (folder, (folder / summary.model).parent) and not run.concluded(run.ledger()):
            return folder
    return None


def _unchanged(bundle: Path) -> Path:
    """The bundle's model.onnx, if it is the one that the manifest speaks of."""
    model, manifest = bundle / MODEL, bundle / MANIFEST
    again = "copy the bundle again, or export it again"
    try:
        promised = decode_json(Manifest, manifest.read_text(encoding="utf-8")).files[MODEL].sha256
        found = sha256(model)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; {again}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{manifest} is damaged: {error}; {again}") from error
    if found != promised:
        raise UserError(f"{model} has changed: its SHA-256 is not the one in {MANIFEST}; {again}")
    return model


def _summary(file: Path) -> Summary:
    try:
        return decode_json(Summary, file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} is damaged: {error}; give the .onnx file itself") from error


# ---------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class _Read:
    """An image file, and its pixels `(height, width, 3)` or why there are none."""

    image: str
    pixels: Pixels | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Answered:
    """An image file, and what the model answers, `(names,)`, or why it does not."""

    image: str
    answers: Answers | None = None
    error: str | None = None


def answered(model: PixelModel, paths: Iterable[Path]) -> Iterator[Answered]:
    """What the model answers to each image file, in order. Raises `DataError` at the end when none could be read."""
    first: _Read | None = None
    readable = 0
    for read in ordered_map(partial(_read, model.preprocess.value_range), paths, _DECODERS):
        first = first or read
        readable += read.pixels is not None
        yield Answered(read.image, None if read.pixels is None else model.answers(read.pixels), read.error)
    if first and not readable:
        raise DataError(f"not one image could be read; {first.image}: {first.error}")


def predictions(model: PixelModel, inputs: Sequence[str]) -> Iterator[Prediction]:
    """One prediction an image, as `predict` gives them. Raises `DataError` at the end when none could be read."""
    one = None
    for one in answered(model, image_files(inputs)):
        if one.answers is None:
            yield Prediction(one.image, error=one.error)
        else:
            yield model.form.prediction(one.image, one.answers, model.facts)
    if one is None:
        raise DataError(
            f"no images in {', '.join(inputs) or 'an empty list'}; name image files, folders, manifests or patterns"
        )


def _read(value_range: ValueRange | None, path: Path) -> _Read:
    try:
        return _Read(as_text(path), decode(path, value_range))
    except UnreadableImage as error:
        return _Read(as_text(path), error=str(error))


def image_files(inputs: Sequence[str]) -> Iterator[Path]:
    """Every file that files, folders, manifests and patterns come to.

    A path that leads nowhere stays, so that it is reported. Raises `DataError` for a manifest that cannot be read.
    """
    for text in inputs:
        path = Path(text)
        found = [path] if path.exists() else [Path(name) for name in _matches(text)] or [path]
        for match in found:
            yield from _images_below(match) if match.is_dir() else _images_in(match)


def _matches(pattern: str) -> Iterable[str]:
    return sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207  Path.glob takes no absolute one


def _images_in(file: Path) -> Sequence[Path]:
    is_manifest = file.suffix.lower() in MANIFESTS and file.is_file()
    return ManifestReader().files(file) if is_manifest else (file,)


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in and below a folder, in natural order, without links to folders and what no search sees."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if is_data_folder(name)), key=natural_key)
        for name in sorted(files, key=natural_key):
            # Photos of phones are answered, with the reason where they cannot be decoded, not left out without a word.
            if not is_hidden(name) and suffix_of(name) in readable_extensions() | PHOTOS_OF_PHONES:
                yield Path(here, name)
