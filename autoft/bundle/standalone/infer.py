"""What this bundle's model says of photos: `python examples/infer.py photo.jpg ...`; copy it into your own program.

Needs onnxruntime, numpy and Pillow. Without photos it runs the bundle's test vectors and prints PASS. Exit code 1 when
a photo cannot be read, or a vector does not pass; 2 without those packages.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else onnxruntime from 1.29 on sends events to its maker
try:
    import numpy as np
    import onnxruntime
    from PIL import Image
except ImportError as error:
    if __name__ != "__main__":
        raise
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    print(f"{error}; pip install -U onnxruntime numpy pillow", file=sys.stderr)
    sys.exit(2)

try:
    import pi_heif
except ImportError:
    pass
else:
    pi_heif.register_heif_opener()  # photos of phones (HEIC) are read where it is installed

BUNDLE = Path(__file__).resolve().parent.parent
VECTORS = BUNDLE / "test_vectors" / "vectors.json"
EXACT_PIXELS = 100_000_000  # an image of more is halved, as for training: at this it takes 2.4 GiB
MAX_PIXELS = 256_000_000  # one of more is refused
Image.init()
# Left out is what Pillow only recognises, or opens by starting Ghostscript: EPS, and IPTC, in which one may lie.
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
UPRIGHT = dict(  # by EXIF orientation
    enumerate(
        ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2
    )
)


def read(photo: Path, value_range: Any = None) -> Any:
    """Pixels `[height, width, 3]` uint8 as a person sees them: upright, transparency over white, RGB.

    `value_range` is what becomes 0 and 255 of float and 32-bit images. Damaged files raise nearly anything.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many
    with Image.open(photo, formats=FORMATS) as image:
        # Pillow opens 16-bit PGM as one of 32 bits, scaled to 65535; its older versions 16-bit PNG too.
        sixteen = image.mode.startswith("I;16") or (image.mode, image.format) in (("I", "PPM"), ("I", "PNG"))
        if is_large(image):
            image.draft(None, (image.width // 2, image.height // 2))  # a JPEG is decoded at half its size
        image.load()
        turn = turn_of(image)
        seen = halved(image) if is_large(image) else image
    if turn:
        seen = seen.transpose(Image.Transpose[turn])
    if seen.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        seen = eight_bits(seen, (0, 65535) if sixteen else value_range)
    if not is_transparent(seen):
        return np.asarray(seen.convert("RGB"))
    layer = (seen.convert("LA") if seen.mode == "La" else seen).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))


def is_large(image: Any) -> bool:
    """Whether it has to be halved; an image that has too many pixels for that raises `ValueError`."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS // 1_000_000} megapixels")
    return bool(pixels > EXACT_PIXELS)


def halved(image: Any) -> Any:
    """The means of two by two pixels, in a mode that has means."""
    if image.mode.startswith("I;16"):
        return image.convert("I").reduce(2)
    if is_transparent(image):
        return (image if image.mode == "RGBA" else image.convert("RGBA")).reduce(2)
    return (image.convert("RGB") if image.mode in ("P", "1") else image).reduce(2)


def turn_of(image: Any) -> Any:
    """The name of the transposition that turns it upright, or None; damaged EXIF data counts as none."""
    try:
        return UPRIGHT.get(image.getexif().get(0x0112))
    except Exception:
        return None


def is_transparent(image: Any) -> bool:
    """Whether it has an alpha channel, or a palette or colour with one."""
    palette = image.palette.mode if image.mode == "P" else ""
    return (image.mode + palette).endswith(("A", "a")) or "transparency" in image.info


def eight_bits(image: Any, value_range: Any) -> Any:
    """An image of whole or float numbers as 8-bit grey: `value_range` becomes 0 to 255, what is outside is clipped."""
    values = np.asarray(image)
    blocks = np.array_split(values, 1 + values.size // 2**22)  # as doubles take eight bytes a pixel
    if not any((np.isfinite(block) & (np.abs(block) < 1e30)).any() for block in blocks):
        raise ValueError("no finite pixel values")
    if value_range is None:
        raise ValueError(f"no 8-bit image ({image.mode}), and the training data had none like it; scale it to 0 to 255")
    grey = Image.fromarray(np.concatenate([scaled(block.astype(float), *value_range) for block in blocks]))
    clear = image.info.get("transparency")  # of 16-bit PNG: one value that is transparent
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def scaled(values: Any, low: float, high: float) -> Any:
    """0 to 255 for `low` to `high`; NaN counts as `low`."""
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint(np.clip((values - low) / (high - low or 1) * 255, 0, 255)).astype(np.uint8)


def labels_of(session: Any) -> list[str]:
    """What labels.json holds. Raises `ValueError` unless the model says the same: wrong names look like right ones."""
    labels: list[str] = json.loads((BUNDLE / "labels.json").read_text(encoding="utf-8"))
    if labels != json.loads(session.get_modelmeta().custom_metadata_map["autoft.labels"]):
        raise ValueError("labels.json differs from the labels in model.onnx's metadata")
    return labels


def training_range(session: Any) -> Any:
    """`value_range` of preprocess.json, (low, high) or None, as the model knows it."""
    return json.loads(session.get_modelmeta().custom_metadata_map.get("autoft.preprocess", "{}")).get("value_range")


def answers(session: Any, pixels: Any) -> dict[str, Any]:
    """Every output by name, each of one row.

    One number a name, in the order of labels.json: `probabilities`, or `values` where numbers are predicted. Where an
    image may have any of the labels, `present` is 1 for those that it has.
    """
    batched = len(session.get_inputs()[0].shape) == 4
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"image": pixels[None] if batched else pixels})
    return {name: output.reshape(-1) for name, output in zip(names, found)}  # noqa: B905  they are of one length


def in_words(answer: dict[str, Any], labels: list[str]) -> str:
    """What the model says of an image: the class, the labels it has, or the numbers."""
    if "values" in answer:
        return ", ".join(f"{label} {value:.6g}" for label, value in zip(labels, answer["values"]))  # noqa: B905
    chances = answer["probabilities"]
    if "present" in answer:
        found = [f"{labels[index]} {chances[index]:.4f}" for index in answer["present"].nonzero()[0]]
        return ", ".join(found) or "no label"
    return f"{labels[chances.argmax()]} {chances.max():.4f}"


def tell(session: Any, labels: list[str], photos: list[str]) -> int:
    """Print what the model says of each photo; the exit code. One that cannot be read does not stop the rest."""
    value_range, code = training_range(session), 0
    for photo in photos:
        name = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], photo)  # a line a photo
        try:
            if Path(photo).is_dir():
                raise IsADirectoryError("it is a folder; name the photos in it")
            pixels = read(Path(photo), value_range)
        except Exception as error:
            of_a_phone = Path(photo).suffix.lower() in (".heic", ".heif", ".hif") and "pi_heif" not in sys.modules
            hint = "; pip install pi-heif makes photos of phones readable" if of_a_phone else ""
            print(f"{name} cannot be read: {' '.join(str(error).split())}{hint}", file=sys.stderr)
            code = 1
            continue
        print(f"{name}: {in_words(answers(session, pixels), labels)}")
    return code


def run_vectors(session: Any) -> str:
    """What is wrong with the answers to the test vectors; empty when they pass."""
    if not VECTORS.is_file():
        return "there are no test vectors here, they were left out; name photos"
    test = json.loads(VECTORS.read_text(encoding="utf-8"))
    for vector in test["vectors"]:
        answer = answers(session, read(BUNDLE / vector["png"]))
        name = "values" if "values" in answer else "probabilities"
        found, expected = answer[name], np.array(vector[name])
        if not (abs(found - expected) <= test["tolerance"] * np.array(test.get("units") or 1)).all():
            return f"FAIL: {vector['name']} gives {found}, expected {expected}"
    ran = len(test["vectors"])
    print(f"PASS: {ran} vector{'s' * (ran != 1)}")
    return ""


def main() -> int:
    """The exit code with the arguments of the command line."""
    parser = argparse.ArgumentParser(usage="python examples/infer.py PHOTO ...", description=__doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="without any, the test vectors are run")
    photos = parser.parse_args().photos
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal has no letters for
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of more than half the limit
    try:
        session = onnxruntime.InferenceSession(str(BUNDLE / "model.onnx"), providers=["CPUExecutionProvider"])
        labels = labels_of(session)
        problem = "" if photos else run_vectors(session)
    except Exception as error:  # onnxruntime's share no class
        print(f"the bundle is not whole: {' '.join(str(error).split())}; verify.py tells more", file=sys.stderr)
        return 1
    if photos:
        return tell(session, labels, photos)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    parser.print_usage(sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
