"""How slowly this machine starts processes: where seconds are promised that were measured on another one."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Final

# CPU seconds of the process below on the machine that the seconds in `engine/` and `runners/` were measured on, where
# benchmarks/startup.py has .034 s by the clock.
REFERENCE_SECONDS: Final = 0.03
_LONGEST_SECONDS: Final = 20.0
_SOURCE: Final = "import click, pluggy, time; print(time.process_time())"


@functools.cache
def start_slowness() -> float:
    """How many times as long as there a process takes here to start and import; at least 1.

    Measured once, in .1 to .2 s: the CPU seconds of two, the lesser, which what else runs here hardly changes. Python
    imports packages, follows a network and starts Ray and its workers at much the same pace, other than the arithmetic
    of a network, which a run measures by itself.
    """
    return max(1.0, min(_cpu_seconds(), _cpu_seconds()) / REFERENCE_SECONDS)


def _cpu_seconds() -> float:
    """Of a process that imports what the command line does; of the reference where none can be started."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SOURCE], capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=True
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return REFERENCE_SECONDS
