"""Limits that a container or a job sets on this process: Linux control groups, of both versions, nested or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")


def cpu_quota(system: Path = SYSTEM) -> float | None:
    """Processor cores' worth of time that this process and those beside it get; None without a limit."""
    return min(_quotas(system), default=None)


def memory_left(system: Path = SYSTEM) -> int | None:
    """Bytes until the nearest memory limit, counting cached files as free; None without a limit."""
    return min(_rests(system), default=None)


def _quotas(system: Path) -> Iterator[float]:
    for folder in _folders("cpu", system):
        limit, _, period = _read(folder / "cpu.max").partition(" ")
        limit, period = limit or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
        if limit.isdecimal() and period.isdecimal() and int(period):  # not "max" nor -1
            yield int(limit) / int(period)


def _rests(system: Path) -> Iterator[int]:
    for folder in _folders("memory", system):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit.isdecimal() and used.isdecimal():
            yield max(0, int(limit) - int(used) + _cached(folder))


def _cached(folder: Path) -> int:
    """Bytes of files that the kernel gives back before it kills anything."""
    facts = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def _folders(controller: str, system: Path) -> Iterator[Path]:
    """The folders whose limits hold for this process, from its own group up. Not all need to exist in a container."""
    mount = system / "sys/fs/cgroup"
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount  # version 2 has one tree for all
        group = PurePosixPath(path.lstrip("/"))
        yield from (base / above for above in (group, *group.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
