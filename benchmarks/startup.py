"""How long the commands that do nothing heavy take to answer, beside importing click and pluggy alone.

    python benchmarks/startup.py

Medians of 15 rounds; each round runs the three commands one after the other, so that a busy moment hits all of them.
Targets: `autoft --help` at most 1.5 times, `autoft plugins` at most 3 times the import of click and pluggy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
from common import Check

SCRIPT = str(Path(sys.executable).with_name("autoft"))
BASE = "import click, pluggy"
COMMANDS: Mapping[str, Sequence[str]] = {
    BASE: (sys.executable, "-c", BASE),
    "autoft --help": (SCRIPT, "--help"),
    "autoft plugins": (SCRIPT, "plugins"),
}
MOST_TIMES: Mapping[str, float] = {"autoft --help": 1.5, "autoft plugins": 3.0}


@dataclass(frozen=True)
class Command:
    """Seconds of one command, and how many times the base they are."""

    command: str
    median: float
    ratio: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One line a command."""

    rounds: int
    commands: tuple[Command, ...]


def measure(rounds: int) -> Result:
    """Run all commands `rounds` times, after one round that warms the disk cache and the byte code."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    # Byte code is kept, as it is for every package that pip installs, whatever this shell says.
    kept = tempfile.mkdtemp(prefix="ft-bytecode-")
    with common.workplace(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=kept) as place:
        for number in range(rounds + 1):
            for name, command in COMMANDS.items():
                took = place.run(command).require_success().seconds
                if number > 0:
                    seconds[name].append(took)
    base = statistics.median(seconds[BASE])
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    commands = (
        Command(name, round(medians[name], 4), round(medians[name] / base, 3), tuple(round(s, 4) for s in each))
        for name, each in seconds.items()
    )
    return Result(rounds, tuple(commands))


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    result = measure(parser.parse_args().rounds)
    rows = [(c.command, f"{c.median * 1000:.0f}", f"{c.ratio:.2f}") for c in result.commands]
    common.show("start-up", ("command", "median ms", "times the import"), rows)
    checks = [
        Check(f"{c.command}, times the import", f"{c.ratio:.2f}", f"<= {limit}", c.ratio <= limit)
        for c in result.commands
        if (limit := MOST_TIMES.get(c.command)) is not None
    ]
    return common.publish("startup", result, checks)


if __name__ == "__main__":
    sys.exit(main())
