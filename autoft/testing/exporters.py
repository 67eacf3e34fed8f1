"""Checks of an exporter."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import SkipTest

from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.errors import UserError
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.parts.base import Exporter
from autoft.study.study import CORE_EXPORTER
from autoft.tasks.forms.table import answering
from autoft.tasks.multi_label import MultiLabel
from autoft.testing.base import Conformance
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.bundle import CORE, MODEL
from autoft.values.handoff import Artifact, Handoff, Preprocess
from autoft.values.target import Targets
from autoft.values.trial import Trial

if TYPE_CHECKING:
    from torch import nn

SIZE, CLASSES = 32, 3


def handoff() -> Handoff:
    """What goes with the tiny network: three labels, of which an image may have any, and 32 pixels."""
    spec = InputSpec(SIZE)
    backbone = Backbone("zoo/tiny", 500, spec, "apache-2.0")
    trial = Trial(4, backbone.name, "full", SIZE, {"learning_rate": 1e-3}, 0)
    recipe = Preprocess(SIZE, spec.mean, spec.std, spec.interpolation)
    targets = Targets(MultiLabel.name, MultiLabel.form, ("ant", "bee", "Ärger, with comma"))
    return Handoff(targets, recipe, backbone, trial, "map", 0.9, "0" * 64)


def tiny_classifier() -> nn.Module:
    """Convolution, BatchNorm, pooling, linear: images `(batch, 3, 32, 32)` to logits `(batch, 3)`."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(8, CLASSES)).eval()


class ExporterConformance(Conformance[Exporter]):
    """Checks of an `Exporter`, with a tiny classifier: of the first file it yields, the one that a search would take.

    Where a search compares nothing, as in a file that is no ONNX or has another interface, the checks of that skip.
    """

    @contextmanager
    def exported(self) -> Iterator[tuple[nn.Module, Artifact, Path]]:
        """The classifier, what export() said, and the file it wrote."""
        with tempfile.TemporaryDirectory(prefix="autoft-conformance-") as name:
            folder = Path(name) / "export"
            folder.mkdir()
            classifier = tiny_classifier()
            artifact = next(self.part().export(classifier, handoff(), folder), None)
            assert artifact is not None, "export() yielded no Artifact"
            file = folder / Path(artifact.path).name
            assert file.is_file(), f"export() says it wrote {artifact.path}, but {file.name} is not in the folder"
            yield classifier, artifact, file

    def test_size_and_hash_are_those_of_the_file(self) -> None:
        """A stranger checks the file by them."""
        with self.exported() as (_, artifact, file):
            assert artifact.size == file.stat().st_size, "`size` is the number of bytes in the file"
            assert artifact.sha256 == hashlib.sha256(file.read_bytes()).hexdigest(), "`sha256` must be the file's"

    def test_the_file_has_its_place_in_the_bundle(self) -> None:
        """By its name, and by a path that survives moving the run folder."""
        with self.exported() as (_, artifact, file):
            assert not Path(artifact.path).is_absolute(), f"`path` is relative to the run folder: {artifact.path}"
            is_core = self.part().name == CORE_EXPORTER
            assert file.name == CORE or not is_core, f"the core is called {CORE}, not {file.name}"
            assert artifact.format and artifact.exporter, "say `format` and `exporter`"

    def test_no_local_path_is_inside(self) -> None:
        """The file goes to strangers: no folder or user name of this machine."""
        with self.exported() as (_, _artifact, file):
            content = file.read_bytes()
            private = (str(file.parent.parent), str(Path.home()) + "/", str(Path.cwd()) + "/")
            found = [path for path in private if len(path) > 2 and path.encode() in content]
            assert not found, f"the file holds local paths: {found}; strip debug information and metadata"

    def test_the_classifier_is_left_as_it_was(self) -> None:
        """It is scored after the export."""
        import torch

        with self.exported() as (classifier, _, _file):
            fresh = tiny_classifier().state_dict()
            same = all(torch.equal(tensor, fresh[name]) for name, tensor in classifier.state_dict().items())
            assert same and not classifier.training, "export() must not change the classifier or its mode"

    def test_onnx_agrees_with_torch_at_any_batch(self) -> None:
        """In onnxruntime, at batch 1 and 3, within 1e-4 of the largest logit."""
        import torch

        with self.exported() as (classifier, artifact, file):
            import onnxruntime

            if reason := _not_compared(file):
                raise SkipTest(f"{artifact.format} is not compared with torch: {reason}")

            session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
            for batch in (1, 3):
                images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
                with torch.inference_mode():
                    logits = classifier(images)
                got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
                assert got.shape == logits.shape, f"batch {batch}: logits {tuple(got.shape)}; is the batch dynamic?"
                worst, scale = float((got - logits).abs().max()), float(logits.abs().max())
                assert worst <= 1e-4 * scale, f"batch {batch}: logits differ by {worst:.2g} at a scale of {scale:.2g}"

    def test_raw_pixels_can_go_in_front(self) -> None:
        """model.onnx is made of the file, with targets and recipe in its metadata."""
        import numpy as np

        with self.exported() as (_, _artifact, file):
            if file.name != CORE:
                raise SkipTest(f"{file.name} is not {CORE}, so nothing is made of it")
            core, pixels = CoreModel(file), file.with_name(MODEL)
            ours = handoff()
            assert core.targets == ours.targets, "autoft.labels and autoft.targets in the metadata must be ours"
            assert core.preprocess == ours.preprocess, "autoft.preprocess in the metadata must be ours"
            ending = answering(MultiLabel().on(core.targets)).ending()
            write_raw_pixel_model(file, pixels, core.preprocess, ending, "image")
            answers = PixelModel(pixels).answers(np.zeros((9, 7, 3), np.uint8))
            assert ((answers > 0) & (answers < 1)).all(), f"of a black image it gives probabilities of {answers}"

    def test_exporting_twice_works(self) -> None:
        """`autoft export` may be called again; the older file is replaced."""
        with self.exported() as (classifier, artifact, file):
            again = next(self.part().export(classifier, handoff(), file.parent), None)
            assert again is not None and again.path == artifact.path, "a second export must write the same path"


def _not_compared(file: Path) -> str | None:
    """Why a search would not compare the file with torch; None for what it does, as the core always."""
    if file.name == CORE:
        return None
    if file.suffix != ".onnx":
        return f"{file.name} is not run here"
    try:
        CoreModel(file)
    except UserError as problem:
        return str(problem).replace(str(file), file.name)
    return None
