"""Check this bundle, or measure how fast it is here: `python verify.py [FOLDER] [--latency] [--json]`.

Needs Python 3.10 or newer, onnxruntime, numpy and Pillow. Exit code 0: the bundle is what its manifest and its test
vectors promise; 1: it is not, one line on stderr for each reason; 2: it cannot be checked.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # [height, width, 3]
    Numbers = NDArray[np.float64]
    _Call = tuple[str, Any, NDArray[Any], int, int]  # file, session, input, batch size and side of the images

SCHEMA = 1
MANIFEST, MODEL, CORE = "manifest.json", "model.onnx", "model.core.onnx"
LABELS, PREPROCESS, VECTORS = "labels.json", "preprocess.json", "test_vectors/vectors.json"
_MAY_BE_LEFT_OUT = {  # they show the data the model is made of, so whoever passes the bundle on may remove each whole
    "test_vectors": "test_vectors/ was left out: files are checked, models are run on nothing",
    "parity.json": "parity.json was left out",
    "images.json": "images.json was left out: which images the model was trained on is not known here",
}
BATCHES = 8, 32  # that the core is timed with beside single images, where there is time for them
_NAMES_SHOWN = 10
_EXTERNAL = b"\n\x08location\x12"  # how ONNX writes that a tensor lies in another file (onnx.proto, external_data)


class Broken(Exception):
    """The bundle is not what it promises to be."""


class CannotRun(Exception):
    """Nothing can be said of the bundle: there is no such folder, or a package is missing."""


@dataclass
class Outcome:
    """What `verify` found: no `problems`, one line each, if the bundle is as promised.

    `files` were compared with the manifest, `vectors` were run. `worst_difference` is that of any answer of model.onnx
    (a probability, or a number in deviations of its column), or of any of the core's outputs as a part of their scale;
    None where no vector was run.
    `unlisted` names files and folders that lie there and are no part of the bundle: nothing is said of them.
    `notes` names, one line each, what may be left out and was.
    """

    problems: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    vectors: int = 0
    worst_difference: float | None = None
    seconds: float = 0.0


def verify(folder: Path) -> Outcome:
    """Compare every file with the manifest; if all are as listed, run both models on the test vectors.

    Raises `CannotRun` when there is no such folder, or without onnxruntime, numpy and Pillow.
    """
    start = time.perf_counter()
    _require(folder)
    outcome = Outcome()
    try:
        manifest = _parse(folder, MANIFEST)
        with _blaming(f"{MANIFEST} is damaged"):
            files = _listed(manifest)
            left_out = _left_out(folder, files)
            outcome.problems += [*_too_old(manifest), *_changed(folder, files, left_out)]
            outcome.files = sum(_part(name) not in left_out for name in files)
            outcome.unlisted += _unlisted(folder, {MANIFEST, *files})
            outcome.notes += [_MAY_BE_LEFT_OUT[part] for part in left_out]
        if not outcome.problems:
            model, core = _Model(folder), _Core(folder)
            if _parse(folder, LABELS) != model.labels:
                outcome.problems.append(f"{LABELS} differs from the labels in {MODEL}'s metadata")
            if _part(VECTORS) not in left_out:
                _run_vectors(folder, model, core, set(files), outcome)
    except Broken as error:
        outcome.problems.append(str(error))
    outcome.problems = [_one_line(problem) for problem in outcome.problems]
    outcome.seconds = round(time.perf_counter() - start, 3)
    return outcome


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise CannotRun(f"there is no folder {folder}")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else onnxruntime from 1.29 on sends events to its maker
    try:
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise CannotRun(f"{error}; pip install -U onnxruntime numpy pillow") from error


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Make what goes wrong inside a `Broken` with its cause: onnxruntime's and Pillow's errors share no base class."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"{what}: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------- the files


def _listed(manifest: Any) -> dict[str, Any]:
    """The files that a manifest lists."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise Broken(f"{MANIFEST} is damaged: it lists no files")
    return files


def _parse(folder: Path, name: str) -> Any:
    with _blaming(f"{name} is damaged"):
        if not (folder / name).is_file():
            raise Broken(f"{name} is missing")
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        if name not in (MANIFEST, VECTORS):
            return data
        if not isinstance(data, dict) or "schema" not in data:
            raise Broken(f"{name} is damaged: it names no schema")
        if data["schema"] != SCHEMA:
            raise Broken(f"{name} is of schema {data['schema']}, this verify.py knows {SCHEMA}; use the bundle's own")
    return data


def _too_old(manifest: Any) -> Iterator[str]:
    import onnxruntime

    found, needed = onnxruntime.__version__, manifest["min_onnxruntime"]
    have, want = ([int(number) for number in version.split(".")[:2]] for version in (found, needed))
    if have < want:
        yield f"onnxruntime is {found}, the bundle needs {needed} or newer: pip install -U onnxruntime"


def _part(name: str) -> str:
    """The file or folder of the bundle that a listed path is, or lies in."""
    return name.partition("/")[0]


def _left_out(folder: Path, files: Any) -> list[str]:
    """What may be left out, is listed, and is gone: a folder with everything that is listed in it."""
    there = {_part(name) for name in files if os.path.lexists(folder / name)}
    return [part for part in _MAY_BE_LEFT_OUT if part not in there and part in map(_part, files)]


def _changed(folder: Path, files: Any, left_out: list[str]) -> Iterator[str]:
    for name in (MODEL, CORE, LABELS, PREPROCESS, VECTORS):
        if name not in files:
            yield f"{MANIFEST} does not list {name}"
    for name, record in files.items():
        with _blaming(f"{name} cannot be read"):
            problem = _misplaced(folder, name)
            if not problem and _part(name) not in left_out:
                problem = _unlike(folder / name, record["sha256"], record["size"])
        if problem:
            yield f"{name} {problem}"


def _unlisted(folder: Path, listed: set[str]) -> Iterator[str]:
    """Files that are not listed, and folders, with a slash at the end, in which nothing is."""
    parents = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    for here, folders, names in os.walk(folder):
        place = Path(here).relative_to(folder)
        inner = {name: (place / name).as_posix() for name in sorted(folders)}
        yield from (f"{path}/" for path in inner.values() if path not in parents | listed)
        folders[:] = [name for name, path in inner.items() if path in parents]
        yield from sorted({(place / name).as_posix() for name in names} - listed)


def _misplaced(folder: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    foreign = "\\" in name or PureWindowsPath(name).drive or not name.isprintable()
    if not parts or parts[0].startswith("/") or ".." in parts or foreign:
        return f"is listed in {MANIFEST}, but is no path inside the bundle"
    if any(folder.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts))):
        return "is a symbolic link or lies behind one"
    return ""


def _unlike(path: Path, digest: str, size: int) -> str:
    if not path.is_file():
        return "is missing"
    if (found := path.stat().st_size) != size:
        return f"has changed: it has {found} bytes, by the manifest {size}"
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hashed.update(part)
    return "" if hashed.hexdigest() == digest else "has changed: its SHA-256 is not the manifest's"


# ---------------------------------------------------------------- the test vectors


def _run_vectors(folder: Path, model: _Model, core: _Core, listed: set[str], outcome: Outcome) -> None:
    data = _parse(folder, VECTORS)
    with _blaming(f"{VECTORS} is damaged"):
        if not data["vectors"]:
            raise Broken(f"{VECTORS} holds no vectors")
        scale = max(1.0, *(abs(logit) for vector in data["vectors"] for logit in vector["logits"]))
        for vector in data["vectors"]:
            pixels = _pixels(folder, vector, listed, outcome.problems)
            for file, check in ((MODEL, model.check), (CORE, partial(core.check, scale))):
                with _blaming(f"{file} does not run on {vector['name']}"):
                    wrong = list(check(pixels, vector, data, outcome))
                outcome.problems += [f"{file} on {vector['name']}: {what}" for what in wrong]
            outcome.vectors += 1


class _Model:
    """model.onnx, and of its metadata the `labels` and what it says of its answers."""

    def __init__(self, folder: Path) -> None:
        self._session = _open(folder / MODEL)
        metadata = self._session.get_modelmeta().custom_metadata_map
        with _blaming(f"{MODEL} lacks metadata"):
            self.labels = json.loads(metadata["autoft.labels"])
            # An older model says neither, and has one class an image.
            targets = json.loads(metadata.get("autoft.targets", '{"form": "one_of"}'))
            calibration = json.loads(metadata.get("autoft.calibration", "{}"))
            self._form = _FORMS[targets["form"]]
            self._thresholds = calibration.get("thresholds") or [0.5] * len(self.labels)

    def check(self, pixels: Pixels, vector: Any, limits: Any, outcome: Outcome) -> Iterator[str]:
        """What is wrong with its answers to an image."""
        import numpy as np

        form, batched = self._form, len(self._session.get_inputs()[0].shape) == 4
        outputs = self._session.run(form.outputs, {"image": pixels[None] if batched else pixels})
        answers, *decided = (output.reshape(-1) for output in outputs)
        expected = np.array(vector[form.outputs[0]])
        difference = _difference(answers, expected, limits.get("units") or 1, outcome)
        if not difference <= limits["tolerance"]:
            yield f"{form.answer} is off by {difference:.4f}, allowed are {limits['tolerance']:g}"
        elif form.decided:
            yield from form.decided(expected, decided[0], limits["clear_margin"], self._thresholds)


def _other_class(expected: Numbers, ranking: Any, clear: float, _thresholds: Any) -> Iterator[str]:
    *_, second, first = sorted((0.0, *expected))
    if expected.argmax() != ranking[0] and first - second > clear:
        yield f"the best class is number {ranking[0]}, expected was {expected.argmax()}"


def _other_labels(expected: Numbers, present: Any, clear: float, thresholds: Any) -> Iterator[str]:
    for number, (chance, threshold, found) in enumerate(zip(expected, thresholds, present, strict=True)):
        if (chance >= threshold) != bool(found) and abs(chance - threshold) > clear / 2:
            yield f"label number {number} is {'there' if found else 'missing'}, expected was the contrary"


@dataclass
class _Form:
    """What kind of answers: the outputs they stand in, what one is called, and a check of what is decided by them."""

    outputs: list[str]
    answer: str
    decided: Callable[[Numbers, Any, float, Any], Iterator[str]] | None = None


_FORMS = {
    "one_of": _Form(["probabilities", "top_k"], "a probability", _other_class),
    "any_of": _Form(["probabilities", "present"], "a probability", _other_labels),
    "numbers": _Form(["values"], "a value, in deviations of its column,"),
}


def _difference(found: Any, expected: Numbers, units: Any, outcome: Outcome) -> float:
    """The largest difference of two rows in units; what is no number is far off."""
    import numpy as np

    if found.shape != expected.shape:
        raise Broken(f"it gives {_counted(len(found), 'number')}, expected {len(expected)}")
    difference = float(np.nan_to_num(abs(found.astype(float) - expected) / units, nan=1, posinf=1).max())
    outcome.worst_difference = max(outcome.worst_difference or 0.0, difference)
    return difference


class _Core:
    """model.core.onnx behind preprocess.json's recipe by Pillow."""

    def __init__(self, folder: Path) -> None:
        self._session, self._recipe = _open(folder / CORE), _parse(folder, PREPROCESS)
        with _blaming(f"{PREPROCESS} is damaged"):
            if [self._recipe["size"]] * 2 != self._session.get_inputs()[0].shape[2:]:
                raise Broken(f"{PREPROCESS} says {self._recipe['size']} pixels, {CORE} takes another size")

    def check(self, scale: float, pixels: Pixels, vector: Any, limits: Any, outcome: Outcome) -> Iterator[str]:
        """What is wrong with its outputs of an image, which are compared as parts of their scale."""
        import numpy as np

        recipe = self._recipe
        planes = (np.asarray(square(pixels, recipe)) / 255 - recipe["mean"]) / recipe["std"]
        images = planes.transpose(2, 0, 1)[None].astype(np.float32)
        logits = self._session.run(["logits"], {"images": images})[0][0]
        difference = _difference(logits, np.array(vector["logits"]), scale, outcome)
        if not difference <= limits["tolerance"]:
            yield f"a logit is off by {difference:.4f} of their scale, allowed are {limits['tolerance']:g}"


def square(pixels: Pixels, recipe: Any) -> Any:
    """Steps 1 and 2 of the recipe: the view of an image as a square of the network's size, by Pillow."""
    from PIL import Image

    image, size = Image.fromarray(pixels), recipe["size"]
    width = height = size
    if recipe["view"] == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif recipe["view"] == "pad":
        long = max(image.size)
        width, height = (max(1, (2 * side * size + long) // (2 * long)) for side in image.size)
    elif recipe["view"] != "squash":
        raise Broken(f"{PREPROCESS} has a view {recipe['view']!r}; this verify.py knows crop, squash and pad")
    # Two calls: in one, newer versions of Pillow may do the height first, which gives slightly other pixels.
    resampling = Image.Resampling[recipe["interpolation"].upper()]
    resized = image.resize((width, image.height), resampling).resize((width, height), resampling)
    page = Image.new("RGB", (size, size), tuple(recipe["pad_colour"]))
    page.paste(resized, ((size - width) // 2, (size - height) // 2))
    return page


def _open(path: Path, threads: int = 0) -> Any:
    import onnxruntime

    if not path.is_file():
        raise Broken(f"{path.name} is missing")
    if _EXTERNAL in path.read_bytes():
        raise Broken(f"{path.name} keeps weights in other files, which the manifest says nothing of")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised as well
    with _blaming(f"{path.name} does not load"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _pixels(folder: Path, vector: Any, listed: set[str], problems: list[str]) -> Pixels:
    """The vector's raw bytes as an image. Its PNG must hold the same pixels, so there is no need to run both."""
    import numpy as np
    from PIL import Image

    raw, png = vector["rgb"], vector["png"]
    if not {raw, png} <= listed:
        raise Broken(f"{VECTORS} names {raw} and {png}, {MANIFEST} does not list both")
    shape = (vector["height"], vector["width"], 3)
    values = np.fromfile(folder / raw, np.uint8)
    if values.size != np.prod(shape):
        raise Broken(f"{raw} has {values.size} bytes, not those of an image of shape {shape}")
    pixels = values.reshape(shape)
    with _blaming(f"{png} cannot be decoded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(folder / png, formats=["PNG"]) as image:
            same = image.size == shape[1::-1] and np.array_equal(np.asarray(image.convert("RGB")), pixels)
    if not same:
        problems.append(f"{png}: Pillow decodes other pixels than {raw} holds; the decoder differs, not the model")
    return pixels


# ---------------------------------------------------------------- latency

_LEAST_CALLS = 3


def measure_latency(folder: Path, seconds: float = 60.0) -> dict[str, object]:
    """What latency.json holds, measured here: milliseconds of calls of both models with all cores, and peak memory.

    Larger batches that would not fit into about so many `seconds`, all timings together, are left out.
    Raises `CannotRun` as `verify` does, and `Broken` when a model cannot be loaded or run.
    """
    _require(folder)
    import numpy as np
    import onnxruntime

    threads, random = _cores(), np.random.default_rng(0)
    core, model = _open(folder / CORE, threads), _open(folder / MODEL, threads)
    size, batched = core.get_inputs()[0].shape[2], len(model.get_inputs()[0].shape) == 4
    images = random.standard_normal((32, 3, size, size), np.float32)
    photos = [random.integers(0, 256, (side, side, 3), np.uint8) for side in (512, 1024)]
    calls: list[_Call] = [(CORE, core, images[:1], 1, size)]
    calls += [(MODEL, model, photo[None] if batched else photo, 1, len(photo)) for photo in photos]
    timings = _timings(calls, seconds / 8)
    for batch in BATCHES:
        if batch * timings[0]["p50_ms"] * (_LEAST_CALLS + 1) < 1000 * seconds / 2:
            timings += _timings([(CORE, core, images[:batch], batch, size)], seconds / 8)
    return {
        "machine": _machine(),
        "onnxruntime": onnxruntime.__version__,
        "threads": threads,
        "timings": sorted(timings, key=lambda timing: timing["file"] != CORE),
        "peak_memory_mib": _peak_memory_mib(),
        "file_bytes": {file: (folder / file).stat().st_size for file in (MODEL, CORE)},
        "command": "python verify.py --latency",
    }


def core_milliseconds(core: Path, seconds: float = 0.5) -> float:
    """How long a call of a core file with one image takes here with all cores: the quickest in about so many `seconds`.

    What else the machine does makes medians four times as long, and the quickest hardly longer. Raises `Broken` when
    the file cannot be loaded or run.
    """
    import numpy as np

    session = _open(core, _cores())
    size = session.get_inputs()[0].shape[2]
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    call: _Call = (core.name, session, image, 1, size)
    _milliseconds(call)
    taken: list[float] = []
    while len(taken) < _LEAST_CALLS or sum(taken) < 1000 * seconds:
        taken.append(_milliseconds(call))
    return min(taken)


def _timings(calls: list[_Call], seconds: float) -> list[dict[str, Any]]:
    """One call of each to warm up, then in turns, so that what else the machine does befalls all of them.

    Each for so many `seconds`, half of one at most: 20 times at most, 3 at least.
    """
    import numpy as np

    for call in calls:
        _milliseconds(call)
    rounds: list[list[float]] = []
    enough = len(calls) * min(500, 1000 * seconds)
    while len(rounds) < _LEAST_CALLS or (len(rounds) < 20 and sum(map(sum, rounds)) < enough):
        rounds.append([_milliseconds(call) for call in calls])
    found = []
    for (file, _, _, batch, side), times in zip(calls, np.transpose(rounds), strict=True):
        p50, p95 = (round(float(ms), 3) for ms in np.percentile(times, (50, 95)))
        pixels = f"{side}x{side}"
        found.append({"file": file, "batch": batch, "pixels": pixels, "p50_ms": p50, "p95_ms": p95, "runs": len(times)})
    return found


def _milliseconds(call: _Call) -> float:
    file, session, images, _, _ = call
    with _blaming(f"{file} does not run on an input of shape {images.shape}"):
        start = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: images})
        return 1000 * (time.perf_counter() - start)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace") if info.is_file() else "", re.M)
    cpu = found[1] if found else platform.processor() or platform.machine()
    return f"{cpu}, {_counted(_cores(), 'core')}, {platform.system()} {platform.machine()}"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak_memory_mib() -> int:
    """Peak memory of this process so far, 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage also counts what the process that started this one held
        return int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if platform.system() == "Darwin" else 1 << 10)


# ---------------------------------------------------------------- the command line


def main(argv: list[str]) -> int:
    """The exit code of `verify.py` with these arguments."""
    parser = argparse.ArgumentParser(prog="verify.py", description="Check a bundle, or measure how fast it is here.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--latency", action="store_true", help="measure instead of checking")
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="measure about so long, batches that fit")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    asked = parser.parse_args(argv)
    try:
        if asked.latency:
            measured = measure_latency(asked.folder, asked.seconds)
            print(json.dumps(measured) if asked.json else _table(measured))
            return 0
        found = verify(asked.folder)
    except (CannotRun, Broken) as error:
        print(_one_line(str(error)), file=sys.stderr)
        return 2 if isinstance(error, CannotRun) else 1
    for problem in found.problems:
        print(problem, file=sys.stderr)
    for note in found.notes:
        print(note, file=sys.stderr)
    if found.unlisted:
        print(unlisted_line(found.unlisted), file=sys.stderr)
    if asked.json:
        print(json.dumps({"passed": not found.problems, **dataclasses.asdict(found)}))
    elif not found.problems:
        ran = measured_line(found.vectors, found.worst_difference)
        print(f"PASS: {_counted(found.files, 'file')}, {ran}, {found.seconds:.1f} s")
    return 1 if found.problems else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def measured_line(vectors: int, worst_difference: float | None) -> str:
    """What the test vectors showed; without any nothing was measured."""
    if worst_difference is None:
        return "no test vectors, so neither model was run"
    return f"{_counted(vectors, 'test vector')}, worst difference of an answer {worst_difference:.1e}"


def unlisted_line(names: list[str]) -> str:
    """One line for what is no part of the bundle."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {len(names) - _NAMES_SHOWN} more" * (len(names) > _NAMES_SHOWN))
    return _one_line(f"not checked, as {MANIFEST} does not list it: {shown}")


def _table(measured: Any) -> str:
    head = f"{measured['machine']}, onnxruntime {measured['onnxruntime']}, {_counted(measured['threads'], 'thread')}"
    titles = {"file": "file", "batch": "batch", "pixels": "pixels", "p50_ms": "p50 ms", "p95_ms": "p95 ms"}
    rows = [
        f"{row['file']:<16}" + "".join(f"{row[key]:>11}" for key in [*titles][1:])
        for row in (titles, *measured["timings"])
    ]
    return "\n".join([head, *rows, f"peak memory {measured['peak_memory_mib']} MiB"])


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
