"""What the doctor says of machines that are not well."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest

from autoft.shell import doctor
from autoft.study import machine
from autoft.values.counts import counted


def test_ray_without_a_place_for_its_sockets(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    check = doctor.check_ray_folder()
    assert (check.name, check.status) == ("ray's folder", "warn")
    assert "too long" in check.detail
    assert "--runner inline" in check.fix


def test_nobody_without_a_home(monkeypatch):
    for name in ("AUTOFT_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    cache, home, hub = doctor.check_cache(), doctor.check_home(), doctor.check_hub()
    assert (cache.status, "AUTOFT_CACHE_DIR" in cache.fix) == ("fail", True)
    assert (home.status, "HOME" in home.fix) == ("warn", True)
    assert (hub.status, "HF_HOME" in hub.fix) == ("warn", True)


@pytest.mark.parametrize(("free", "status", "workers"), [(1, "warn", 0), (4, "warn", 1), (60, "ok", 39)])
def test_memory_is_counted_in_workers(monkeypatch, free, status, workers):
    monkeypatch.setattr(machine, "memory", lambda: free * machine.GIB)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    check = doctor.check_memory()
    assert check.status == status
    assert f"enough for {counted(workers, 'worker')} of" in check.detail


def test_why_trials_on_one_gpu_take_turns_is_said(monkeypatch):
    monkeypatch.setattr(doctor.mps.shutil, "which", lambda name: None)
    assert doctor.check_mps() == doctor.Check("mps", "ok", "not started: there is no nvidia-cuda-mps-control")
    monkeypatch.setattr(doctor.mps, "why_not", lambda: None)
    assert doctor.check_mps().detail == "a search that shares a GPU starts a daemon"


def test_cores_name_the_quota(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert doctor.check_cores().detail == "1 of 16 by affinity or quota"


@pytest.fixture
def online(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_refuses_a_page_is_there(online, monkeypatch):
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert doctor.check_hub_answers().status == "ok"
        server.shutdown()


def test_a_hub_that_is_not_there(online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check = doctor.check_hub_answers()
    assert check.status == "warn"
    assert "http://127.0.0.1:9" in check.detail
    assert "--offline" in check.fix


def test_a_hub_that_is_silent_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        check = doctor.check_hub_answers()
    assert check.status == "warn"
    assert time.monotonic() - began < 5


def test_offline_nobody_is_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "_what_is_wrong", lambda url: pytest.fail("asked"))
    assert doctor.check_hub_answers().detail == "not asked: offline"
