from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from parts.exported import (
    LABELS,
    MEAN,
    SIZE,
    STD,
    Mutating,
    Outside,
    Tiny,
    Undecided,
    handoff,
    images,
    torch_logits,
)
from torch import nn

from autoft import Artifact, Preprocess, RunFailed, UserError
from autoft.builtin.onnx_exporter import TEMPLATE, OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel
from autoft.tasks.statistics import softmax
from autoft.values.codec import encode
from autoft.values.target import Targets
from autoft.values.trial import Parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("run") / "export"
    artifact = next(OnnxExporter().export(Tiny().eval(), handoff(source="weights.bin"), folder))
    return folder / "model.core.onnx", artifact


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, int]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(request.param, pretrained=False, num_classes=len(LABELS)).eval()
    for parameter in model.parameters():  # zero-initialised branches and scales would make parity say nothing
        if parameter.detach().abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    size = model.pretrained_cfg["input_size"][-1]
    folder = tmp_path_factory.mktemp(request.param)
    next(OnnxExporter().export(model, handoff(size), folder))
    return folder / "model.core.onnx", model, size


def require_agreement(model: nn.Module, path: Path) -> None:
    pixels = images(9)
    np.testing.assert_allclose(CoreModel(path).logits(pixels, 4), torch_logits(model, pixels), rtol=1e-4, atol=1e-4)


def with_metadata(path: Path, to: Path, key: str, value: str | None) -> Path:
    model = onnx.load(path)
    properties = {prop.key: prop.value for prop in model.metadata_props}
    properties.pop(key, None)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties if value is None else {**properties, key: value})
    onnx.save(model, to)
    return to


# ---------------------------------------------------------------- the exporter


def test_one_file_of_plain_opset_18(tiny: tuple[Path, Artifact]) -> None:
    path, artifact = tiny
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert [file.name for file in path.parent.iterdir()] == ["model.core.onnx"]
    assert artifact.path == "export/model.core.onnx"
    assert (artifact.opset, artifact.size) == (18, path.stat().st_size)
    assert artifact.sha256 == subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]
    assert artifact.exporter == "torch.onnx dynamo, attention not fused"
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 3, SIZE, SIZE], "logits": ["batch", len(LABELS)]}


def test_metadata_is_json(tiny: tuple[Path, Artifact]) -> None:
    metadata = {prop.key: json.loads(prop.value) for prop in onnx.load(tiny[0]).metadata_props}
    assert metadata == {
        "autoft.schema": 1,
        "autoft.labels": list(LABELS),
        "autoft.targets": {
            "task": "single_label",
            "form": "one_of",
            "names": list(LABELS),
            "mean": [],
            "deviation": [],
            "least": [],
            "greatest": [],
        },
        "autoft.preprocess": {
            "size": SIZE,
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "view": "crop",
            "pad_colour": [124, 116, 104],
            "channels": "RGB",
            "alpha": "over_white",
            "orientation": "exif",
            "value_range": None,
        },
        "autoft.backbone": {"name": "test/tiny", "license": "apache-2.0", "source": "weights.bin"},
        "autoft.trial": {
            "id": 3,
            "freeze": "probe",
            "params": {"ridge": 0.5, "head": "ridge"},
            "seed": 7,
            "search_seed": None,
            "train_on": "train",
        },
        "autoft.validation": {"accuracy": 0.75, "of_trial": 3},
        "autoft.data_fingerprint": "abc123",
    }


def test_the_score_in_the_metadata_of_a_refit_is_called_its_twins(tmp_path: Path) -> None:
    made = handoff()
    refit = replace(made, trial=replace(made.trial, id=4, train_on="train+val", twin=Parent(3, 1.0)))
    next(OnnxExporter().export(Tiny().eval(), refit, tmp_path))
    metadata = {prop.key: json.loads(prop.value) for prop in onnx.load(tmp_path / "model.core.onnx").metadata_props}
    assert (metadata["autoft.trial"]["id"], metadata["autoft.trial"]["train_on"]) == (4, "train+val")
    assert metadata["autoft.validation"] == {"accuracy": 0.75, "of_trial": 3}
    assert CoreModel(tmp_path / "model.core.onnx").train_on == "train+val"


def test_nothing_of_this_machine_is_in_the_file(real: tuple[Path, nn.Module, int], tiny: tuple[Path, Artifact]) -> None:
    for path in (real[0], tiny[0]):
        content = path.read_bytes()
        for place in (Path.home(), Path(sys.prefix), Path(__file__).parent, path.parent, Path.cwd()):
            assert place == Path("/") or str(place).encode() not in content
        assert b"stack_trace" not in content
        assert b"site-packages" not in content


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_is_dynamic(real: tuple[Path, nn.Module, int], batch: int) -> None:
    path, model, size = real
    pixels = images(5, size)
    np.testing.assert_allclose(CoreModel(path).logits(pixels, batch), torch_logits(model, pixels), rtol=1e-4, atol=1e-4)


def test_export_leaves_the_classifier_as_it_was() -> None:
    model = Mutating().eval()
    before = torch_logits(model, images(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoft.builtin.onnx_exporter._write", lambda path, content: None)
        next(OnnxExporter().export(model, handoff(), Path("unused")))
    assert model.act.inplace
    assert not model.training
    np.testing.assert_array_equal(torch_logits(model, images(3)), before)


def test_a_network_that_depends_on_in_place_activations_keeps_them(tmp_path: Path) -> None:
    model = Mutating().eval()
    next(OnnxExporter().export(model, handoff(), tmp_path))
    require_agreement(model, tmp_path / "model.core.onnx")


def test_falls_back_to_torchscript(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Undecided().eval()
    assert next(OnnxExporter().export(model, handoff(), tmp_path)).exporter == "torch.onnx torchscript"
    assert capfd.readouterr() == ("", "")
    require_agreement(model, tmp_path / "model.core.onnx")
    assert b"site-packages" not in (tmp_path / "model.core.onnx").read_bytes()


def test_no_way_of_exporting_is_one_line_with_both_causes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match="test/tiny cannot be exported") as caught:
        next(OnnxExporter().export(Outside().eval(), handoff(), tmp_path))
    message = str(caught.value)
    assert "dynamo: " in message
    assert "torchscript: " in message
    assert "\n" not in message
    assert "eigvals" in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_labels_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="asked for 'logits' of shape"):
        next(OnnxExporter().export(Tiny().eval(), handoff(labels=("a", "b")), tmp_path))


# ---------------------------------------------------------------- prepared during the search


def small(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, num_classes=len(LABELS)).eval()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_a_prepared_graph_takes_any_weights_of_its_backbone(name: str, tmp_path: Path) -> None:
    """From a network fresh from its maker, with all norms alike and some weights zero, which an optimiser merges."""
    prepared, exporter = tmp_path / "prepared", OnnxExporter()
    exporter.prepare(small(name), SIZE, prepared)
    assert (prepared / TEMPLATE).stat().st_size < 1_000_000  # without the weights
    model = small(name).to(memory_format=torch.channels_last)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.05 * torch.rand_like(tensor))
    (artifact,) = exporter.export_prepared(model, handoff(), prepared, tmp_path / "export")
    assert artifact.exporter.endswith("prepared during the search")
    require_agreement(model, tmp_path / "export" / "model.core.onnx")
    full = onnx.load_from_string(exported_bytes(model, tmp_path / "full"))
    quick = onnx.load(tmp_path / "export" / "model.core.onnx")
    assert [node.op_type for node in quick.graph.node] == [node.op_type for node in full.graph.node]
    assert quick.metadata_props == full.metadata_props


def exported_bytes(model: nn.Module, folder: Path) -> bytes:
    next(OnnxExporter().export(model, handoff(), folder))
    return (folder / "model.core.onnx").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "another network"])
def test_a_prepared_graph_of_no_use_gives_nothing(tmp_path: Path, damage: str) -> None:
    OnnxExporter().prepare(Tiny().eval(), SIZE, tmp_path / "p")
    template, model = tmp_path / "p" / TEMPLATE, Tiny().eval()
    if damage == "missing":
        template.unlink()
    elif damage == "cut":
        template.write_bytes(template.read_bytes()[:-50])
    else:
        model.head = nn.Linear(3, 7)
    assert list(OnnxExporter().export_prepared(model, handoff(), tmp_path / "p", tmp_path / "export")) == []
    assert not (tmp_path / "export").exists()


def test_exporting_leaves_torch_and_the_process_as_they_were(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        switches = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), dict(os.environ))
        streams = (sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters))
        return (*switches, *streams, torch.get_rng_state().tolist(), list(sys.path), gc.isenabled())

    def of(model: nn.Module) -> list[object]:
        tensors = [
            (n, t.stride(), t.requires_grad, t.sum().item()) for n, t in model.state_dict(keep_vars=True).items()
        ]
        return [*tensors, *((type(m), m.training, len(m._forward_hooks)) for m in model.modules())]

    next(OnnxExporter().export(Tiny().eval(), handoff(), tmp_path))  # what is imported at first may set what it likes
    model = small("test_convnext").to(memory_format=torch.channels_last)
    undecided = Undecided().eval()
    before, classifier = state(), of(model)
    next(OnnxExporter().export(model, handoff(), tmp_path))
    next(OnnxExporter().export(undecided, handoff(), tmp_path))
    OnnxExporter().prepare(model, SIZE, tmp_path / "p")
    for now, then in zip(state(), before, strict=True):
        assert now == then
    assert of(model) == classifier


# ---------------------------------------------------------------- the runtime


def test_a_file_of_before_there_were_targets_has_one_class_an_image(
    tiny: tuple[Path, Artifact], tmp_path: Path
) -> None:
    model = onnx.load(tiny[0])
    kept = [prop for prop in model.metadata_props if prop.key != "autoft.targets"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "old.onnx")
    assert CoreModel(tmp_path / "old.onnx").targets == Targets("single_label", "one_of", LABELS)


def test_a_file_tells_its_labels_and_preprocessing(tiny: tuple[Path, Artifact]) -> None:
    model = CoreModel(tiny[0], threads=1)
    assert model.labels == LABELS
    assert model.preprocess == Preprocess(SIZE, MEAN, STD)
    assert model.logits(images(0)[:0].reshape(0, 3, SIZE, SIZE)).shape == (0, len(LABELS))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("autoft.labels", None, "was not exported by autoft"),
        ("autoft.schema", "99", "schema 99"),
        ("autoft.labels", '["a", "b"]', "autoft.labels and autoft.targets in its metadata differ"),
        ("autoft.targets", "[]", "damaged"),
        ("autoft.preprocess", encode(Preprocess(SIZE + 1, MEAN, STD)), "does not fit its labels"),
        ("autoft.labels", "{", "damaged"),
        ("autoft.preprocess", '{"size": 32}', "damaged"),
    ],
)
def test_files_that_are_not_ours(
    tiny: tuple[Path, Artifact], tmp_path: Path, key: str, value: str | None, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        CoreModel(with_metadata(tiny[0], tmp_path / "m.onnx", key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model\n", None, "cut"])
def test_damaged_files(tiny: tuple[Path, Artifact], tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(tiny[0].read_bytes()[:-100] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"m\.onnx") as caught:
        CoreModel(path)
    assert "\n" not in str(caught.value)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_that_keeps_the_order(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    chosen = np.take_along_axis(probabilities, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(chosen, probabilities.max(axis=1))
