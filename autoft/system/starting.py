"""How slowly this machine starts processes: where seconds are promised that were measured on another one."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Final

# CPU seconds of the process below on the machine that the seconds in `engine/` and `runners/` were measured on, where
# importing click and pluggy took .034 s by the clock (benchmarks/startup.py).
REFERENCE_SECONDS: Final = 0.02
MOST: Final = 5.0
"""No machine is taken to be slower: where Python keeps no byte code, imports take twenty times as long, and no more."""
_TIMES: Final = 3
_LONGEST_SECONDS: Final = 10.0
# Of the standard library alone, and isolated: not what lies in this folder, nor what an environment adds to each start.
_SOURCE: Final = "import argparse, json, logging, subprocess, time, typing; print(time.process_time())"
_OPTIONS: Final = ("-I", "-S", "-c", _SOURCE)


@functools.cache
def start_slowness() -> float:
    """How many times as long as there a process takes here to start and import, 1 to `MOST`.

    Measured once, in .1 to .2 s: the CPU seconds of some, the least, which what else runs here changes by a third at
    most. Python imports packages, follows a network and starts Ray and its workers at much the same pace, other than
    the arithmetic of a network, which a run measures by itself.
    """
    return min(MOST, max(1.0, min(_cpu_seconds() for _ in range(_TIMES)) / REFERENCE_SECONDS))


def _cpu_seconds() -> float:
    """Of a process that imports a little; of the reference where Python is not to be had as a process."""
    if "python" not in Path(sys.executable or "").name.lower():
        return REFERENCE_SECONDS
    try:
        done = subprocess.run(
            [sys.executable, *_OPTIONS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return REFERENCE_SECONDS
