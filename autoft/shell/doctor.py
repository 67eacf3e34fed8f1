"""The checks of `autoft doctor`, each a small function. None of them writes anything that stays."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from autoft.errors import UserError
from autoft.runners.obstacles import ray_folder, ray_obstacle
from autoft.study import machine
from autoft.system import mps
from autoft.values.counts import counted

OLDEST_PYTHON = (3, 11)
MIB, GIB = 2**20, 2**30
LEAST_DISK = 5 * GIB  # weights, pixel caches and checkpoints of a small run
LEAST_MEMORY = 2 * GIB  # a driver and a worker
LEAST_SHARED_MEMORY = 256 * MIB  # ray's object store and its plasma
HUB_SECONDS = 4.0
SAME_INDEX = "pip install --force-reinstall torch torchvision, both from the same index"


@dataclass(frozen=True)
class Check:
    """What one check found; `fix` says what to do about it, where there is something to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def check_python() -> Check:
    """Whether Python is new enough."""
    version = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "fail", version, "autoft needs Python 3.11 or later")
    return Check("python", "ok", version)


def check_packages() -> Check:
    """Whether the distributions that autoft needs are installed, without importing them."""
    needed = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "pydantic", "scikit-learn", "rich")
    missing = [name for name in needed if _version(name) is None]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in needed))


def check_torch() -> Check:
    """Whether torch and torchvision are of one build."""
    pair = f"torch {_version('torch')}, torchvision {_version('torchvision')}"
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:
        if "torchvision::nms" in str(error):
            return Check("torch", "fail", f"{pair} are of different builds: {_cause(error)}", SAME_INDEX)
        return Check("torch", "fail", _cause(error), "pip install torch torchvision")
    return Check("torch", "ok", pair)


def check_timm() -> Check:
    """Whether timm can be imported."""
    return _imported("timm", "timm")


def check_onnx() -> Check:
    """Whether onnx, onnxscript and onnxruntime can be imported."""
    checks = [_imported("onnx", name) for name in ("onnx", "onnxscript", "onnxruntime")]
    broken = [check for check in checks if check.status == "fail"]
    return broken[0] if broken else Check("onnx", "ok", ", ".join(check.detail for check in checks))


def check_ray() -> Check:
    """Whether the Ray runner can be used; without it trials run one at a time."""
    if importlib.util.find_spec("ray") is None:
        return Check("ray", "warn", "not installed: trials run one at a time", "pip install 'ray[tune]'")
    return _imported("ray", "ray.tune", "ray", fix="pip install 'ray[tune]', or search with --runner inline")


def check_gpus() -> Check:
    """Which GPUs torch sees."""
    try:
        cuda = importlib.import_module("torch").cuda
        names = [cuda.get_device_name(number) for number in range(cuda.device_count())]
    except Exception as error:
        return Check("gpus", "warn", f"unknown: {_cause(error)}", "see the check of torch")
    return Check("gpus", "ok", ", ".join(names) or "none, searching on the CPU")


def check_mps() -> Check:
    """Whether trials that share a GPU can run on it at the same time."""
    reason = mps.why_not()
    detail = "a search that shares a GPU starts a daemon" if reason is None else f"not started: {reason}"
    return Check("mps", "ok", detail)


def check_cores() -> Check:
    """How many cores this process may use."""
    usable, there = machine.cores(), os.cpu_count() or 1
    return Check("cores", "ok", str(usable) if usable == there else f"{usable} of {there} by affinity or quota")


def check_memory() -> Check:
    """How much memory is free, on the machine or in this container, and for how many workers that is enough."""
    free = machine.memory()
    workers = max(0, free - machine.WORKER_BYTES) // machine.WORKER_BYTES
    detail = f"{_size(free)} free, enough for {counted(workers, 'worker')} of {_size(machine.WORKER_BYTES)}"
    if free < LEAST_MEMORY:
        return Check("memory", "warn", detail, "use --workers 1 and --backbones with few parameters")
    if workers < machine.cores():
        return Check(
            "memory", "warn", detail, f"a search takes {counted(max(1, workers), 'worker')}; free memory for more"
        )
    return Check("memory", "ok", detail)


def check_shared_memory() -> Check:
    """Whether /dev/shm, where Ray keeps its objects, is large enough; containers often have 64 MiB."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Check("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(shared).free
    if free < LEAST_SHARED_MEMORY:
        fix = "start the container with --shm-size=1g; Ray uses its folder instead, which is slower"
        return Check("shared memory", "warn", f"{_size(free)} free in /dev/shm", fix)
    return Check("shared memory", "ok", f"{_size(free)} free")


def check_ray_folder() -> Check:
    """Whether Ray can keep its sockets and logs where it wants to."""
    if obstacle := ray_obstacle():
        return Check("ray's folder", "warn", *obstacle.rsplit("; ", 1))
    return Check("ray's folder", "ok", str(ray_folder()))


def check_cache() -> Check:
    """Whether the cache folder can be written, and has room."""
    from autoft.system.disk_cache import cache_root

    fix = "set AUTOFT_CACHE_DIR to another folder"
    try:
        folder = cache_root()
    except UserError as error:  # no HOME, and no entry in the table of users
        return Check("cache folder", "fail", str(error), fix)
    return _folder("cache folder", folder, fix)


def check_here() -> Check:
    """Whether this folder, where runs go, can be written, and has room."""
    return _folder("this folder", Path.cwd(), "go to another folder, or give --out")


def check_home() -> Check:
    """Whether the home folder can be written: Ray and the hub keep small files there."""
    try:
        home = Path.home()
    except RuntimeError as error:
        return Check("home folder", "warn", str(error), "set HOME to a folder that can be written")
    check = _folder("home folder", home, "set HOME to a folder that can be written")
    return Check(check.name, "warn" if check.status == "fail" else check.status, check.detail, check.fix)


def check_hub() -> Check:
    """What of the Hugging Face hub can be used."""
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    try:
        named = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or _user_cache(), "hub")
        cache = Path(named).expanduser()
    except RuntimeError as error:
        return Check("hub", "warn", str(error), "set HF_HOME to a folder that can be written")
    models = len(list(cache.glob("models--*"))) if os.access(cache, os.R_OK) else 0
    network = f"offline (HF_HUB_OFFLINE={offline})" if offline else "online unless --offline"
    return Check("hub", "ok", f"{network}, {counted(models, 'model')} in {cache}")


def check_hub_answers() -> Check:
    """Whether the hub answers within `HUB_SECONDS`, where it may be asked; the answer may be anything but silence."""
    name, hub = "hub answers", os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE"):
        return Check(name, "ok", "not asked: offline")
    heard: SimpleQueue[str] = SimpleQueue()
    # Looking up a name has no time-out of its own, hence the thread.
    threading.Thread(target=lambda: heard.put(_what_is_wrong(hub)), daemon=True).start()
    try:
        wrong = heard.get(timeout=HUB_SECONDS)
    except Empty:
        wrong = f"no answer in {HUB_SECONDS:.0f} s"
    if wrong:
        fix = "search with --offline, set HF_ENDPOINT to a mirror, or HTTPS_PROXY to a proxy that reaches it"
        return Check(name, "warn", f"{hub}: {wrong}", fix)
    return Check(name, "ok", hub)


def check_plugins() -> Check:
    """Whether every plugin loads, no two offer a part of one name, and zoos and strategies of installed ones answer."""
    from autoft.errors import PluginError
    from autoft.parts.host import Host

    host = Host.discover()
    table = host.table(asked={"entry_point"})
    failed = [line for line in table if line.status == "failed"]
    try:
        host.check_names()
    except PluginError as error:
        return Check("plugins", "fail", str(error), "autoft plugins shows who adds what")
    if failed:
        causes = "; ".join(f"{line.name}: {line.cause}" for line in failed)
        return Check("plugins", "warn", causes, f"mend it, or switch it off with -p no:{failed[0].name}")
    return Check(
        "plugins",
        "ok",
        f"{counted(len(host.refs), 'plugin')} with {counted(sum(len(line.adds) for line in table), 'part')}",
    )


QUICK: tuple[Callable[[], Check], ...] = (
    check_python,
    check_packages,
    check_cores,
    check_memory,
    check_shared_memory,
    check_ray_folder,
    check_cache,
    check_here,
    check_home,
    check_hub,
    check_plugins,
)
FULL = (*QUICK, check_hub_answers, check_torch, check_gpus, check_mps, check_timm, check_onnx, check_ray)


def _imported(name: str, module: str, distribution: str = "", fix: str = "") -> Check:
    """Whether `module` can be imported, and the version of its distribution."""
    distribution = distribution or module
    try:
        importlib.import_module(module)
    except Exception as error:
        return Check(name, "fail", f"{module}: {_cause(error)}", fix or f"pip install {distribution}")
    return Check(name, "ok", f"{distribution} {_version(distribution)}")


def _folder(name: str, folder: Path, fix: str) -> Check:
    """Whether a file can be made in `folder`, or in the nearest folder above it, and the room there."""
    nearest = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Check(name, "fail", f"{folder} cannot be written: {error.strerror}", fix)
    if free < LEAST_DISK:
        return Check(name, "warn", f"{_size(free)} free in {folder}", f"make room, or {fix}")
    return Check(name, "ok", f"{folder}, {_size(free)} free")


def _what_is_wrong(url: str) -> str:
    """Why there is no answer from `url`; nothing when there is one, of whatever kind."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except Exception as error:  # names, sockets, certificates, proxies: each its own
        return _cause(error)
    return ""


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface").expanduser()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
