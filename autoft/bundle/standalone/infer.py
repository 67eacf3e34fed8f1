"""Classify photos with this bundle: `python examples/infer.py photo.jpg ...`; copy from here into your own program.

Needs onnxruntime, numpy and Pillow. Without photos it runs the bundle's test vectors and prints PASS.
"""
# ruff: noqa: T201

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

USAGE = "usage: python examples/infer.py PHOTO ..."
BUNDLE = Path(__file__).resolve().parent.parent


def read(photo: Path) -> Any:
    """Pixels `[height, width, 3]` uint8 as a person sees them: upright, transparency over white, RGB."""
    try:
        with Image.open(photo) as image:
            upright = ImageOps.exif_transpose(image)
    except OSError as error:
        sys.exit(f"{photo} cannot be read: {error}\n{USAGE}")
    if upright.mode.startswith(("I", "F")):  # 16 bits or more; Pillow would cut them off at 255
        sys.exit(f"{photo} is no 8-bit image ({upright.mode}); scale it to 0 to 255 first")
    upright = upright.convert("RGBA")
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))


def probabilities(session: Any, pixels: Any) -> Any:
    """One probability a class, in the order of labels.json."""
    batched = len(session.get_inputs()[0].shape) == 4
    return session.run(["probabilities"], {"image": pixels[None] if batched else pixels})[0].reshape(-1)


def main(photos: list[str]) -> None:
    """Print label and probability of each photo, or whether the test vectors pass."""
    session = onnxruntime.InferenceSession(str(BUNDLE / "model.onnx"), providers=["CPUExecutionProvider"])
    labels = json.loads((BUNDLE / "labels.json").read_text(encoding="utf-8"))
    for photo in photos:
        answer = probabilities(session, read(Path(photo)))
        print(f"{photo}: {labels[answer.argmax()]} {answer.max():.4f}")
    if not photos:
        test = json.loads((BUNDLE / "test_vectors/vectors.json").read_text(encoding="utf-8"))
        for vector in test["vectors"]:
            answer = probabilities(session, read(BUNDLE / vector["png"]))
            if not np.allclose(answer, vector["probabilities"], rtol=0, atol=test["tolerance"]):
                sys.exit(f"FAIL: {vector['name']} gives {answer}, expected {vector['probabilities']}")
        print(f"PASS: {len(test['vectors'])} vectors")
        print(USAGE, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
