"""What every bundle takes along: verify.py, and the examples in Python and JavaScript. No torch, no exporter."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts.home import fresh_home
from PIL import Image

from autoft.bundle.standalone import verify as standalone
from autoft.media.image.decode import decode as decode_image
from autoft.shell.cli import cli
from autoft.values.bundle import FileRecord, Latency, Manifest, Vector, Vectors
from autoft.values.codec import decode, encode
from autoft.values.handoff import Preprocess

SCRIPTS = Path(standalone.__file__).parent
LABELS = ["red", "gr\u00fcn", "blue"]
RECIPE = Preprocess(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bilinear")
TEMPERATURE = 2.0
OTHER_LABELS = "labels.json differs from the labels in model.onnx's metadata"
WEIGHTS = np.array([[2, -1, 0], [-1, 2, 0], [0, -1, 2]], np.float32)

HEADER = '<ir_version: 8, opset_import: ["" : 18]>'
CORE = """
core (float[batch, 3, 8, 8] images) => (float[batch, 3] logits)
<int64[2] plane = {2, 3}, float[3, 3] weights = {2, -1, 0, -1, 2, 0, 0, -1, 2}>
{
    colour = ReduceMean <keepdims = 0> (images, plane)
    logits = MatMul (colour, weights)
}"""
MODEL = """
model (uint8[%(batch)sheight, width, 3] image)
    => (float[%(batch)s3] probabilities, float[%(batch)s3] logits, int64[%(batch)s3] top_k)
<int64[2] plane = {%(plane)s}, int64[1] three = {3}, float[3, 3] weights = {2, -1, 0, -1, 2, 0, 0, -1, 2},
 float full = {255}, float[3] mean = {0.5, 0.4, 0.3}, float[3] std = {0.2, 0.25, 0.3}, float temperature = {2}>
{
    values = Cast <to = 1> (image)
    shade = ReduceMean <keepdims = 0> (values, plane)
    fraction = Div (shade, full)
    centred = Sub (fraction, mean)
    colour = Div (centred, std)
    logits = MatMul (colour, weights)
    cooled = Div (logits, temperature)
    probabilities = Softmax <axis = -1> (cooled)
    scores, top_k = TopK <axis = -1> (logits, three)
}"""
LAYOUTS = {"image": {"batch": "", "plane": "0, 1"}, "batch": {"batch": "batch, ", "plane": "1, 2"}}


def pictures() -> dict[str, np.ndarray]:
    """Flat and smooth ones: their mean colour survives the resize."""
    slope = np.linspace(0, 255, 40, dtype=np.uint8)
    smooth = np.stack([*np.meshgrid(slope, slope), np.full((40, 40), 90, np.uint8)], axis=-1)
    flat = {
        "dot": np.full((1, 1, 3), (200, 10, 40), np.uint8),
        "tall": np.full((31, 5, 3), (20, 180, 30), np.uint8),
        "wide": np.full((7, 50, 3), (30, 60, 250), np.uint8),
    }
    return {"smooth": smooth, **flat}


def answer(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities by numpy."""
    logits = (pixels.mean((0, 1)) / 255 - RECIPE.mean) / RECIPE.std @ WEIGHTS
    powers = np.exp(logits / TEMPERATURE)
    return logits, powers / powers.sum()


def write_model(path: Path, text: str) -> None:
    model = onnx.parser.parse_model(HEADER + text)
    facts = {"labels": LABELS, "temperature": TEMPERATURE}
    onnx.helper.set_model_props(model, {f"autoft.{key}": json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_vectors(folder: Path) -> None:
    vectors = []
    (folder / "test_vectors").mkdir()
    for name, pixels in pictures().items():
        png, rgb = f"test_vectors/{name}.png", f"test_vectors/{name}.rgb"
        Image.fromarray(pixels).save(folder / png)
        (folder / rgb).write_bytes(pixels.tobytes())
        logits, probabilities = (tuple(map(float, row)) for row in answer(pixels))
        vectors.append(Vector(name, png, rgb, *pixels.shape[:2], LABELS[0], logits, probabilities))
    (folder / "test_vectors/vectors.json").write_text(encode(Vectors(1, 0.02, 0.04, tuple(vectors))))


def seal(folder: Path) -> None:
    """Write the manifest of what is there now."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    records = {
        path.relative_to(folder).as_posix(): FileRecord(
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for path in paths
    }
    manifest = Manifest(1, records, {"autoft": "0"}, "0" * 64, "1.14", "2026-01-02T03:04:05+00:00")
    (folder / "manifest.json").write_text(encode(manifest))


def make_bundle(folder: Path, layout: str) -> Path:
    (folder / "examples").mkdir(parents=True)
    write_model(folder / "model.onnx", MODEL % LAYOUTS[layout])
    write_model(folder / "model.core.onnx", CORE)
    (folder / "labels.json").write_text(json.dumps(LABELS))
    (folder / "preprocess.json").write_text(encode(RECIPE))
    write_vectors(folder)
    shutil.copy(SCRIPTS / "verify.py", folder)
    for name in ("infer.py", "infer.mjs"):
        shutil.copy(SCRIPTS / name, folder / "examples")
    seal(folder)
    return folder


@pytest.fixture(params=LAYOUTS)
def any_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "any", request.param)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", "image")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change what is in a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip(path: Path, at: int = -1, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "arguments",
    [["verify.py"], ["verify.py", "--latency", "--seconds", "0.01"], ["examples/infer.py", "test_vectors/dot.png"]],
)
def test_onnxruntime_has_nothing_to_tell_its_maker(bundle: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=bundle, env=fresh_home(tmp_path / "home"), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "home").iterdir())


# ---------------------------------------------------------------- verify: as promised


def test_an_untouched_bundle_passes(any_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert standalone.main([str(any_bundle)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("PASS: 16 files, 4 test vectors, worst difference of an answer ")
    assert re.search(r" \d\.\de-0\d, ", out)
    assert out.endswith(" s\n")
    assert not err


def test_the_outcome_is_that_of_both_models(any_bundle: Path) -> None:
    outcome = standalone.verify(any_bundle)
    assert (outcome.problems, outcome.files, outcome.vectors) == ([], 16, 4)
    assert 0 < outcome.worst_difference < 0.02  # the core saw the smooth picture at 8 pixels


def test_files_that_the_manifest_does_not_list_are_ignored(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / "link").symlink_to(bundle)
    assert not standalone.verify(bundle).problems


def test_what_the_manifest_does_not_list_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "numpy.py").write_text("raise SystemExit")
    (bundle / "examples" / "mine.py").touch()
    (bundle / "node_modules" / "deep").mkdir(parents=True)
    (bundle / "node_modules" / "deep" / "index.js").touch()
    found = standalone.verify(bundle)
    assert (found.problems, sorted(found.unlisted)) == ([], ["examples/mine.py", "node_modules/", "numpy.py"])
    for number in range(20):
        (bundle / f"note {number:02}\n").touch()
    assert standalone.main([str(bundle)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not checked, as manifest.json does not list it: node_modules/, note 00 , note 01 ")
    assert line.endswith(" and 13 more")


def test_a_verdict_as_json_is_one_document(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert standalone.main([str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    flip(bundle / "labels.json")
    assert standalone.main([str(bundle), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["passed"] is False
    assert verdict["problems"] == ["labels.json has changed: its SHA-256 is not the manifest's"]


def test_the_script_checks_the_folder_it_lies_in(bundle: Path, tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", bundle / "verify.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PASS: 16 files, 4 test vectors")
    assert not list(bundle.rglob("__pycache__"))
    flip(bundle / "test_vectors/dot.png")
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "test_vectors/dot.png has changed: its SHA-256 is not the manifest's\n"


def leave_out(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def test_what_shows_the_data_may_be_left_out(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("parity.json", "images.json"):
        (bundle / name).write_text("{}")
    seal(bundle)
    leave_out(bundle, "test_vectors")
    assert standalone.main([str(bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == "test_vectors/ was left out: files are checked, models are run on nothing\n"
    assert out.startswith("PASS: 9 files, no test vectors, so neither model was run, ")
    leave_out(bundle, "parity.json", "images.json")
    outcome = standalone.verify(bundle)
    assert (outcome.problems, outcome.files, len(outcome.notes)) == ([], 7, 3)
    assert [note.split()[0] for note in outcome.notes] == ["test_vectors/", "parity.json", "images.json"]


def test_autoft_verify_notes_what_was_left_out(bundle: Path) -> None:
    leave_out(bundle, "test_vectors")
    done = CliRunner().invoke(cli, ["verify", str(bundle), "--json"])
    assert (done.exit_code, done.stderr) == (
        0,
        "test_vectors/ was left out: files are checked, models are run on nothing\n",
    )
    assert json.loads(done.stdout)["notes"] == [done.stderr.strip()]
    assert json.loads(done.stdout)["worst_difference"] is None
    assert CliRunner().invoke(cli, ["verify", str(bundle)]).stdout.startswith("PASS: 7 files, no test vectors, ")


@pytest.mark.parametrize("name", ["labels.json", "model.onnx", "examples/infer.py", "verify.py"])
def test_nothing_else_may_be_left_out(name: str, bundle: Path) -> None:
    leave_out(bundle, "test_vectors", name)
    assert standalone.verify(bundle).problems == [f"{name} is missing"]


def test_what_is_left_out_hides_nothing(bundle: Path) -> None:
    """One of the vectors does not count as all of them, nor does a path that leads elsewhere or a damaged model."""
    list_file("test_vectors/../../x")(bundle)
    leave_out(bundle, "test_vectors")
    assert standalone.verify(bundle).problems == [f"test_vectors/../../x {OUTSIDE}"]
    edit(bundle / "manifest.json", lambda manifest: manifest["files"].pop("test_vectors/../../x"))
    (bundle / "test_vectors").mkdir()
    (bundle / "test_vectors" / "dot.png").symlink_to("nowhere")
    assert "test_vectors/vectors.json is missing" in standalone.verify(bundle).problems
    leave_out(bundle, "test_vectors")
    write_vectors(bundle)
    write_garbage_model(bundle)
    leave_out(bundle, "test_vectors")
    (problem,) = standalone.verify(bundle).problems
    assert problem.startswith("model.onnx does not load: ")


# ---------------------------------------------------------------- verify: not as promised


def swap_labels(folder: Path) -> None:
    edit(folder / "labels.json", lambda labels: labels.reverse())
    seal(folder)


def expect_something_else(folder: Path) -> None:
    edit(
        folder / "test_vectors/vectors.json",
        lambda data: [data["vectors"][0][name].reverse() for name in ("probabilities", "logits")],
    )
    seal(folder)


def expect_nothing(folder: Path) -> None:
    edit(folder / "test_vectors/vectors.json", lambda data: data["vectors"].clear())
    seal(folder)


def expect_what_is_elsewhere(folder: Path) -> None:
    edit(folder / "test_vectors/vectors.json", lambda data: data["vectors"][0].update(png="../secret.png"))
    seal(folder)


def shorten_raw_bytes(folder: Path) -> None:
    (folder / "test_vectors/dot.rgb").write_bytes(b"12")
    seal(folder)


def change_decoded_pixels(folder: Path) -> None:
    pixels = pictures()["tall"]
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(folder / "test_vectors/tall.png")
    seal(folder)


def change_recipe(folder: Path) -> None:
    edit(folder / "preprocess.json", lambda recipe: recipe.update(std=[0.25, 0.25, 0.3]))
    edit(folder / "test_vectors/vectors.json", lambda data: data.update(vectors=data["vectors"][1:2]))
    seal(folder)


def rank_backwards(folder: Path) -> None:
    text = MODEL.replace("<axis = -1> (logits, three)", "<axis = -1, largest = 0> (logits, three)")
    write_model(folder / "model.onnx", text % LAYOUTS["image"])
    edit(folder / "test_vectors/vectors.json", lambda data: data.update(vectors=data["vectors"][1:2]))
    seal(folder)


def answer_no_number(folder: Path) -> None:
    text = MODEL.replace("Div (logits, temperature)", "Div (logits, nothing)").replace(
        "full =", "nothing = {0}, float full ="
    )
    write_model(folder / "model.onnx", text % LAYOUTS["image"])
    edit(folder / "test_vectors/vectors.json", lambda data: data.update(vectors=data["vectors"][1:2]))
    seal(folder)


def write_garbage_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"garbage")
    seal(folder)


def drop_metadata(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")
    seal(folder)


def keep_weights_elsewhere(folder: Path) -> None:
    model = onnx.load(folder / "model.core.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    elsewhere = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(model, folder / "model.core.onnx", convert_attribute=True, **elsewhere)
    seal(folder)


def swap_in_a_huge_picture(folder: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(folder / "test_vectors/tall.png")
    seal(folder)


def enlarge_recipe(folder: Path) -> None:
    edit(folder / "preprocess.json", lambda recipe: recipe.update(size=12_000))
    seal(folder)


def list_file(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = {"sha256": "0" * 64, "size": 1}
        edit(folder / "manifest.json", lambda manifest: manifest["files"].update({name: record}))

    return change


def link(folder: Path) -> None:
    (folder / "labels.json").rename(folder.parent / "labels.json")
    (folder / "labels.json").symlink_to(folder.parent / "labels.json")


def link_folder(folder: Path) -> None:
    (folder / "examples").rename(folder.parent / "examples")
    (folder / "examples").symlink_to(folder.parent / "examples")
    edit(folder / "manifest.json", lambda manifest: manifest["files"].pop("examples/infer.mjs"))


def set_in_manifest(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "manifest.json", lambda manifest: manifest.update(values))


OUTSIDE = "is listed in manifest.json, but is no path inside the bundle"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "model": (lambda b: flip(b / "model.onnx"), "model.onnx has changed: its SHA-256 is not the manifest's"),
    "size": (
        lambda b: (b / "labels.json").write_text("[]"),
        "labels.json has changed: it has 2 bytes, by the manifest",
    ),
    "file gone": (lambda b: (b / "test_vectors/dot.rgb").unlink(), "test_vectors/dot.rgb is missing"),
    "file a folder": (lambda b: (b / "verify.py").unlink() or (b / "verify.py").mkdir(), "verify.py is missing"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json is missing"),
    "no JSON": (lambda b: (b / "manifest.json").write_text("{..."), "manifest.json is damaged: JSONDecodeError"),
    "no text": (lambda b: (b / "manifest.json").write_bytes(b"\xff\n"), "manifest.json is damaged: UnicodeDecodeError"),
    "other JSON": (lambda b: (b / "manifest.json").write_text("[]"), "manifest.json is damaged: it names no schema"),
    "newer": (set_in_manifest(schema=2), "manifest.json is of schema 2, this verify.py knows 1; use the bundle's own"),
    "no files": (set_in_manifest(files=3), "manifest.json is damaged: it lists no files"),
    "no version": (set_in_manifest(min_onnxruntime="new"), "manifest.json is damaged: ValueError"),
    "parent": (list_file("../x"), f"../x {OUTSIDE}"),
    "parent inside": (list_file("examples/../x"), f"examples/../x {OUTSIDE}"),
    "absolute": (list_file("/etc/passwd"), f"/etc/passwd {OUTSIDE}"),
    "drive": (list_file("C:x"), f"C:x {OUTSIDE}"),
    "backslash": (list_file("..\\x"), f"..\\x {OUTSIDE}"),
    "no name": (list_file(""), OUTSIDE),
    "control": (list_file("a\x1b[2J\0"), f"a?[2J? {OUTSIDE}"),
    "link": (link, "labels.json is a symbolic link or lies behind one"),
    "linked folder": (link_folder, "examples/infer.py is a symbolic link or lies behind one"),
    "labels": (swap_labels, "labels.json differs from the labels in model.onnx's metadata"),
    "no vectors": (expect_nothing, "test_vectors/vectors.json holds no vectors"),
    "vector elsewhere": (
        expect_what_is_elsewhere,
        "test_vectors/vectors.json names test_vectors/smooth.rgb and ../sec",
    ),
    "raw bytes": (shorten_raw_bytes, "test_vectors/dot.rgb has 2 bytes, not those of an image of shape (1, 1, 3)"),
    "pixels": (change_decoded_pixels, "test_vectors/tall.png: Pillow decodes other pixels than"),
    "recipe": (change_recipe, "model.core.onnx on dot: a logit is off by 0."),
    "ranking": (rank_backwards, "model.onnx on dot: the best class is number 1, expected was 0"),
    "NaN": (answer_no_number, "model.onnx on dot: a probability is off by 1.0000, allowed are 0.02"),
    "garbage model": (write_garbage_model, "model.onnx does not load: "),
    "external weights": (keep_weights_elsewhere, "model.core.onnx keeps weights in other files, which the manifest"),
    "picture bomb": (swap_in_a_huge_picture, "test_vectors/tall.png: Pillow decodes other pixels than"),
    "recipe for another size": (
        enlarge_recipe,
        "preprocess.json says 12000 pixels, model.core.onnx takes another size",
    ),
    "no metadata": (drop_metadata, "model.onnx lacks metadata: KeyError: 'autoft.labels'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_promised_is_named_in_one_line(
    change: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, expected = CHANGES[change]
    make(bundle)
    assert standalone.main([str(bundle)]) == 1
    out, err = capfd.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert line.startswith(expected)


def test_wrong_expectations_are_named_for_both_models(bundle: Path) -> None:
    expect_something_else(bundle)
    problems = standalone.verify(bundle).problems
    assert [problem.partition(":")[0] for problem in problems] == ["model.onnx on smooth", "model.core.onnx on smooth"]


def test_a_file_that_the_manifest_must_list_is_named(bundle: Path) -> None:
    edit(bundle / "manifest.json", lambda manifest: manifest["files"].pop("model.onnx"))
    assert standalone.verify(bundle).problems == ["manifest.json does not list model.onnx"]


def test_an_old_onnxruntime_is_named_with_what_helps(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.1")
    assert standalone.main([str(bundle)]) == 1
    assert capsys.readouterr().err == (
        "onnxruntime is 1.9.1, the bundle needs 1.14 or newer: pip install -U onnxruntime\n"
    )


@pytest.mark.parametrize("version", ["1.14.0", "1.20.0.dev20260102", "2.0"])
def test_a_new_enough_onnxruntime_is_accepted(version: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert not standalone.verify(bundle).problems


def test_no_model_is_loaded_when_a_hash_is_wrong(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    flip(bundle / "test_vectors/dot.png")
    flip(bundle / "model.core.onnx")
    problems = standalone.verify(bundle).problems
    assert [problem.split()[0] for problem in problems] == ["model.core.onnx", "test_vectors/dot.png"]


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that a test leaves as it was."""
    return make_bundle(tmp_path_factory.mktemp("shared") / "bundle", "image")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one cache folder for all examples is fine
@given(data=st.data())
def test_any_flipped_bit_is_found(shared_bundle: Path, data: st.DataObject) -> None:
    files = json.loads((shared_bundle / "manifest.json").read_text())["files"]
    name = data.draw(st.sampled_from(sorted(files)))
    at, bit = data.draw(st.integers(0, files[name]["size"] - 1)), data.draw(st.integers(0, 7))
    flip(shared_bundle / name, at, 1 << bit)
    try:
        problems = standalone.verify(shared_bundle).problems
    finally:
        flip(shared_bundle / name, at, 1 << bit)
    assert problems == [f"{name} has changed: its SHA-256 is not the manifest's"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=JSON, version=st.just("1.14") | JSON)
def test_any_other_manifest_is_one_line_a_problem(
    tmp_path_factory: pytest.TempPathFactory, files: object, version: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    manifest = {"schema": 1, "files": files, "min_onnxruntime": version}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    problems = standalone.verify(folder).problems
    assert problems
    assert all(problem.isprintable() for problem in problems)


# ---------------------------------------------------------------- verify: cannot run


def test_no_such_folder_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--latency"], ["--json"]):
        assert standalone.main([str(tmp_path / "none"), *arguments]) == 2
        assert capsys.readouterr().err == f"there is no folder {tmp_path / 'none'}\n"


def test_a_missing_package_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert standalone.main([str(bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "onnxruntime" in line
    assert line.endswith("pip install -U onnxruntime numpy pillow")


@pytest.mark.parametrize("name", ["verify.py", "infer.py"])
def test_a_script_needs_python_310_and_three_packages(name: str) -> None:
    tree = ast.parse((SCRIPTS / name).read_text(), feature_version=(3, 10))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {module.partition(".")[0] for module in imported} - sys.stdlib_module_names
    assert packages - {"pi_heif"} <= {"numpy", "onnxruntime", "PIL"}  # that one reads photos of phones, where it is


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize("model", ["model.onnx", "model.core.onnx"])
def test_a_bundle_without_a_model_has_no_latency_and_says_which(
    model: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / model).unlink()
    assert standalone.main([str(tmp_path / "copy"), "--latency"]) == 1
    assert f"{model} is missing" in capsys.readouterr().err


def test_latency_is_what_latency_json_holds(any_bundle: Path) -> None:
    latency = decode(Latency, standalone.measure_latency(any_bundle))
    assert [(timing.file, timing.batch, timing.pixels) for timing in latency.timings] == [
        ("model.core.onnx", 1, "8x8"),
        ("model.core.onnx", 8, "8x8"),
        ("model.core.onnx", 32, "8x8"),
        ("model.onnx", 1, "512x512"),
        ("model.onnx", 1, "1024x1024"),
    ]
    assert all(0 < timing.p50_ms <= timing.p95_ms and 3 <= timing.runs <= 20 for timing in latency.timings)
    assert latency.threads == len(os.sched_getaffinity(0))
    assert latency.file_bytes["model.onnx"] == (any_bundle / "model.onnx").stat().st_size


def test_latency_is_printed_as_json_or_as_a_table(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert standalone.main([str(bundle), "--latency", "--json"]) == 0
    assert decode(Latency, capsys.readouterr().out).command == "python verify.py --latency"
    assert standalone.main([str(bundle), "--latency"]) == 0
    _, *table, memory = capsys.readouterr().out.splitlines()
    assert len(table) == 6
    assert len({len(line) for line in table}) == 1
    assert memory.startswith("peak memory ")


def test_latency_of_a_broken_model_is_one_line(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.onnx").write_bytes(b"garbage")
    assert standalone.main([str(bundle), "--latency"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("model.onnx does not load: ")


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(seconds: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        standalone.main([str(bundle), "--latency", "--seconds", seconds])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{seconds!r} is no number of seconds above 0")


# ---------------------------------------------------------------- the examples


def infer(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", folder / "examples/infer.py", *map(str, arguments)]
    env = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_python_example_runs_the_vectors(any_bundle: Path) -> None:
    done = infer(any_bundle)
    assert (done.returncode, done.stdout) == (0, "PASS: 4 vectors\n")
    assert done.stderr == "usage: python examples/infer.py PHOTO ...\n"
    expect_something_else(any_bundle)
    done = infer(any_bundle)
    assert done.returncode == 1
    assert done.stderr.startswith("FAIL: smooth gives ")


def test_the_python_example_says_how_it_is_used(bundle: Path) -> None:
    done = infer(bundle, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python examples/infer.py PHOTO ...")
    leave_out(bundle, "test_vectors")
    done = infer(bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "there are no test vectors here, they were left out; name photos\n"


@pytest.mark.parametrize("name", ["model.onnx", "labels.json"])
def test_infer_says_in_a_line_that_a_bundle_is_not_whole(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    done = infer(bundle, "photo.png")
    assert done.returncode == 1
    assert done.stderr.startswith("the bundle is not whole: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("verify.py tells more\n")


@pytest.mark.parametrize("change", [lambda labels: labels.reverse(), lambda labels: labels.pop()])
def test_labels_that_are_not_the_models_are_a_line(change: Callable[[Any], object], bundle: Path) -> None:
    edit(bundle / "labels.json", change)
    done = infer(bundle, bundle / "test_vectors/dot.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"the bundle is not whole: {OTHER_LABELS}; verify.py tells more\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_terminal_cannot_write_is_escaped(encoding: str, bundle: Path, tmp_path: Path) -> None:
    names = ("\u56fe.png", "two.png")
    for name in names:
        Image.new("RGB", (6, 9), (20, 180, 30)).save(tmp_path / name)
    command = [sys.executable, bundle / "examples/infer.py", *(tmp_path / name for name in names)]
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = done.stdout.decode(encoding).splitlines()
    assert r"\u56fe.png: gr" in first and "two.png: gr" in second


def test_a_photo_is_a_line_whatever_its_name(bundle: Path, tmp_path: Path) -> None:
    for name in ("a\nb.png", "c\u2028\x1b[31m.png"):
        Image.new("RGB", (6, 9), (20, 180, 30)).save(tmp_path / name)
    done = infer(bundle, *sorted(tmp_path.glob("*.png")), tmp_path / "no\nwhere.png")
    first, second = done.stdout.splitlines()
    assert r"a\nb.png: gr" in first and r"c\u2028\x1b[31m.png: gr" in second
    (line,) = done.stderr.splitlines()
    assert r"no\nwhere.png cannot be read: " in line


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="there is no such signal")
def test_output_that_nobody_reads_ends_it_quietly(bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", bundle / "examples/infer.py", bundle / "test_vectors/dot.png"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_a_folder_is_a_line_that_says_what_to_name(bundle: Path) -> None:
    done = infer(bundle, bundle / "test_vectors", bundle / "test_vectors/tall.png")
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
    assert done.stderr == f"{bundle / 'test_vectors'} cannot be read: it is a folder; name the photos in it\n"


@pytest.mark.parametrize("name", ["vectors.json", "dot.png"])
def test_damaged_vectors_are_a_line(name: str, bundle: Path) -> None:
    (bundle / "test_vectors" / name).write_bytes(b"")
    done = infer(bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the bundle is not whole: ") and done.stderr.count("\n") == 1


def huge_png(path: Path) -> None:
    """A PNG that says it has 400 megapixels."""
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = 2 * (20_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def test_a_photo_that_cannot_be_read_is_one_line_and_does_not_stop_the_rest(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    huge_png(tmp_path / "huge.png")
    Image.fromarray(np.full((6, 9), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.new("RGB", (6, 9), (20, 180, 30)).save(tmp_path / "green.png")
    names = ("text.jpg", "nowhere.jpg", "huge.png", "float.tif")
    done = infer(bundle, *(tmp_path / name for name in names), tmp_path / "green.png")
    assert (done.returncode, done.stdout.split(": ")[0]) == (1, str(tmp_path / "green.png"))
    lines = done.stderr.splitlines()
    assert [line.split(" cannot be read: ")[0] for line in lines] == [str(tmp_path / name) for name in names]
    assert "exceeds limit" in lines[2] and "no 8-bit image (F)" in lines[3]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_photo_of_a_phone_says_what_makes_it_readable(bundle: Path, tmp_path: Path, is_there: bool) -> None:
    """Where the library is there, a photo that it cannot read is damaged."""
    (photo := tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    body = "def register_heif_opener(): pass" if is_there else "raise ImportError"
    (tmp_path / "pi_heif.py").write_text(body)
    script = [sys.executable, bundle / "examples" / "infer.py", photo]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"{photo} cannot be read: ")
    assert ("pip install pi-heif makes photos of phones readable" in done.stderr) is not is_there


def test_no_photo_and_no_vector_starts_another_program(
    bundle: Path, postscript: bytes, started: Path, tmp_path: Path
) -> None:
    (photo := tmp_path / "photo.jpg").write_bytes(postscript)
    done = infer(bundle, photo)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{photo} cannot be read: cannot identify image file")
    (bundle / "test_vectors/dot.png").write_bytes(postscript)
    seal(bundle)
    assert any("dot.png cannot be decoded" in problem for problem in standalone.verify(bundle).problems)
    assert infer(bundle).returncode == 1
    assert not started.exists()


def test_the_python_example_scales_what_has_more_than_8_bits_as_autoft_does(bundle: Path, tmp_path: Path) -> None:
    value_range = (-2.0, 5.5)
    model = onnx.load(bundle / "model.onnx")
    facts = {"autoft.preprocess": encode(replace(RECIPE, value_range=value_range))}
    model.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in facts.items())
    onnx.save(model, bundle / "model.onnx")
    floats = np.linspace(-3, 7, 54, dtype=np.float32).reshape(6, 9)
    whole, deep = np.rint(floats).astype(np.int32), np.linspace(0, 65_535, 54).astype(np.uint16).reshape(6, 9)
    floats[0, :3] = np.nan, np.inf, -np.inf
    images = {"float.tif": floats, "whole.tif": whole, "deep.png": deep}
    for name, values in images.items():
        Image.fromarray(values).save(tmp_path / name)
    Image.fromarray(deep).save(tmp_path / "key.png", transparency=int(deep[2, 2]))
    paths = [tmp_path / name for name in (*images, "key.png")]
    done = infer(bundle, *paths)
    expected = [answer(decode_image(path, value_range))[1].max() for path in paths]
    assert done.stderr == ""
    assert [line.rsplit(maxsplit=1)[1] for line in done.stdout.splitlines()] == [f"{one:.4f}" for one in expected]


def test_the_python_example_sees_what_a_person_sees(bundle: Path, tmp_path: Path) -> None:
    """A red of which nothing shows is white; a green one is green."""
    pixels = np.zeros((6, 9, 4), np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.new("RGB", (6, 9), (20, 180, 30)).save(tmp_path / "green.png")
    done = infer(bundle, tmp_path / "clear.png", tmp_path / "green.png")
    assert done.stderr == ""
    clear, green = (answer(np.full((1, 1, 3), colour))[1].max() for colour in (255, (20, 180, 30)))
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path / 'clear.png'}: blue {clear:.4f}"
    assert second == f"{tmp_path / 'green.png'}: {LABELS[1]} {green:.4f}"


def node(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["node", folder / "examples/infer.mjs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_node_example_says_in_a_line_what_to_install(bundle: Path) -> None:
    done = node(bundle)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "onnxruntime-node" in line and line.endswith("or a folder above it: npm install onnxruntime-node")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["photo.rgb", 5, 31, "--help"]])
def test_the_node_example_says_how_it_is_used(arguments: list[object], bundle: Path) -> None:
    done = node(bundle, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: node examples/infer.mjs PHOTO.rgb WIDTH HEIGHT")


@pytest.mark.parametrize("missing", ["numpy", "onnxruntime", "PIL"])
def test_the_python_example_says_in_a_line_what_to_install(missing: str, bundle: Path) -> None:
    (bundle / "examples" / f"{missing}.py").write_text(f"raise ImportError('no {missing} here')")
    command = [sys.executable, bundle / "examples/infer.py"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    line = f"no {missing} here; pip install -U onnxruntime numpy pillow\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python examples/infer.py photo.jpg" in done.stdout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_node_example_runs_the_vectors_and_classifies(layout: str, node_place: Path) -> None:
    folder = make_bundle(node_place / layout, layout)
    done = node(folder)
    assert (done.returncode, done.stdout) == (0, "PASS: 4 vectors\n")
    assert done.stderr.startswith("usage: node examples/infer.mjs PHOTO.rgb WIDTH HEIGHT")
    raw = folder / "test_vectors/tall.rgb"
    probability = answer(pictures()["tall"])[1].max()
    assert node(folder, raw, 5, 31).stdout == f"{raw}: {LABELS[1]} {probability:.4f}\n"
    (empty := folder / "empty.rgb").touch()
    sizes = ([raw], [raw, 5, 30], [raw, "wide", "high"], [raw, -5, -31], [empty, 0, 0], [empty, 0, 31])
    for wrong in (["nowhere.rgb", 5, 31], *sizes):
        done = node(folder, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{wrong[0]} ") and "usage: node" in line
    done = node(folder, raw, 5, 31, raw, 5, 31)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"one photo a call, what is {raw}? usage: node")
    expect_something_else(folder)
    done = node(folder)
    assert done.returncode == 1
    assert done.stderr.startswith("FAIL: smooth gives ")
    leave_out(folder, "test_vectors")
    done = node(folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("there are no test vectors here") and len(done.stderr.splitlines()) == 1


def test_the_node_example_says_in_a_line_that_a_bundle_is_not_whole(node_place: Path) -> None:
    whole = make_bundle(node_place / "whole", "image")

    def said(change: Callable[[Path], object]) -> str:
        folder = shutil.copytree(whole, node_place / "changed")
        change(folder)
        done = node(folder, whole / "test_vectors/tall.rgb", 5, 31)
        shutil.rmtree(folder)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (1, "")
        assert line.startswith("the bundle is not whole: ") and line.endswith("; verify.py tells more")
        return line

    assert OTHER_LABELS in said(lambda folder: edit(folder / "labels.json", lambda labels: labels.reverse()))
    assert OTHER_LABELS in said(lambda folder: edit(folder / "labels.json", lambda labels: labels.pop()))
    said(lambda folder: (folder / "labels.json").write_text("["))
    said(lambda folder: (folder / "model.onnx").write_bytes(b"garbage"))
    said(lambda folder: (folder / "model.onnx").unlink())
