from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

from autoft import Artifact, Backbone, GateFailed, Handoff, InputSpec, Preprocess, RunFailed, Trial, UserError
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.codec import encode
from autoft.errors import DataError, RunFolderError
from autoft.onnx_runtime import OnnxClassifier, softmax
from autoft.parity import Parity, check_parity
from autoft.predict import Prediction, find_model, predict
from autoft.summary import Best, Scores, Summary

SIZE = 32
LABELS = ("red", "gr\u00fcn", "blue \U0001f535", "1")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Tiny(nn.Module):
    """Logits that depend on mean colour alone: red, green or blue wins."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(3, len(LABELS))
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(images + 3).mean((2, 3)) * 4)


class Undecided(Tiny):
    """Takes a turn that depends on the pixels: the dynamo exporter cannot follow it, tracing can."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.sum() > -1e9 else -images)


class Outside(Tiny):
    """Uses an operator that ONNX does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.linalg.eigvals(images[:, 0, :4, :4]).real


class OneBatch(Tiny):
    """Works on the example batch alone once it is traced, and the dynamo exporter refuses it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.sum() > -1e9 else -images).reshape(len(images.tolist()), len(LABELS))


class Mutating(Tiny):
    """Reads its input after the activation changed it: not the same without in-place."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shown = images * 4
        self.act(shown)
        return self.head(shown.mean((2, 3)))


def handoff(size: int = SIZE, labels: tuple[str, ...] = LABELS, source: str = "https://example.org/w") -> Handoff:
    backbone = Backbone("test/tiny", 15, InputSpec(size), license="apache-2.0", source=source)
    trial = Trial(3, backbone.name, "probe", size, {"ridge": 0.5, "head": "ridge"}, seed=7)
    return Handoff(labels, Preprocess(size, MEAN, STD), backbone, trial, "accuracy", 0.75, "abc123")


def images(n: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, 3, size, size)).astype(np.float32)


def torch_logits(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels.copy())).numpy()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("run") / "export"
    artifact = OnnxExporter().export(Tiny().eval(), handoff(source=str(folder / "weights.bin")), folder)
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
    OnnxExporter().export(model, handoff(size), folder)
    return folder / "model.core.onnx", model, size


def tampered(path: Path, to: Path) -> Path:
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    changed = onnx.numpy_helper.to_array(weights) * 1.01
    weights.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weights.name))
    onnx.save(model, to)
    return to


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
    assert artifact.exporter == "torch.onnx dynamo"
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
        "autoft.preprocess": {
            "size": SIZE,
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "crop": "centre_square",
            "channels": "RGB",
            "alpha": "over_white",
            "orientation": "exif",
        },
        "autoft.backbone": {"name": "test/tiny", "license": "apache-2.0", "source": "weights.bin"},
        "autoft.trial": {"id": 3, "freeze": "probe", "params": {"ridge": 0.5, "head": "ridge"}, "seed": 7},
        "autoft.validation": {"accuracy": 0.75},
        "autoft.data_fingerprint": "abc123",
    }


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
    np.testing.assert_allclose(
        OnnxClassifier(path).logits(pixels, batch), torch_logits(model, pixels), rtol=1e-4, atol=1e-4
    )


def test_export_leaves_the_classifier_as_it_was() -> None:
    model = Mutating().eval()
    before = torch_logits(model, images(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoft.builtin.onnx_exporter._write", lambda path, content: None)
        OnnxExporter().export(model, handoff(), Path("unused"))
    assert model.act.inplace
    assert not model.training
    np.testing.assert_array_equal(torch_logits(model, images(3)), before)


def test_a_network_that_depends_on_in_place_activations_keeps_them(tmp_path: Path) -> None:
    model = Mutating().eval()
    OnnxExporter().export(model, handoff(), tmp_path)
    check_parity(torch_logits(model, images(4)), tmp_path / "model.core.onnx", images(4))


def test_falls_back_to_torchscript(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Undecided().eval()
    assert OnnxExporter().export(model, handoff(), tmp_path).exporter == "torch.onnx torchscript"
    assert capfd.readouterr() == ("", "")
    check_parity(torch_logits(model, images(9)), tmp_path / "model.core.onnx", images(9))
    assert b"site-packages" not in (tmp_path / "model.core.onnx").read_bytes()


def test_no_way_of_exporting_is_one_line_with_both_causes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match="test/tiny cannot be exported") as caught:
        OnnxExporter().export(Outside().eval(), handoff(), tmp_path)
    message = str(caught.value)
    assert "dynamo: " in message
    assert "torchscript: " in message
    assert "\n" not in message
    assert "eigvals" in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_labels_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="asked for 'logits' of shape"):
        OnnxExporter().export(Tiny().eval(), handoff(labels=("a", "b")), tmp_path)


# ---------------------------------------------------------------- the runtime


def test_a_file_tells_its_labels_and_preprocessing(tiny: tuple[Path, Artifact]) -> None:
    model = OnnxClassifier(tiny[0], threads=1)
    assert model.labels == LABELS
    assert model.preprocess == Preprocess(SIZE, MEAN, STD)
    assert model.logits(images(0)[:0].reshape(0, 3, SIZE, SIZE)).shape == (0, len(LABELS))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("autoft.labels", None, "was not exported by autoft"),
        ("autoft.schema", "99", "schema 99"),
        ("autoft.labels", '["a", "b"]', "does not fit its labels"),
        ("autoft.labels", "{", "damaged"),
        ("autoft.preprocess", '{"size": 32}', "damaged"),
    ],
)
def test_files_that_are_not_ours(
    tiny: tuple[Path, Artifact], tmp_path: Path, key: str, value: str | None, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        OnnxClassifier(with_metadata(tiny[0], tmp_path / "m.onnx", key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model\n", None, "cut"])
def test_damaged_files(tiny: tuple[Path, Artifact], tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(tiny[0].read_bytes()[:-100] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"m\.onnx") as caught:
        OnnxClassifier(path)
    assert "\n" not in str(caught.value)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_that_keeps_the_order(logits: np.ndarray) -> None:
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    chosen = np.take_along_axis(probabilities, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(chosen, probabilities.max(axis=1))


# ---------------------------------------------------------------- the gate


def test_parity_passes(real: tuple[Path, nn.Module, int]) -> None:
    path, model, size = real
    pixels = images(10, size)
    parity = check_parity(torch_logits(model, pixels), path, pixels)
    assert parity.n == 10
    assert 0 < parity.max_delta <= parity.limit == pytest.approx(1e-4 * parity.scale)


def test_parity_of_a_single_image(tiny: tuple[Path, Artifact]) -> None:
    assert check_parity(torch_logits(Tiny().eval(), images(1)), tiny[0], images(1)).n == 1


def test_a_tampered_file_is_refused_with_the_numbers(real: tuple[Path, nn.Module, int], tmp_path: Path) -> None:
    path, model, size = real
    pixels = images(4, size)
    with pytest.raises(GateFailed, match=r"on 4 images .* up to [0-9.e-]+, the limit is [0-9.e-]+") as caught:
        check_parity(torch_logits(model, pixels), tampered(path, tmp_path / "m.onnx"), pixels)
    assert caught.value.exit_code == 3


def test_a_file_that_takes_one_batch_size_is_refused(tmp_path: Path) -> None:
    model = OneBatch().eval()
    OnnxExporter().export(model, handoff(), tmp_path)
    with pytest.raises(GateFailed, match="does not run on"):
        check_parity(torch_logits(model, images(9)), tmp_path / "model.core.onnx", images(9))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(tiny: tuple[Path, Artifact], bad: float) -> None:
    expected = torch_logits(Tiny().eval(), images(3))
    expected[1, 2] = bad
    with pytest.raises(GateFailed):
        check_parity(expected, tiny[0], images(3))


@given(st.floats(0, 1), st.integers(0, 2))
@settings(max_examples=20)
def test_any_clear_flip_or_large_delta_fails(delta: float, flips: int) -> None:
    assert Parity(5, 1.0, delta, 1e-4, flips).passed == (delta <= 1e-4 and flips == 0)


# ---------------------------------------------------------------- predict


def colour(path: Path, rgb: tuple[int, int, int]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), rgb).save(path)
    return str(path)


def test_predict_takes_files_folders_and_patterns_in_order(tiny: tuple[Path, Artifact], tmp_path: Path) -> None:
    red = colour(tmp_path / "a[1].png", (255, 0, 0))
    blue = colour(tmp_path / "folder" / "deep" / "10.png", (0, 0, 255))
    green = colour(tmp_path / "folder" / "deep" / "2.jpg", (0, 255, 0))
    colour(tmp_path / "folder" / ".hidden.png", (0, 0, 0))
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    found = list(predict(tiny[0], [red, str(tmp_path / "folder"), str(tmp_path / "fold*" / "**" / "*.png")]))
    assert [(p.image, p.label) for p in found] == [
        (red, LABELS[0]),
        (green, LABELS[1]),
        (blue, LABELS[2]),
        (blue, LABELS[2]),
    ]
    for prediction in found:
        assert prediction.error is None
        assert prediction.probability == max(prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert tuple(prediction.probabilities) == LABELS


def test_unreadable_images_are_reported_in_their_place(tiny: tuple[Path, Artifact], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    good = colour(tmp_path / "good.png", (255, 0, 0))
    bad, one, missing = predict(tiny[0], [str(tmp_path / "text.jpg"), good, str(tmp_path / "missing.png")])
    assert bad == Prediction(str(tmp_path / "text.jpg"), error="not an image: text")
    assert one.label == LABELS[0]
    assert missing.error == "no such file or directory"


def test_nothing_to_predict_is_an_error(tiny: tuple[Path, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        list(predict(tiny[0], [str(tmp_path)]))
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"not one image could be read; .*x\.jpg: not an image"):
        list(predict(tiny[0], [str(tmp_path)]))


def test_a_run_folder_names_its_model(tiny: tuple[Path, Artifact], tmp_path: Path) -> None:
    run = tiny[0].parent.parent
    scores = Scores(3, 2, {"accuracy": 2 / 3}, (0.1, 0.9))
    best = Best(0, "test/tiny", "probe", SIZE, {})
    summary = Summary(str(run), "accuracy", best, scores, None, {}, {}, "export/model.core.onnx", 60.0)
    (tmp_path / "summary.json").write_text(encode(summary))
    (tmp_path / "study.json").write_text("{}")
    assert find_model(tmp_path) == tmp_path / "export" / "model.core.onnx"
    assert find_model(tiny[0].parent) == tiny[0] == find_model(tiny[0])
    (tmp_path / "summary.json").write_text('{"model": 3}')
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged"):
        find_model(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="autoft resume"):
        find_model(tmp_path)
    (tmp_path / "study.json").unlink()
    with pytest.raises(UserError, match="run folder"):
        find_model(tmp_path)


def test_predict_runs_without_torch_and_talks_to_nobody(tiny: tuple[Path, Artifact], tmp_path: Path) -> None:
    image = colour(tmp_path / "red.png", (255, 0, 0))
    program = (
        "import sys\nfrom pathlib import Path\nfrom autoft.predict import predict\n"
        f"(one,) = predict(Path({str(tiny[0])!r}), [{image!r}])\n"
        "print(one.label, sorted({'torch', 'timm', 'ray', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("red []\n", "")
