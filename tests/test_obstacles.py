"""What keeps Ray from starting is said in one line, before it is tried."""

from __future__ import annotations

import pytest

from autoft.errors import StudyError
from autoft.runners import obstacles


@pytest.fixture(autouse=True)
def no_folder_named(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_there_is_none_here(monkeypatch):
    assert obstacles.ray_obstacle() is None


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets(tmp_path, monkeypatch, name):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
    found = obstacles.ray_obstacle()
    assert found.startswith(f"{name} ({folder}) is ")
    assert "too long" in found
    assert "RAY_TMPDIR" in found
    assert "--runner inline" in found


def test_the_limit_is_that_of_bytes_not_of_characters(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "ü" * 20)  # no folder, but that is asked later
    assert "too long" in obstacles.ray_obstacle()


def test_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    assert "cannot be written" in obstacles.ray_obstacle()


def test_a_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/no/such")
    assert "is no folder" in obstacles.ray_obstacle()


def test_a_full_folder(monkeypatch):
    usage = obstacles.shutil.disk_usage("/tmp")
    monkeypatch.setattr(obstacles.shutil, "disk_usage", lambda path: usage._replace(free=obstacles.MIB))
    assert "1 MiB free" in obstacles.ray_obstacle()


@pytest.mark.parametrize(("home", "there"), [("/proc", False), ("", True)])
def test_a_home_that_cannot_be_written_is_no_place_for_a_token(tmp_path, monkeypatch, home, there):
    monkeypatch.setenv("HOME", home or str(tmp_path))
    assert obstacles.home_for_token() is there


def test_ray_is_not_tried_against_an_obstacle(monkeypatch):
    ray = pytest.importorskip("autoft.runners.ray")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/no/such")
    monkeypatch.setattr(ray.ray, "init", lambda **options: pytest.fail("tried"))
    with pytest.raises(StudyError, match=r"Ray cannot start: RAY_TMPDIR .*--runner inline"):
        ray.RayRunner().warm_up(1)


def test_whatever_else_ray_says_is_one_line(monkeypatch):
    ray = pytest.importorskip("autoft.runners.ray")

    def fails(**options):
        raise RuntimeError("no\nsuch luck")

    monkeypatch.setattr(ray.ray, "init", fails)
    with pytest.raises(StudyError, match=r"^Ray cannot start \(RuntimeError: no such luck\); autoft doctor"):
        ray.RayRunner().warm_up(1)
