from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts.exported import LABELS, SIZE, Tiny, handoff, how
from skimage import data as photos

from autoft import Preprocess, UserError
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.media.image.decode import normalise, preprocess
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.tasks.statistics import softmax
from autoft.values.backbone import Interpolation
from autoft.values.handoff import Layout, View

TEMPERATURE = 1.7
PASS_THROUGH = """
    <ir_version: 8, opset_import: ["" : 18]>
    core (float[batch, 3, {size}, {size}] images) => (float[batch, {n}] logits)
    < int64[2] flat = {{0, -1}} >
    {{ logits = Reshape (images, flat) }}"""


def resizer(folder: Path, recipe: Preprocess) -> onnxruntime.InferenceSession:
    """A model.onnx whose logits are the pixels that reach the network, from 0 to 255."""
    core = onnx.parser.parse_model(PASS_THROUGH.format(size=recipe.size, n=3 * recipe.size**2))
    onnx.save(core, folder / "core.onnx")
    ending = how([str(number) for number in range(3 * recipe.size**2)]).ending()
    write_raw_pixel_model(folder / "core.onnx", folder / "m.onnx", recipe, ending, "image")
    return onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])


def off_by(session: onnxruntime.InferenceSession, image: np.ndarray, recipe: Preprocess) -> np.ndarray:
    (logits,) = session.run(["logits"], {"image": image})
    expected = preprocess(image, recipe).transpose(2, 0, 1)
    return np.abs(logits.reshape(expected.shape) - expected)


def plain_recipe(size: int, how: Interpolation, view: View) -> Preprocess:
    return Preprocess(size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), how, view)


@pytest.fixture(scope="module", params=get_args(View))
def view(request: pytest.FixtureRequest) -> View:
    return request.param


@pytest.fixture(scope="module", params=[("bicubic", 64), ("bilinear", 64), ("bicubic", 37), ("bilinear", 224)])
def resize(request: pytest.FixtureRequest, view: View, tmp_path_factory: pytest.TempPathFactory):
    how, size = request.param
    recipe = plain_recipe(size, how, view)
    session = resizer(tmp_path_factory.mktemp("resize"), recipe)
    return lambda image: off_by(session, image, recipe)


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea", "rocket"])
def test_photos_are_resized_as_pillow_does(resize, name: str) -> None:
    deltas = resize(getattr(photos, name)())
    assert deltas.max() < 1e-3  # the network's input is scaled back here, in float32


@given(height=st.integers(1, 150), width=st.integers(1, 150), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_noise_of_any_size_is_resized_as_pillow_does(resize, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert resize(image).max() <= 1.001


ODD = [(1, 1), (1, 3000), (3000, 2), (1633, 1225), (64, 64), (65, 63), (397, 41), (41, 397), (300, 200)]


@pytest.mark.parametrize("shape", ODD)
def test_odd_shapes_are_resized_as_pillow_does(resize, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert resize(image).max() <= 1.001


@pytest.mark.parametrize("colour", [0, 1, 127, 128, 254, 255])
def test_flat_colours_stay_what_they_are(resize, colour: int) -> None:
    assert resize(np.full((90, 120, 3), colour, np.uint8)).max() < 1e-3


def test_an_image_of_the_right_size_passes_untouched(tmp_path: Path, view: View) -> None:
    image = np.random.default_rng(2).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    session = resizer(tmp_path, recipe := plain_recipe(48, "bicubic", view))
    assert off_by(session, image, recipe).max() < 1e-3
    np.testing.assert_array_equal(preprocess(image, recipe), image)


# ---------------------------------------------------------------- the whole file


@pytest.fixture(scope="module", params=["bicubic", "bilinear"])
def core(request: pytest.FixtureRequest, view: View, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    tiny = handoff()
    recipe = dataclasses.replace(tiny.preprocess, interpolation=request.param, view=view)
    next(OnnxExporter().export(Tiny().eval(), dataclasses.replace(tiny, preprocess=recipe), folder))
    return folder / "model.core.onnx"


def raw(core: Path, layout: Layout) -> Path:
    path = core.with_name(f"{layout}.onnx")
    recipe = CoreModel(core).preprocess
    write_raw_pixel_model(core, path, recipe, how(temperature=TEMPERATURE).ending(), layout)
    return path


def expected(core: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = CoreModel(core)
    logits = model.logits(normalise(preprocess(image, model.preprocess)[None], model.preprocess))[0]
    return logits, softmax(logits / np.float32(TEMPERATURE))


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 30), (333, 200)])
def test_pixels_to_probabilities_logits_and_ranking(core: Path, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(raw(core, "image"), providers=["CPUExecutionProvider"])
    probabilities, logits, top_k = session.run(None, {"image": image})
    np.testing.assert_allclose(logits, expected(core, image)[0], atol=1e-2)
    np.testing.assert_allclose(probabilities, expected(core, image)[1], atol=2e-3)
    assert top_k.tolist() == np.argsort(-logits, kind="stable").tolist()
    assert probabilities.shape == logits.shape == top_k.shape == (len(LABELS),)


def test_a_batch_says_of_each_image_what_one_image_says(core: Path) -> None:
    batch = np.random.default_rng(4).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    together = onnxruntime.InferenceSession(raw(core, "batch"), providers=["CPUExecutionProvider"])
    alone = onnxruntime.InferenceSession(raw(core, "image"), providers=["CPUExecutionProvider"])
    for row, image in zip(zip(*together.run(None, {"image": batch}), strict=True), batch, strict=True):
        for found, one in zip(row, alone.run(None, {"image": image}), strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5)
    np.testing.assert_allclose(
        PixelModel(raw(core, "batch")).answers(batch[0]), PixelModel(raw(core, "image")).answers(batch[0])
    )


def test_plain_operators_of_an_old_opset_and_no_warnings(core: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = raw(core, "image")
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert model.graph.input[0].type.denotation == "IMAGE"
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])  # a constant too many is a warning
    assert capfd.readouterr() == ("", "")


def test_metadata_is_the_cores_and_that_of_an_image_model(core: Path) -> None:
    facts = {prop.key: prop.value for prop in onnx.load(raw(core, "image")).metadata_props}
    assert facts.items() >= {prop.key: prop.value for prop in onnx.load(core).metadata_props}.items()
    assert json.loads(facts["autoft.temperature"]) == TEMPERATURE
    assert json.loads(facts["autoft.outputs"]) == ["probabilities", "logits", "top_k"]
    assert facts["Image.BitmapPixelFormat"] == "Rgb8"
    assert facts["Image.NominalPixelRange"] == "NominalRange_0_255"


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused_in_one_line(core: Path, pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"takes uint8 RGB pixels \[height, width, 3\]") as caught:
        PixelModel(raw(core, "image")).answers(pixels)
    assert "\n" not in str(caught.value)
    session = onnxruntime.InferenceSession(raw(core, "image"), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="ONNXRuntimeError"):  # and the file itself gives no answer either
        session.run(None, {"image": pixels})


def test_a_core_takes_no_pixels_and_another_model_is_no_core(core: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no raw pixels"):
        PixelModel(core)
    other = onnx.parser.parse_model(PASS_THROUGH.format(size=4, n=48).replace("logits", "features"))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="take images and give logits"):
        write_raw_pixel_model(
            tmp_path / "other.onnx", tmp_path / "m.onnx", handoff().preprocess, how().ending(), "image"
        )


def test_size_and_labels_of_many_classes_fit(tmp_path: Path) -> None:
    size, classes = 20, 12
    core = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        core (float[batch, 3, {size}, {size}] images) => (float[batch, {classes}] logits)
        < int64[3] flat = {{0, 12, 100}}, int64[1] last = {{2}} >
        {{
            parts = Reshape (images, flat)
            logits = ReduceMean <keepdims = 0> (parts, last)
        }}""")
    onnx.save(core, tmp_path / "core.onnx")
    recipe = Preprocess(size, (1e-5, 0.5, 0.5), (1.0, 0.25, 1e-3))
    write_raw_pixel_model(
        tmp_path / "core.onnx",
        tmp_path / "m.onnx",
        recipe,
        how(list("abcdefghijkl"), 0.37).ending(),
        "image",
    )
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    probabilities, _, top_k = session.run(None, {"image": np.full((SIZE, SIZE, 3), 200, np.uint8)})
    assert probabilities.shape == (classes,)
    assert top_k.shape == (5,)
