"""The pixel caches: decoded once, in little memory, harmless to share and to delete."""

from __future__ import annotations

import os
import shutil
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoft.data import cache as module
from autoft.data.cache import PixelCache, build, cache_limit, cache_root
from autoft.data.decode import decode, preprocess
from autoft.data.parallel import ordered_map
from autoft.errors import UserError
from autoft.types import Preprocess


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


def caches(*sizes: int, fingerprint: str = "f") -> list[PixelCache]:
    return [PixelCache(fingerprint, size) for size in sizes]


def names(folder: Path) -> set[str]:
    return {path.suffix for path in (folder / "pixels").iterdir()}


def test_rows_are_the_preprocessed_images(tiny_images):
    files = files_of(tiny_images)
    small, large = caches(8, 40)
    assert build([small, large], files, 2) == {}
    for cache in (small, large):
        pixels = cache.open()
        assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
        assert pixels.shape == (36, cache.size, cache.size, 3) and pixels.dtype == np.uint8
        recipe = Preprocess(cache.size, (0, 0, 0), (1, 1, 1))
        for row in (0, 17, 35):
            np.testing.assert_array_equal(pixels[row], preprocess(decode(files[row]), recipe))


def test_each_file_is_decoded_once_for_all_sizes(tiny_images, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "decode", lambda path: decoded.append(path) or decode(path))
    files = files_of(tiny_images)
    build(caches(8, 16, 24), files, 2)
    build(caches(8, 24), files, 2)
    assert sorted(decoded) == files
    build(caches(8, 32), files, 2)
    assert len(decoded) == 2 * len(files)


def test_unreadable_rows_are_zeros_with_a_reason_that_is_remembered(tiny_images):
    files = files_of(tiny_images)
    files[5].write_text("<html>")
    for _ in range(2):
        assert build(caches(8), files, 2) == {5: "not an image: HTML"}
    assert not caches(8)[0].open()[5].any()


def test_the_build_needs_little_memory(tmp_path, own_cache):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    build(caches(8), [path], 1)  # imports and tables
    tracemalloc.start()
    try:
        build(caches(160), [path] * 600, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caches(160)[0].path.stat().st_size > 600 * 160 * 160 * 3
    assert peak < 4e6  # of 46 MB


def test_ordered_map_keeps_order_and_runs_only_a_little_ahead():
    started = []
    results = ordered_map(lambda item: started.append(item) or item, range(100), 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(started) <= 10 + 6
    assert list(results) == list(range(10, 100))


def test_a_failure_in_a_thread_comes_out():
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // item, [1, 0, 1], 2))


def test_builders_at_the_same_time_do_no_harm(tiny_images, own_cache):
    files = files_of(tiny_images)
    gate = threading.Barrier(4)

    def one(_: int):
        gate.wait()
        build(caches(24), files, 1)
        return np.array(caches(24)[0].open())

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(one, range(4))
    assert first.any() and all(np.array_equal(first, other) for other in others)
    assert names(own_cache) == {".npy", ".json"} and len(list((own_cache / "pixels").iterdir())) == 2


def test_nothing_is_left_of_a_build_that_breaks_off(tiny_images, own_cache, monkeypatch):
    def stop(_: Path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        build(caches(8), files_of(tiny_images), 2)
    assert not list((own_cache / "pixels").iterdir())


def test_a_damaged_or_half_deleted_cache_is_built_again(tiny_images):
    files, (cache,) = files_of(tiny_images), caches(8)
    build([cache], files, 1)
    good = np.array(cache.open())
    for damage in (cache.notes.unlink, cache.path.unlink, lambda: os.truncate(cache.path, 500)):
        damage()
        assert cache.unreadable(len(files)) is None
        build([cache], files, 1)
        np.testing.assert_array_equal(cache.open(), good)
    os.truncate(cache.path, 0)
    with pytest.raises(FileNotFoundError):
        cache.open()


def test_the_least_recently_used_is_evicted_and_never_one_in_use(tiny_images, monkeypatch):
    files = files_of(tiny_images)
    each = 36 * 32 * 32 * 3 + 128
    monkeypatch.setenv("AUTOFT_CACHE_LIMIT", str(2.5 * each / 2**30))
    old, used, new = (PixelCache(name, 32) for name in ("old", "used", "new"))
    for age, cache in ((200, used), (100, old)):
        build([cache], files, 1)
        os.utime(cache.path, (time.time() - age,) * 2)
    used.open()
    build([new], files, 1)
    assert not old.path.exists() and not old.notes.exists() and used.path.exists() and new.path.exists()
    monkeypatch.setenv("AUTOFT_CACHE_LIMIT", "0")
    build([new, PixelCache("new", 16)], files, 1)
    assert new.path.exists() and not used.path.exists()


def test_what_killed_builders_left_is_removed(tiny_images, own_cache):
    (own_cache / "pixels").mkdir()
    dead, alive = own_cache / "pixels" / ".dead.tmp", own_cache / "pixels" / ".alive.tmp"
    for path in (dead, alive):
        path.write_bytes(b"x")
    os.utime(dead, (time.time() - 7200,) * 2)
    build(caches(8), files_of(tiny_images), 1)
    assert not dead.exists() and alive.exists()


def test_a_cache_folder_that_cannot_be_written(tiny_images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="AUTOFT_CACHE_DIR"):
        build(caches(8), files_of(tiny_images), 1)


def test_a_disk_without_room(tiny_images, monkeypatch, own_cache):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"1?0\.\d GiB free.*AUTOFT_CACHE_DIR"):
        build(caches(8), files_of(tiny_images), 1)
    assert not list((own_cache / "pixels").iterdir())


def test_a_disk_that_fills_up_meanwhile(tiny_images, monkeypatch, own_cache):
    def full(*_: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(UserError, match=r"No space left.*AUTOFT_CACHE_DIR"):
        build(caches(8), files_of(tiny_images), 1)
    assert not list((own_cache / "pixels").iterdir())


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_root() == Path(os.environ["AUTOFT_CACHE_DIR"])
    monkeypatch.delenv("AUTOFT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "autoft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "autoft"


def test_the_limit(monkeypatch):
    assert cache_limit() == 20 * 2**30
    for text in ("banana", "inf", "nan"):
        monkeypatch.setenv("AUTOFT_CACHE_LIMIT", text)
        with pytest.raises(UserError, match="AUTOFT_CACHE_LIMIT"):
            cache_limit()
