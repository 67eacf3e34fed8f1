"""Classify photos with this bundle: `python examples/infer.py photo.jpg ...`; copy from here into your own program.

Needs onnxruntime, numpy and Pillow. Without photos it runs the bundle's test vectors and prints PASS. Exit code 1 when
a photo cannot be read, or a vector does not pass.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BUNDLE = Path(__file__).resolve().parent.parent
VECTORS = BUNDLE / "test_vectors" / "vectors.json"


def read(photo: Path, value_range: Any = None) -> Any:
    """Pixels `[height, width, 3]` uint8 as a person sees them: upright, transparency over white, RGB.

    `value_range` is what becomes 0 and 255 of float and 32-bit images. Damaged files raise nearly anything.
    """
    with Image.open(photo) as image:
        sixteen = image.mode.startswith("I;16") or (image.mode, image.format) == (
            "I",
            "PNG",
        )  # older versions of Pillow
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        upright = eight_bits(upright, (0, 65535) if sixteen else value_range)
    upright = upright.convert("RGBA")
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))


def eight_bits(image: Any, value_range: Any) -> Any:
    """An image of whole or float numbers as 8-bit grey: `value_range` becomes 0 to 255, what is outside is clipped."""
    if value_range is None:
        raise ValueError(f"no 8-bit image ({image.mode}), and the training data had none like it; scale it to 0 to 255")
    low, high = value_range
    values = np.nan_to_num(np.asarray(image).astype(float), nan=low, posinf=high, neginf=low)
    grey = Image.fromarray(np.rint(np.clip((values - low) / (high - low or 1) * 255, 0, 255)).astype(np.uint8))
    clear = image.info.get("transparency")  # of 16-bit PNG: one value that is transparent
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def training_range(session: Any) -> Any:
    """`value_range` of preprocess.json, (low, high) or None, as the model knows it."""
    return json.loads(session.get_modelmeta().custom_metadata_map.get("autoft.preprocess", "{}")).get("value_range")


def probabilities(session: Any, pixels: Any) -> Any:
    """One probability a class, in the order of labels.json."""
    batched = len(session.get_inputs()[0].shape) == 4
    return session.run(["probabilities"], {"image": pixels[None] if batched else pixels})[0].reshape(-1)


def classify(session: Any, photos: list[str]) -> int:
    """Print label and probability of each photo; the exit code. One that cannot be read does not stop the rest."""
    labels, value_range = json.loads((BUNDLE / "labels.json").read_text(encoding="utf-8")), training_range(session)
    code = 0
    for photo in photos:
        try:
            pixels = read(Path(photo), value_range)
        except Exception as error:
            print(f"{photo} cannot be read: {' '.join(str(error).split())}", file=sys.stderr)
            code = 1
            continue
        answer = probabilities(session, pixels)
        print(f"{photo}: {labels[answer.argmax()]} {answer.max():.4f}")
    return code


def run_vectors(session: Any) -> str:
    """What is wrong with the answers to the test vectors; empty when they pass."""
    if not VECTORS.is_file():
        return "there are no test vectors here, they were left out; name photos to classify"
    test = json.loads(VECTORS.read_text(encoding="utf-8"))
    for vector in test["vectors"]:
        answer = probabilities(session, read(BUNDLE / vector["png"]))
        if not np.allclose(answer, vector["probabilities"], rtol=0, atol=test["tolerance"]):
            return f"FAIL: {vector['name']} gives {answer}, expected {vector['probabilities']}"
    print(f"PASS: {len(test['vectors'])} vectors")
    return ""


def main() -> int:
    """The exit code with the arguments of the command line."""
    parser = argparse.ArgumentParser(usage="python examples/infer.py PHOTO ...", description=__doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="without any, the test vectors are run")
    photos = parser.parse_args().photos
    session = onnxruntime.InferenceSession(str(BUNDLE / "model.onnx"), providers=["CPUExecutionProvider"])
    if photos:
        return classify(session, photos)
    if problem := run_vectors(session):
        print(problem, file=sys.stderr)
        return 1
    parser.print_usage(sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
