"""What kind of processor this is: what was measured on one says nothing of another."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """Its name, and a digest of what it can do: machines in clouds share a name that is no more than its maker's."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    first = dict(_pair(line) for line in text.partition("\n\n")[0].splitlines())
    able = first.get("flags") or first.get("Features") or ""  # the second on ARM
    digest = hashlib.blake2b(" ".join(sorted(able.split())).encode(), digest_size=4).hexdigest()
    return f"{first.get('model name') or platform.machine()} ({digest})"


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
