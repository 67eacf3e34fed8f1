"""The checks of `autoft doctor`, each a small function. None of them writes anything that stays."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

OLDEST_PYTHON = (3, 11)
MIB, GIB = 2**20, 2**30
LEAST_DISK = 5 * GIB  # weights, pixel caches and checkpoints of a small run
LEAST_MEMORY = 2 * GIB  # a driver and a worker
LEAST_SHARED_MEMORY = 256 * MIB  # ray's object store and its plasma
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


def check_cores() -> Check:
    """How many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", "ok", str(cores))


def check_memory() -> Check:
    """How much memory there is, for the machine or for this container."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return Check("memory", "warn", "this system does not say")
    limit = _container_limit()
    amount = min(total, limit) if limit else total
    if amount < LEAST_MEMORY:
        return Check("memory", "warn", _size(amount), "use --workers 1 and --backbones with few parameters")
    return Check("memory", "ok", _size(amount))


def check_shared_memory() -> Check:
    """Whether /dev/shm, where Ray keeps its objects, is large enough; containers often have 64 MiB."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Check("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(shared).free
    if free < LEAST_SHARED_MEMORY:
        fix = "start the container with --shm-size=1g, or search with --runner inline"
        return Check("shared memory", "warn", f"{_size(free)} free in /dev/shm", fix)
    return Check("shared memory", "ok", f"{_size(free)} free")


def check_cache() -> Check:
    """Whether the cache folder can be written, and has room."""
    from autoft.data.cache import cache_root

    return _folder("cache folder", cache_root(), "set AUTOFT_CACHE_DIR to another folder")


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
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or _user_cache(), "hub")).expanduser()
    models = len(list(cache.glob("models--*"))) if os.access(cache, os.R_OK) else 0
    network = f"offline (HF_HUB_OFFLINE={offline})" if offline else "online unless --offline"
    return Check("hub", "ok", f"{network}, {models} models in {cache}")


def check_plugins() -> Check:
    """Whether every plugin loads, and no two offer a part of one name."""
    from autoft.errors import PluginError
    from autoft.host import Host

    host = Host.discover()
    failed = [line for line in host.table() if line.status == "failed"]
    try:
        parts = [*host.zoos(), *host.freeze_strategies(), *host.searchers(), *host.exporters()]
    except PluginError as error:
        return Check("plugins", "fail", str(error), "autoft plugins shows who adds what")
    if failed:
        causes = "; ".join(f"{line.name}: {line.cause}" for line in failed)
        return Check("plugins", "warn", causes, f"mend it, or switch it off with -p no:{failed[0].name}")
    return Check("plugins", "ok", f"{len(host.refs)} plugins with {len(parts)} parts")


QUICK: tuple[Callable[[], Check], ...] = (
    check_python,
    check_packages,
    check_cores,
    check_memory,
    check_shared_memory,
    check_cache,
    check_here,
    check_home,
    check_hub,
    check_plugins,
)
FULL = (*QUICK, check_torch, check_gpus, check_timm, check_onnx, check_ray)


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


def _container_limit() -> int | None:
    """The memory limit of this container in bytes, where there is one (cgroup 2)."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
