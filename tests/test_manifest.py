from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.bundle.manifest import write_manifest
from autoft.values.bundle import MANIFEST, MIN_ONNXRUNTIME, SCHEMA, FileRecord, Manifest
from autoft.values.codec import decode

VERSIONS = {"autoft": "0.1.0", "torch": "2.99"}
CREATED = "2026-01-02T03:04:05+00:00"


def write(folder: Path) -> Manifest:
    return write_manifest(folder, VERSIONS, "f1n6e7", CREATED)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name, content in {
        "model.onnx": b"\0" * 70_000,
        "b.json": b"{}",
        "examples/deep/manifest.json": b"",
        "a": b"a",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_every_file_is_listed_with_its_digest_and_size(bundle: Path) -> None:
    manifest = write(bundle)
    assert list(manifest.files) == ["a", "b.json", "examples/deep/manifest.json", "model.onnx"]
    for name, record in manifest.files.items():
        content = (bundle / name).read_bytes()
        assert record == FileRecord(hashlib.sha256(content).hexdigest(), len(content))


def test_it_says_what_made_the_bundle(bundle: Path) -> None:
    manifest = write(bundle)
    assert (manifest.schema, manifest.min_onnxruntime) == (SCHEMA, MIN_ONNXRUNTIME)
    assert (manifest.versions, manifest.data_fingerprint, manifest.created) == (VERSIONS, "f1n6e7", CREATED)


def test_what_is_written_reads_back_and_is_for_people_too(bundle: Path) -> None:
    manifest = write(bundle)
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    assert decode(Manifest, text) == manifest
    assert len(text.splitlines()) > len(manifest.files)


def test_writing_again_lists_the_same_and_leaves_nothing_behind(bundle: Path) -> None:
    before = set(bundle.rglob("*"))
    assert write(bundle) == write(bundle)
    assert set(bundle.rglob("*")) - before == {bundle / MANIFEST}


@pytest.mark.parametrize("name", ["link", "examples/link", MANIFEST])
@pytest.mark.parametrize("target", ["a", "examples", "nowhere"])
def test_a_symbolic_link_is_refused_by_name(bundle: Path, name: str, target: str) -> None:
    (bundle / name).symlink_to(bundle / target)
    with pytest.raises(ValueError, match=f"^{name} in the bundle is no plain file"):
        write(bundle)
    assert (bundle / MANIFEST).is_symlink() or not (bundle / MANIFEST).exists()


def test_a_pipe_is_refused_and_not_read(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")
    with pytest.raises(ValueError, match="pipe in the bundle is no plain file"):
        write(bundle)


@given(content=st.binary(max_size=200), position=st.integers(0, 199))
def test_a_changed_byte_changes_the_digest(
    content: bytes, position: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "file").write_bytes(content)
    before = write(folder).files["file"]
    other = bytearray(content or b"x")
    other[position % len(other)] ^= 1
    (folder / "file").write_bytes(other)
    assert write(folder).files["file"].sha256 != before.sha256
