"""The cache folder: its limit holds, and nothing that a live process uses is evicted."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from autoft.errors import UserError
from autoft.system import disk_cache
from autoft.system.disk_cache import alone, cache_limit, cache_root, new_files, open_kept

KIB = 2**10


def put(path: Path, size: int, age: float = 0.0) -> Path:
    with new_files({path: size}) as (file,):
        file.write(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def limit(monkeypatch):
    def set_limit(size: int):
        monkeypatch.setenv("AUTOFT_CACHE_LIMIT", str(size / 2**30))

    return set_limit


def in_another_process(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def hold_for_ever(path: Path, ready: Path):
    pixels = np.memmap(open_kept(path), np.uint8, "r")
    ready.touch()
    while True:
        time.sleep(pixels[0] and 1)


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_limit_for_pixels_and_features(own_cache, limit):
    limit(25 * KIB)
    old = put(own_cache / "features" / "old.npy", 10 * KIB, age=200)
    used = put(own_cache / "pixels" / "used.npy", 10 * KIB, age=300)
    open_kept(used).close()
    new = put(own_cache / "pixels" / "new.npy", 10 * KIB)
    assert not old.exists() and used.exists() and new.exists()


def test_more_than_the_limit_is_refused_and_evicts_nothing(own_cache, limit):
    limit(25 * KIB)
    old = put(own_cache / "pixels" / "old.npy", 10 * KIB)
    with pytest.raises(UserError, match=r"limit.*AUTOFT_CACHE_LIMIT"):
        put(own_cache / "pixels" / "new.npy", 26 * KIB)
    assert old.exists()


def test_builders_at_the_same_time_keep_the_limit_together(own_cache, limit):
    limit(25 * KIB)
    with new_files({own_cache / "pixels" / "one.npy": 20 * KIB}), pytest.raises(UserError, match="in use"):
        put(own_cache / "features" / "two.npy", 10 * KIB)
    put(own_cache / "features" / "two.npy", 10 * KIB)


def test_a_map_in_another_process_is_not_evicted_until_it_is_killed(own_cache, limit, tmp_path):
    limit(25 * KIB)
    held = put(own_cache / "pixels" / "held.npy", 20 * KIB)
    holder = in_another_process(hold_for_ever, held, tmp_path / "ready")
    until((tmp_path / "ready").exists)
    with pytest.raises(UserError, match="in use"):
        put(own_cache / "pixels" / "new.npy", 20 * KIB)
    assert held.exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    put(own_cache / "pixels" / "new.npy", 20 * KIB)
    assert not held.exists()


def test_a_map_keeps_its_file_after_the_file_object_is_closed(own_cache, limit):
    limit(25 * KIB)
    path = put(own_cache / "pixels" / "a.npy", 20 * KIB)
    with open_kept(path) as file:
        pixels = np.memmap(file, np.uint8, "r")
    part = pixels[:5]
    del pixels
    with pytest.raises(UserError):
        put(own_cache / "pixels" / "b.npy", 20 * KIB)
    assert part.tobytes() == b"xxxxx"
    del part
    put(own_cache / "pixels" / "b.npy", 20 * KIB)


def test_what_dead_builders_left_is_removed_and_a_live_ones_stays(own_cache):
    dead = own_cache / "pixels" / ".dead.npy.1.part"
    dead.parent.mkdir()
    dead.write_bytes(b"x")
    with new_files({own_cache / "pixels" / "live.npy": KIB}):
        put(own_cache / "pixels" / "other.npy", KIB)
        assert not dead.exists() and len(list(dead.parent.glob(".live*"))) == 1
    assert (own_cache / "pixels" / "live.npy").exists()


def test_where_there_are_no_locks_what_was_used_lately_stays(own_cache, limit, monkeypatch):
    def refuse(*_: object):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(disk_cache.fcntl, "flock", refuse)
    limit(25 * KIB)
    old = put(own_cache / "pixels" / "old.npy", 10 * KIB, age=4000)
    recent = put(own_cache / "pixels" / "recent.npy", 10 * KIB, age=3000)
    put(own_cache / "pixels" / "new.npy", 10 * KIB)
    assert not old.exists() and recent.exists()


def test_a_block_is_for_one_at_a_time(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(20):
            with alone(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 60 and max(most) == 1 and not (tmp_path / "lock").exists()


def test_a_disk_without_room_is_said(own_cache, monkeypatch):
    put(own_cache / "pixels" / "old.npy", KIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"0\.0 GiB free.*AUTOFT_CACHE_DIR"):
        put(own_cache / "pixels" / "new.npy", KIB)
    assert not list((own_cache / "pixels").iterdir())  # it tried to make room


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_root() == Path(os.environ["AUTOFT_CACHE_DIR"])
    monkeypatch.delenv("AUTOFT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "autoft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "autoft"


def test_a_user_without_a_home(monkeypatch):
    def nobody(_: int):
        raise KeyError

    for name in ("AUTOFT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="AUTOFT_CACHE_DIR"):
        cache_root()


def test_the_limit(monkeypatch):
    assert cache_limit() == 20 * 2**30
    for text in ("banana", "inf", "nan"):
        monkeypatch.setenv("AUTOFT_CACHE_LIMIT", text)
        with pytest.raises(UserError, match="AUTOFT_CACHE_LIMIT"):
            cache_limit()
