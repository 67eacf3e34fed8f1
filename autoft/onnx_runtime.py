"""`OnnxClassifier`: an exported file, run by onnxruntime. Everything here works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoft.codec import decode
from autoft.errors import UserError
from autoft.types import Preprocess

T = TypeVar("T")

Images = NDArray[np.float32]
Logits = NDArray[np.float32]

SCHEMA = 1
_ERRORS_ONLY = 3


class OnnxClassifier:
    """A classifier in an ONNX file that autoft exported: its `labels`, its `preprocess` recipe, its logits.

    `threads` is the number of CPU threads for one image batch; 0 takes one a core. Raises `UserError` for a file that
    is missing, damaged or not made by autoft.
    """

    labels: tuple[str, ...]
    preprocess: Preprocess

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.path = path
        self._session = _open(path, threads)
        metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        schema = _value(path, metadata, "autoft.schema", int)
        if schema != SCHEMA:
            raise UserError(f"{path} is of schema {schema}, this autoft reads {SCHEMA}; use the autoft that wrote it")
        self.labels = _value(path, metadata, "autoft.labels", tuple[str, ...])
        self.preprocess = _value(path, metadata, "autoft.preprocess", Preprocess)
        self._require_interface()

    def logits(self, images: Images, batch_size: int = 32) -> Logits:
        """Logits `(n, classes)` of normalised images `(n, 3, size, size)`, `batch_size` at a time.

        Raises `UserError` when the network cannot run on a batch of that size.
        """
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        return np.concatenate([np.zeros((0, len(self.labels)), np.float32), *map(self._run, batches)])

    def probabilities(self, images: Images, batch_size: int = 32) -> Logits:
        """Softmax of `logits`, `(n, classes)`; every row sums to 1."""
        return softmax(self.logits(images, batch_size))

    def _run(self, images: Images) -> Logits:
        try:
            (logits,) = self._session.run(["logits"], {"images": images})
        except Exception as error:  # onnxruntime's errors share no base class
            raise UserError(f"{self.path} does not run on {len(images)} images: {_one_line(error)}") from error
        result: Logits = logits
        return result

    def _require_interface(self) -> None:
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        size = self.preprocess.size
        found = [(value.name, value.type, value.shape[1:]) for value in values]
        promised = [("images", [3, size, size]), ("logits", [len(self.labels)])]
        if found != [(name, "tensor(float)", shape) for name, shape in promised]:
            raise UserError(f"{self.path} is damaged: its network does not fit its labels and preprocessing")


def softmax(logits: Logits) -> Logits:
    """Probabilities of logits, over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def _open(path: Path, threads: int) -> Any:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"there is no model {path}; give a run folder, an export folder or an .onnx file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise UserError(f"{path} is no ONNX file that onnxruntime can load: {_one_line(error)}") from error


def _value(path: Path, metadata: Mapping[str, str], key: str, cls: type[T]) -> T:
    if key not in metadata:
        raise UserError(f"{path} was not exported by autoft: its metadata has no {key!r}")
    try:
        return decode(cls, metadata[key])
    except ValueError as error:
        raise UserError(f"{path} is damaged: {key} in its metadata is {error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
