"""Searches killed at random moments, each followed by `autoft resume`: all must finish, no finished trial runs twice.

    python benchmarks/kill_test.py                      # 25 kills of 20 s inline searches, 5 of 60 s Ray searches
    python benchmarks/kill_test.py --inline 2 --ray 1   # fewer

SIGKILL goes to the whole process group and to whatever left it, at a moment drawn evenly from the search's time budget.
Caches start empty, so early kills hit decoding. A kill before `study.json` exists leaves nothing to resume: then one
clear line and exit code 2 are right. The journal is read as plain JSON lines, not by autoft's own reader.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import common
from common import AUTOFT, Check, Finished, Workplace

Outcome = Literal["finished", "nothing to resume", "broken"]
SEARCH_SECONDS: Mapping[str, float] = {"inline": 20.0, "ray": 60.0}
NOTHING_TO_RESUME = 2


@dataclass(frozen=True)
class Kill:
    """One kill and what came after. `left_open` slices were running then; `twice` trials ran after they had ended."""

    runner: str
    moment: float
    hit: bool
    journal_lines: int
    left_open: int
    outcome: Outcome
    resume_code: int
    resume_seconds: float
    twice: tuple[int, ...]
    said: str


@dataclass(frozen=True)
class Result:
    """One line a kill."""

    kills: tuple[Kill, ...]


def journal(run: Path) -> list[dict[str, Any]]:
    """The whole lines of trials.jsonl; the last one may be torn."""
    try:
        *whole, _ = (run / "trials.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole]


def run_twice(lines: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Trials with a line of any kind after the one that ended them."""
    ended: set[int] = set()
    twice = set()
    for line in lines:
        if line["trial"] in ended:
            twice.add(line["trial"])
        if line["event"] in ("finished", "failed"):
            ended.add(line["trial"])
    return tuple(sorted(twice))


def open_slices(lines: Iterable[Mapping[str, Any]]) -> int:
    """Slices that were started and not reported."""
    last = {line["trial"]: line["event"] for line in lines}
    return list(last.values()).count("started")


def kill_and_resume(runner: str, seconds: float, seed: int) -> Kill:
    """One search, one kill, one resume."""
    moment = random.Random(seed).uniform(0.0, seconds)
    with common.workplace() as place:
        run = place.path / "run"
        options = ("--time", f"{seconds:g}s", "--runner", runner, "--seed", str(seed))
        hit = _kill_after(place, common.search_command(run, *options), moment)
        before, had_study = journal(run), (run / "study.json").exists()
        resumed = place.run([*AUTOFT, "resume", run])
        after = journal(run)
        outcome = _outcome(run, resumed, had_study)
    lines = resumed.stderr.strip().splitlines()
    return Kill(
        runner=runner,
        moment=round(moment, 2),
        hit=hit,
        journal_lines=len(before),
        left_open=open_slices(before),
        outcome=outcome,
        resume_code=resumed.code,
        resume_seconds=round(resumed.seconds, 1),
        twice=run_twice(after),
        said="" if outcome == "finished" else "\n".join(lines[-5:]),
    )


def _kill_after(place: Workplace, command: list[str | Path], moment: float) -> bool:
    """Whether the search was still running when its moment came."""
    process = place.start(command)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    return False


def _outcome(run: Path, resumed: Finished, had_study: bool) -> Outcome:
    if not had_study:
        one_line = len(resumed.stderr.strip().splitlines()) == 1
        return "nothing to resume" if resumed.code == NOTHING_TO_RESUME and one_line else "broken"
    if resumed.code != 0 or not (run / "summary.json").exists():
        return "broken"
    model = json.loads((run / "summary.json").read_text(encoding="utf-8"))["model"]
    return "finished" if (run / model).exists() else "broken"


def measure(counts: Mapping[str, int], seed: int) -> Result:
    """All kills, printed as they come."""
    kills = []
    for runner, count in counts.items():
        for number in range(count):
            kill = kill_and_resume(runner, SEARCH_SECONDS[runner], seed + 1000 * number + len(runner))
            twice = f", RUN TWICE: {kill.twice}" if kill.twice else ""
            print(
                f"{runner} {number + 1}/{count}: killed at {kill.moment:.1f} s with {kill.left_open} slices open, "
                f"resumed in {kill.resume_seconds:.0f} s: {kill.outcome}{twice}",
                flush=True,
            )
            kills.append(kill)
    return Result(tuple(kills))


def checks(result: Result) -> list[Check]:
    """The result against its targets."""
    outcomes, wanted = Counter(kill.outcome for kill in result.kills), len(result.kills)
    fine = wanted - outcomes["broken"]
    told = f"{fine} ({outcomes['nothing to resume']} before study.json)"
    twice = sum(len(kill.twice) for kill in result.kills)
    return [
        Check("kills that end well", told, f"{wanted} of {wanted}", fine == wanted),
        Check("finished trials run again", str(twice), "0", twice == 0),
    ]


def main() -> int:
    """Kill, resume, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inline", type=int, default=25, help="kills of inline searches")
    parser.add_argument("--ray", type=int, default=5, help="kills of Ray searches")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure({"inline": options.inline, "ray": options.ray}, options.seed)
    return common.publish("kill_test", result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
