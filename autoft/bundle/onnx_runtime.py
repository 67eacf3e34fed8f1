"""Exported files, run by onnxruntime: `PixelModel` and `CoreModel`. Everything here works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoft.errors import UserError
from autoft.media.image.decode import Pixels
from autoft.tasks.statistics import Logits, Probabilities
from autoft.values.codec import decode
from autoft.values.handoff import Preprocess

T = TypeVar("T")

Images = NDArray[np.float32]
Optimisations = Literal["all", "none"]

SCHEMA = 1
_FATAL_ONLY: Final = 4


class ExportedModel:
    """What both files have: an open session, and in their metadata `labels` and the `preprocess` recipe.

    `threads` is the number of CPU threads for one call; 0 takes one a core. Raises `UserError` for a file that is
    missing, damaged or not made by autoft.
    """

    labels: tuple[str, ...]
    preprocess: Preprocess

    def __init__(self, path: Path, threads: int = 0, optimisations: Optimisations = "all") -> None:
        self.path = path
        self._session = _open(path, threads, optimisations)
        self._metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        schema = self._fact("autoft.schema", int)
        if schema != SCHEMA:
            raise UserError(f"{path} is of schema {schema}, this autoft reads {SCHEMA}; use the autoft that wrote it")
        self.labels = self._fact("autoft.labels", tuple[str, ...])
        self.preprocess = self._fact("autoft.preprocess", Preprocess)

    def _fact(self, key: str, cls: type[T]) -> T:
        if key not in self._metadata:
            raise UserError(f"{self.path} was not exported by autoft: its metadata has no {key!r}")
        try:
            return decode(cls, self._metadata[key])
        except ValueError as error:
            raise UserError(f"{self.path} is damaged: {key} in its metadata is {error}") from error

    def _run(self, outputs: list[str], inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        try:
            return list(self._session.run(outputs, inputs))
        except Exception as error:  # onnxruntime's errors share no base class
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise UserError(f"{self.path} does not run on {shapes}: {_one_line(error)}") from error


class CoreModel(ExportedModel):
    """`model.core.onnx`: normalised images to logits."""

    def __init__(self, path: Path, threads: int = 0, optimisations: Optimisations = "all") -> None:
        super().__init__(path, threads, optimisations)
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        size = self.preprocess.size
        found = [(value.name, value.type, value.shape[1:]) for value in values]
        promised = [("images", [3, size, size]), ("logits", [len(self.labels)])]
        if found != [(name, "tensor(float)", shape) for name, shape in promised]:
            raise UserError(f"{path} is damaged: its network does not fit its labels and preprocessing")

    def logits(self, images: Images, batch_size: int = 32) -> Logits:
        """Logits `(n, classes)` of normalised images `(n, 3, size, size)`, `batch_size` at a time.

        Raises `UserError` when the network cannot run on a batch of that size.
        """
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        parts = [self._run(["logits"], {"images": batch})[0] for batch in batches]
        return np.concatenate([np.zeros((0, len(self.labels)), np.float32), *parts])


class PixelModel(ExportedModel):
    """`model.onnx`: pixels of any size to probabilities, at the `temperature` inside."""

    temperature: float

    def __init__(self, path: Path, threads: int = 0, optimisations: Optimisations = "all") -> None:
        super().__init__(path, threads, optimisations)
        inputs = [(value.name, value.type, len(value.shape)) for value in self._session.get_inputs()]
        self._batched = inputs == [("image", "tensor(uint8)", 4)]
        if not self._batched and inputs != [("image", "tensor(uint8)", 3)]:
            raise UserError(f"{path} takes no raw pixels; give model.onnx or the folder it lies in")
        self.temperature = self._fact("autoft.temperature", float)

    def probabilities(self, pixels: Pixels) -> Probabilities:
        """Probabilities `(classes,)` of one RGB image `(height, width, 3)` uint8. Raises `UserError` for others."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise UserError(f"{self.path} takes uint8 RGB pixels [height, width, 3], at least one; got {found}")
        image = pixels[None] if self._batched else pixels
        (result,) = self._run(["probabilities"], {"image": image})
        return np.asarray(result, np.float32).reshape(len(self.labels))


def _open(path: Path, threads: int, optimisations: Optimisations) -> Any:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"there is no model {path}; give a run folder, an export folder or an .onnx file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ONLY  # what goes wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # half the time on a busy machine
    if optimisations == "none":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise UserError(f"{path} is no ONNX file that onnxruntime can load: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
