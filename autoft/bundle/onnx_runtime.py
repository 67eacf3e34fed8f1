"""Exported files, run by onnxruntime: `PixelModel` and `CoreModel`. Everything here works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoft.errors import UserError
from autoft.media.image.decode import Pixels
from autoft.tasks.forms.base import AnswerForm, Answers, Model
from autoft.tasks.forms.table import FORMS
from autoft.tasks.statistics import Logits
from autoft.values.bundle import Calibration
from autoft.values.codec import decode
from autoft.values.counts import counted
from autoft.values.dataset import TrainOn
from autoft.values.handoff import Preprocess
from autoft.values.target import Targets

T = TypeVar("T")

Images = NDArray[np.float32]
Optimisations = Literal["all", "none"]

SCHEMA = 1
_FATAL_ONLY: Final = 4


class ExportedModel:
    """What both files have: an open session, and in their metadata `targets` and the `preprocess` recipe.

    `threads` is the number of CPU threads for one call; 0 takes one a core. Raises `UserError` for a file that is
    missing, damaged or not made by autoft.
    """

    targets: Targets
    preprocess: Preprocess

    def __init__(self, path: Path, threads: int = 0, optimisations: Optimisations = "all") -> None:
        self.path = path
        self._session = _open(path, threads, optimisations)
        self._metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        schema = self._fact("autoft.schema", int)
        if schema != SCHEMA:
            raise UserError(f"{path} is of schema {schema}, this autoft reads {SCHEMA}; use the autoft that wrote it")
        self.targets = self._targets()
        self.preprocess = self._fact("autoft.preprocess", Preprocess)

    @property
    def train_on(self) -> TrainOn:
        """The splits that it was trained on; an older file says nothing of it, and had the training split alone."""
        trial = self._fact("autoft.trial", dict[str, Any]) if "autoft.trial" in self._metadata else {}
        return "train+val" if trial.get("train_on") == "train+val" else "train"

    @property
    def metric(self) -> str:
        """The metric that it was chosen by; "" where the file says nothing of it."""
        told = self._fact("autoft.validation", dict[str, Any]) if "autoft.validation" in self._metadata else {}
        return next((name for name in told if name != "of_trial"), "")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the answers are about: the names of the targets."""
        return self.targets.names

    def _targets(self) -> Targets:
        """A file that says nothing of them is an older one, which has one class an image."""
        labels = self._fact("autoft.labels", tuple[str, ...])
        if "autoft.targets" not in self._metadata:
            return Targets("single_label", "one_of", labels)
        targets = self._fact("autoft.targets", Targets)
        if targets.names != labels:
            raise UserError(f"{self.path} is damaged: autoft.labels and autoft.targets in its metadata differ")
        return targets

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
        self.outputs = self._width(found[-1][2])
        promised = [("images", [3, size, size]), ("logits", [self.outputs])]
        if found != [(name, "tensor(float)", shape) for name, shape in promised]:
            raise UserError(f"{path} is damaged: its network does not fit its labels and preprocessing")

    def _width(self, sizes: list[Any]) -> int:
        """How many numbers the network gives for an image: one a name, unless its task is a plugin's."""
        names = len(self.labels)
        own = self.targets.task == FORMS[self.targets.form].task().name
        return names if own or len(sizes) != 1 or not isinstance(sizes[0], int) else sizes[0]

    def logits(self, images: Images, batch_size: int = 32) -> Logits:
        """Logits `(n, outputs)` of normalised images `(n, 3, size, size)`, `batch_size` at a time.

        Raises `UserError` when the network cannot run on a batch of that size.
        """
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        parts = [self._run(["logits"], {"images": batch})[0] for batch in batches]
        return np.concatenate([np.zeros((0, self.outputs), np.float32), *parts])


class PixelModel(ExportedModel):
    """`model.onnx`: pixels of any size to answers, with the `calibration` inside."""

    calibration: Calibration

    def __init__(self, path: Path, threads: int = 0, optimisations: Optimisations = "all") -> None:
        super().__init__(path, threads, optimisations)
        inputs = [(value.name, value.type, len(value.shape)) for value in self._session.get_inputs()]
        self._batched = inputs == [("image", "tensor(uint8)", 4)]
        if not self._batched and inputs != [("image", "tensor(uint8)", 3)]:
            raise UserError(f"{path} takes no raw pixels; give model.onnx or the folder it lies in")
        self.calibration = self._calibration()
        names = {value.name for value in self._session.get_outputs()}
        if self.form.output not in names:
            raise UserError(f"{path} is damaged: it gives no {self.form.output}, but {', '.join(sorted(names))}")

    @property
    def form(self) -> AnswerForm:
        """What kind of answers these are."""
        return FORMS[self.targets.form]

    @property
    def facts(self) -> Model:
        """What the file says its answers are about."""
        return Model(self.targets, self.calibration, self.metric)

    def _calibration(self) -> Calibration:
        """An older file has a temperature, and no word of how it was found."""
        if "autoft.calibration" not in self._metadata:
            return Calibration(self._fact("autoft.temperature", float), 0, None, None, "")
        return self._fact("autoft.calibration", Calibration)

    def answers(self, pixels: Pixels) -> Answers:
        """What the model answers, `(names,)`, for one RGB image `(height, width, 3)` uint8.

        Raises `UserError` for other pixels.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise UserError(f"{self.path} takes uint8 RGB pixels [height, width, 3], at least one; got {found}")
        image = pixels[None] if self._batched else pixels
        (result,) = self._run([self.form.output], {"image": image})
        answers = np.asarray(result, np.float32).ravel()
        if len(answers) != len(self.labels):
            answered = f"{counted(len(answers), 'answer')} for {counted(len(self.labels), 'name')}"
            raise UserError(f"{self.path} is damaged: it gives {answered}")
        return answers


def results_of(model: bytes, name: str, outputs: Logits) -> NDArray[Any]:
    """The result `name` of an ending, `(n, ...)`, of a network's outputs `(n, outputs)`.

    Raises `ValueError` when it does not run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([name], {"outputs": outputs})[0])
    except Exception as error:  # onnxruntime's errors share no base class
        raise ValueError(f"onnxruntime cannot run it: {_one_line(error)}") from error


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
