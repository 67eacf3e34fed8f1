"""The engine's figures beside their targets: training, trials that share a GPU, a search, and what cores do.

    python benchmarks/engine.py
    python benchmarks/engine.py --parts training,packing

Each part is a script of its own that prints its tables and writes its results file; it runs in a process of its own
under a time limit, so that one which crashes or hangs leaves the others. In the end the checks of all come together.
Without `--parts`, training, packing and search where there is a GPU, else what is measured on cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import common
from common import RESULTS


@dataclass(frozen=True)
class Part:
    """A script beside this one, the most seconds it may take, and whether its targets are for a GPU."""

    script: str
    seconds: float
    gpu: bool

    @property
    def results(self) -> Path:
        """The file it writes."""
        return RESULTS / f"{self.script}.json"


PARTS: Mapping[str, Part] = {
    "training": Part("engine_training", 240.0, True),
    "packing": Part("engine_packing", 180.0, True),
    "search": Part("engine_search", 240.0, True),
    "cpu": Part("engine_cpu", 1200.0, False),
    "prefix": Part("prefix", 1200.0, False),
}


def run(part: Part, arguments: list[str]) -> str:
    """Run a part to its end; how it ended."""
    began = time.monotonic()
    part.results.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name(f"{part.script}.py")), *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(part.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"ended after {part.seconds:g} s"
    return f"exit code {code} after {time.monotonic() - began:.0f} s"


def parts_here() -> list[str]:
    """What can be measured on this machine."""
    import torch

    gpu = torch.cuda.is_available()
    print("on a GPU" if gpu else "there is no GPU here, so nothing is said of one")
    return [name for name, part in PARTS.items() if part.gpu == gpu]


def main() -> int:
    """Run the parts, show their checks; 0 when every target of every part is reached, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", help=f"of {', '.join(PARTS)}")
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", default="", metavar="TEXT", help=f"further arguments of {part.script}.py")
    options = parser.parse_args()
    names = options.parts.split(",") if options.parts else parts_here()
    rows, ended, reached = [], [], True
    for name in names:
        part = PARTS[name]
        ended.append((name, run(part, shlex.split(getattr(options, name)))))
        checks = json.loads(part.results.read_text(encoding="utf-8"))["checks"] if part.results.exists() else []
        reached &= bool(checks) and all(check["reached"] for check in checks)
        for check in checks:
            verdict = "reached" if check["reached"] else "MISSED"
            rows.append((name, check["what"], check["measured"], check["target"], verdict))
    common.show("parts", ("part", "ended"), ended)
    common.show("engine", ("part", "", "measured", "target", ""), rows)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
