from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from parts.exported import LABELS, SIZE, Tiny, handoff, how
from parts.home import fresh_home
from PIL import Image

from autoft import UserError
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.predict import find_model, open_model, predict
from autoft.errors import DataError, RunFolderError
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.system.files import sha256
from autoft.values.bundle import FileRecord, Manifest
from autoft.values.codec import encode
from autoft.values.prediction import Prediction
from autoft.values.summary import Best, Scores, Summary


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a bundle as predicting needs; red, green and blue images are told apart."""
    folder = tmp_path_factory.mktemp("run") / "export"
    next(OnnxExporter().export(Tiny().eval(), handoff(), folder))
    model = folder / "model.onnx"
    write_raw_pixel_model(folder / "model.core.onnx", model, handoff().preprocess, how().ending(), "image")
    record = FileRecord(sha256(model), model.stat().st_size)
    (folder / "manifest.json").write_text(encode(Manifest(1, {"model.onnx": record}, {}, "abc", "1.14", "2026")))
    return folder


def colour(path: Path, rgb: tuple[int, int, int]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), rgb).save(path)
    return str(path)


def test_predict_takes_files_folders_and_patterns_in_order(bundle: Path, tmp_path: Path) -> None:
    red = colour(tmp_path / "a[1].png", (255, 0, 0))
    blue = colour(tmp_path / "folder" / "deep" / "10.png", (0, 0, 255))
    green = colour(tmp_path / "folder" / "deep" / "2.jpg", (0, 255, 0))
    colour(tmp_path / "folder" / ".hidden.png", (0, 0, 0))
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    found = list(predict(bundle, [red, str(tmp_path / "folder"), str(tmp_path / "fold*" / "**" / "*.png")]))
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


@pytest.mark.parametrize("header", ["file", "image,label"])
def test_predict_takes_the_images_of_a_manifest(header: str, bundle: Path, tmp_path: Path) -> None:
    """With labels or without, each image once; one that is not there is said."""
    red, blue = colour(tmp_path / "a" / "red.png", (255, 0, 0)), colour(tmp_path / "blue.png", (0, 0, 255))
    lines = ["a/red.png", "blue.png", "a/red.png", "gone.png"]
    rest = "," if "," in header else ""
    (tmp_path / "other.csv").write_text("\n".join([header, *(f"{line}{rest}" for line in lines)]))
    found = list(predict(bundle, [str(tmp_path / "*.csv")]))
    assert [(p.image, p.label) for p in found[:2]] == [(red, LABELS[0]), (blue, LABELS[2])]
    assert (found[2].image, found[2].error) == (str(tmp_path / "gone.png"), "no such file or directory")
    assert len(found) == 3


def test_a_bundle_of_before_there_were_targets_has_one_class_an_image(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    kept = [prop for prop in model.metadata_props if prop.key not in ("autoft.targets", "autoft.calibration")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "old.onnx")
    red = colour(tmp_path / "red.png", (255, 0, 0))
    assert list(predict(tmp_path / "old.onnx", [red])) == list(predict(bundle, [red]))
    assert open_model(tmp_path / "old.onnx").calibration.temperature == 1.0


def test_unreadable_images_are_reported_in_their_place(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    good = colour(tmp_path / "good.png", (255, 0, 0))
    bad, one, missing = predict(bundle, [str(tmp_path / "text.jpg"), good, str(tmp_path / "missing.png")])
    assert bad == Prediction(str(tmp_path / "text.jpg"), error="not an image: text")
    assert one.label == LABELS[0]
    assert missing.error == "no such file or directory"


def test_photos_that_cannot_be_read_are_answered_and_what_systems_leave_is_not(bundle: Path, tmp_path: Path) -> None:
    """A raw may hold a thumbnail that Pillow would take for the photo; it is left out, as by a search."""
    red = colour(tmp_path / "folder" / "a.png", (255, 0, 0))
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN"):
        colour(tmp_path / "folder" / name / "a.png", (255, 0, 0))
    colour(tmp_path / "folder" / "raw.tif", (255, 0, 0))
    (tmp_path / "folder" / "raw.tif").rename(tmp_path / "folder" / "raw.NEF")
    (tmp_path / "folder" / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    first, second = predict(bundle, [str(tmp_path / "folder")])
    assert (first.image, first.label) == (red, LABELS[0])
    assert second.image.endswith("b.HEIC") and second.error


def test_what_is_no_regular_file_is_not_waited_for(bundle: Path, tmp_path: Path) -> None:
    """Nobody writes into the pipe, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    of_folder = {Path(one.image).name: one.error for one in predict(bundle, [str(tmp_path)])}
    assert of_folder == {"pipe.png": "not a regular file", "whole.png": None}
    named = [*predict(bundle, ["/dev/zero", str(tmp_path / "pipe.png"), str(tmp_path / "whole.png")])]
    assert [one.error for one in named] == ["not a regular file", "not a regular file", None]


def test_nothing_to_predict_is_an_error(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        list(predict(bundle, [str(tmp_path)]))
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"not one image could be read; .*x\.jpg: not an image"):
        list(predict(bundle, [str(tmp_path)]))


def test_a_run_folder_a_bundle_and_a_file_all_lead_to_the_model(bundle: Path, tmp_path: Path) -> None:
    scores = Scores(3, 2, {"accuracy": 2 / 3}, (0.1, 0.9))
    best = Best(0, "test/tiny", "probe", SIZE, {})
    summary = Summary(str(tmp_path), "accuracy", best, scores, None, {}, {}, "export/model.onnx", 60.0)
    (tmp_path / "summary.json").write_text(encode(summary))
    (tmp_path / "study.json").write_text("{}")
    shutil.copytree(bundle, tmp_path / "export")
    assert find_model(tmp_path) == tmp_path / "export" / "model.onnx"
    assert find_model(bundle) == bundle / "model.onnx" == find_model(bundle / "model.onnx")
    shutil.rmtree(tmp_path / "export")
    for place in (tmp_path, tmp_path / "export"):
        with pytest.raises(RunFolderError, match=r"model of the run is gone.*`autoft export .* --trial 0` writes it"):
            find_model(place)


def test_folders_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / "summary.json").write_text('{"model": 3}')
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged"):
        find_model(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(
        RunFolderError, match=r"exported no model yet: `autoft resume .*` goes on.*`autoft export .*` writes"
    ):
        find_model(tmp_path)
    (tmp_path / "study.json").unlink()
    with pytest.raises(UserError, match="is no bundle"):
        find_model(tmp_path)


def test_a_changed_or_missing_model_is_not_used(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx has changed"):
        predict(copy, ["x.png"])
    with pytest.raises(UserError, match=r"model\.onnx has changed"):
        predict(copy / "model.onnx", ["x.png"])
    (copy / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing"):
        predict(copy, ["x.png"])
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        predict(copy, ["x.png"])


def test_the_core_takes_no_images(bundle: Path) -> None:
    with pytest.raises(UserError, match="takes no raw pixels"):
        predict(bundle / "model.core.onnx", ["x.png"])


def test_an_image_of_too_many_megapixels_is_named(bundle: Path, tmp_path: Path) -> None:
    Image.new("1", (16_001, 16_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"huge\.png: more than 256 megapixels"):
        list(predict(bundle, [str(tmp_path / "huge.png")]))


def test_predict_runs_without_torch_and_talks_to_nobody(bundle: Path, tmp_path: Path) -> None:
    """Nor does onnxruntime, which would leave in the user's cache what it is going to send."""
    image = colour(tmp_path / "red.png", (255, 0, 0))
    program = (
        "import sys\nfrom pathlib import Path\nfrom autoft.bundle.predict import predict\n"
        f"(one,) = predict(Path({str(bundle)!r}), [{image!r}])\n"
        "print(one.label, sorted({'torch', 'timm', 'ray', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    home = tmp_path / "home"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=fresh_home(home), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("red []\n", "")
    assert not list(home.rglob("Microsoft"))
