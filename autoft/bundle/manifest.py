"""manifest.json: what a bundle consists of, so that a change is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from autoft.system.files import sha256, write_atomic
from autoft.values.bundle import MANIFEST, MIN_ONNXRUNTIME, SCHEMA, FileRecord, Manifest, Origin
from autoft.values.codec import encode_readable


def write_manifest(
    folder: Path, versions: Mapping[str, str], data_fingerprint: str, created: str, origin: Origin | None = None
) -> Manifest:
    """Write `folder`/manifest.json, which lists every other file below `folder`; gives what it holds.

    Raises `ValueError` for a symbolic link and for anything else that is neither file nor folder: what it leads to
    does not travel with the bundle. `folder` is then as it was.
    """
    manifest = Manifest(
        schema=SCHEMA,
        files={name: _record(folder / name) for name in sorted(_names(folder))},
        versions=dict(versions),
        data_fingerprint=data_fingerprint,
        min_onnxruntime=MIN_ONNXRUNTIME,
        created=created,
        origin=origin,
    )
    write_atomic(folder / MANIFEST, encode_readable(manifest))
    return manifest


def _names(folder: Path) -> Iterator[str]:
    """Paths of all files but the manifest, relative to `folder`, with forward slashes."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name} in the bundle is no plain file; put a copy of what it leads to in its place")
        if path.is_file() and name != MANIFEST:
            yield name


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256(path), path.stat().st_size)
