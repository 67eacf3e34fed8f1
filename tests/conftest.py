"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("autoft", deadline=None)  # a benchmark measures speed, a test never does
settings.load_profile("autoft")


@pytest.fixture
def tiny_images(tmp_path: Path) -> Path:
    """A folder of 3 classes x 12 PNG of 32 px: noise around red, green and blue, easy to tell apart."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        folder = tmp_path / "tiny_images" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "tiny_images"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test, so that none leaves anything in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(folder))
    return folder
