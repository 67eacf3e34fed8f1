from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parts.exported import LABELS, OneBatch, Tiny, handoff, how, images, torch_logits
from torch import nn

from autoft import UserError
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.bundle.parity import (
    FULL,
    ON_GPU,
    QUICK,
    Setting,
    core_parity,
    core_refusal,
    difference,
    pixel_parity,
    pixel_refusal,
    too_different,
)
from autoft.media.image.decode import normalise, preprocess
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.values.bundle import CoreParity, ImageDelta, PixelParity

NAMES = [f"{number}.png" for number in range(20)]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, int]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=len(LABELS)).eval()
    for parameter in model.parameters():  # zero-initialised branches and scales would make parity say nothing
        if parameter.detach().abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    size = model.pretrained_cfg["input_size"][-1]
    folder = tmp_path_factory.mktemp("vit")
    next(OnnxExporter().export(model, handoff(size), folder))
    return folder / "model.core.onnx", model, size


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    next(OnnxExporter().export(Tiny().eval(), handoff(), folder))
    write_raw_pixel_model(
        folder / "model.core.onnx", folder / "model.onnx", handoff().preprocess, how(temperature=2.0).ending(), "image"
    )
    return folder


EIGHT = Setting(8, "all")


def compared(path: Path, expected: np.ndarray, inputs: np.ndarray, setting: Setting = EIGHT) -> CoreParity:
    return core_parity(CoreModel(path, optimisations=setting.optimisations), setting, inputs, expected, NAMES, how())


@pytest.mark.parametrize("setting", FULL.settings)
def test_a_faithful_export_passes_under_every_setting(vit: tuple[Path, nn.Module, int], setting: Setting) -> None:
    path, model, size = vit
    inputs = images(10, size)
    parity = compared(path, torch_logits(model, inputs), inputs, setting)
    assert (parity.n, parity.batch, parity.optimised) == (10, setting.batch, setting.optimisations == "all")
    assert 0 < parity.mean_delta <= parity.max_delta <= 1e-4 * parity.scale < parity.limit
    assert parity.answer_delta <= parity.answer_limit <= 1e-3
    assert core_refusal(parity) is None


def test_the_quick_gate_runs_one_and_more_images_at_a_time() -> None:
    assert (QUICK.images, [setting.batch for setting in QUICK.settings]) == (64, [1, 8])
    assert FULL.images >= 256
    assert {setting.optimisations for setting in FULL.settings} == {"all", "none"}


def test_a_single_image_is_compared_in_a_whole_batch(tiny: Path) -> None:
    parity = compared(tiny / "model.core.onnx", torch_logits(Tiny().eval(), images(1)), images(1))
    assert (parity.n, core_refusal(parity)) == (1, None)


def test_a_tampered_file_is_refused_with_the_numbers_and_the_worst_images(
    vit: tuple[Path, nn.Module, int], tmp_path: Path
) -> None:
    path, network, size = vit
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    changed = onnx.numpy_helper.to_array(weights) * 1.01
    weights.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weights.name))
    onnx.save(model, tmp_path / "m.onnx")
    inputs = images(7, size)
    parity = compared(tmp_path / "m.onnx", torch_logits(network, inputs), inputs)
    reason = core_refusal(parity)
    assert reason is not None
    assert f"{parity.max_delta:.3g}" in reason
    assert f"{parity.limit:.3g}" in reason
    assert parity.worst[0].image in reason
    assert [image.delta for image in parity.worst] == sorted((image.delta for image in parity.worst), reverse=True)
    assert parity.worst[0].delta == parity.max_delta
    assert "\n" not in reason


def test_a_file_that_takes_one_batch_size_does_not_run(tmp_path: Path) -> None:
    model = OneBatch().eval()
    next(OnnxExporter().export(model, handoff(), tmp_path))
    with pytest.raises(UserError, match="does not run on"):
        compared(tmp_path / "model.core.onnx", torch_logits(model, images(9)), images(9))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_and_their_image_named(tiny: Path, bad: float) -> None:
    expected = torch_logits(Tiny().eval(), images(3))
    expected[1, 2] = bad
    parity = compared(tiny / "model.core.onnx", expected, images(3))
    assert core_refusal(parity) is not None
    assert parity.worst[0].image == NAMES[1]


@given(st.floats(0, 1), st.integers(0, 2))
@settings(max_examples=20)
def test_any_clear_flip_or_large_delta_is_refused(delta: float, flips: int) -> None:
    worst = (ImageDelta("a.png", delta),)
    core = CoreParity(5, 1.0, delta, delta, 1e-4, 1.0, 1e-3, flips, worst, 8, True)
    assert (core_refusal(core) is None) == (delta <= 1e-4 and flips == 0)
    pixels = PixelParity(5, delta, delta, 0.02, 0.04, flips, worst)
    assert (pixel_refusal(pixels) is None) == (delta <= 0.02 and flips == 0)


def test_from_pixels_the_file_says_what_pillow_and_torch_say(tiny: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (20 + n, 40, 3), dtype=np.uint8) for n in range(6)]
    recipe = handoff().preprocess
    inputs = normalise(np.stack([preprocess(image, recipe) for image in pixels]), recipe)
    logits, at_two = torch_logits(Tiny().eval(), inputs), how(temperature=2.0)
    parity = pixel_parity(PixelModel(tiny / "model.onnx"), pixels, logits, NAMES, at_two)
    assert (parity.n, pixel_refusal(parity)) == (6, None)
    assert parity.max_delta < 1e-3
    blue = [image[:, :, ::-1] for image in pixels]  # what a caller that mixes up RGB and BGR would get
    wrong = pixel_parity(PixelModel(tiny / "model.onnx"), blue, logits, NAMES, at_two)
    reason = pixel_refusal(wrong)
    assert reason is not None
    assert wrong.worst[0].image in reason


def apart(found: np.ndarray, expected: np.ndarray, temperature: float = 1.0) -> str | None:
    labels = [str(number) for number in range(expected.shape[1])]
    return too_different(difference(found, expected, NAMES, how(labels, temperature)))


def test_what_no_probability_feels_does_not_cost_the_model() -> None:
    """A head that amplifies rounding: logits of 37 that are .015 apart where the answers are certain."""
    expected = (37 * np.eye(3)[np.arange(12) % 3]).astype(np.float32)
    found = expected + np.float32(0.015)
    found[0, 0] -= 0.03
    assert apart(found, expected) is None
    assert apart(found, expected / 37) is not None
    assert apart(expected + np.float32([0.05, 0, 0]), expected) is not None  # beyond a thousandth, felt or not
    assert apart(found, expected, temperature=20.0) is None
    uncertain = expected * np.float32(0.01)
    uncertain[:, 0] += 37
    assert apart(uncertain + np.float32([0, 0.015, 0]), uncertain, temperature=20.0) is None
    assert apart(uncertain - np.float32([37, 0, 0]), uncertain) is not None


@pytest.mark.parametrize("classes", [2, 50, 1000])
def test_a_file_that_ignores_the_image_is_refused_however_small_the_margins_are(classes: int) -> None:
    rng = np.random.default_rng(0)
    for spread in (1.0, 1e-2, 1e-4):
        expected = (rng.normal(size=(16, classes)) * spread + 0.5).astype(np.float32)
        blind = np.broadcast_to(expected.mean(axis=0), expected.shape)
        assert apart(blind, expected) is not None
        assert apart(np.roll(expected, 1, axis=0), expected) is not None
        assert apart(expected * np.float32(1 + 1e-6), expected) is None


def test_a_clear_answer_that_changes_is_refused_at_any_tolerance() -> None:
    expected = np.float32([[0.0, 0.06], [9, 0], [0, 9]])
    found = np.float32([[0.06, 0.0], [9, 0], [0, 9]])
    near = difference(found, expected, NAMES, how(), ON_GPU)
    assert near.flips == 0  # margins below the tolerance say nothing
    expected[0, 1] = found[0, 0] = 0.5
    assert difference(found, expected, NAMES, how(), ON_GPU).flips == 1
