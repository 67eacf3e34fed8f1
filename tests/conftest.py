"""What all tests share."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import EpsImagePlugin, Image

from autoft.system import starting

settings.register_profile("autoft", deadline=None)  # a benchmark measures speed, a test never does
settings.load_profile("autoft")


@pytest.fixture(scope="session", autouse=True)
def as_quick_as_where_seconds_were_measured() -> None:
    """What this process promises does not depend on the machine that the tests run on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "_cpu_seconds", lambda: starting.REFERENCE_SECONDS)
        assert starting.start_slowness() == 1.0  # which is kept


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


@pytest.fixture
def started(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is there once somebody has started Ghostscript."""
    folder = tmp_path_factory.mktemp("ghostscript")
    (stub := folder / "gs").write_text(f"#!/bin/sh\ntouch '{folder}/started'\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # whether there is one, which Pillow looks up once
    return folder / "started"


@pytest.fixture(params=["EPS", "IPTC"])
def postscript(request: pytest.FixtureRequest) -> bytes:
    """A file for which Pillow starts Ghostscript: an EPS, or an IPTC record with one inside."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    if request.param == "EPS":
        return buffer.getvalue()
    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\4"), (3, 30, b"\0\4"), (3, 120, b"\5"), (8, 10, buffer.getvalue())]
    return b"".join(struct.pack(">BBBH", 0x1C, *kind, len(data)) + data for *kind, data in fields)


@pytest.fixture(scope="session")
def node_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder below which Node finds onnxruntime-node; some hundred MB, so it is not kept."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    place = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--prefix", place, "--no-audit", "--no-fund", "onnxruntime-node"]
    env = os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield place
    shutil.rmtree(place)
