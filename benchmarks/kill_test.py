"""Searches killed at random moments, each followed by `autoft resume`: all must finish, no finished trial runs twice.

    python benchmarks/kill_test.py                                 # 25 inline of 30 s, 5 on Ray of 60 s, 20 at the end
    python benchmarks/kill_test.py --inline 2 --ray 1 --ending 0   # fewer

SIGKILL goes to the whole process group and to whatever left it, at a moment drawn evenly from the search's time budget;
at the end: from what an end takes that nobody kills, counted from leaderboard.csv, which says that the search is over;
there the winner must stay. Caches start empty, so early kills hit decoding. Another moment is drawn after one at which
there was nothing left to kill, or no `study.json` to resume from: then one line and exit code 2 are right. So they are
where there is neither a model nor time for one: then as much as it says has to do. The journal is read as plain JSON
lines, not by autoft's own reader.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import common
from common import AUTOFT, Check, Finished, Process, Workplace

Outcome = Literal["finished", "nothing to resume", "broken"]
SEARCH_SECONDS: Mapping[str, float] = {"inline": 30.0, "ray": 60.0}
NOTHING_TO_RESUME = TOO_LITTLE_TIME = 2
_LEAST = re.compile(r"at least --time (\S+)")


@dataclass(frozen=True)
class Kill:
    """One kill and what came after. `left_open` slices were running then; `twice` trials ran after they had ended.

    `hit` says that there was something to kill, and to resume.
    """

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
    winner: tuple[int, int] | None = None
    """Of a kill at the end: the best trial before and the exported one."""


@dataclass(frozen=True)
class Result:
    """One line a kill."""

    kills: tuple[Kill, ...]


def journal(run: Path) -> list[dict[str, Any]]:
    """The whole lines of trials.jsonl that are about a trial; the last one may be torn."""
    try:
        *whole, _ = (run / "trials.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [read for line in whole if "trial" in (read := json.loads(line))]


def run_twice(lines: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Trials with a line of any kind after the one that ended them."""
    ended: set[int] = set()
    twice = set()
    for line in lines:
        if line["trial"] in ended:
            twice.add(line["trial"])
        if line["event"] in ("finished", "failed", "left out"):
            ended.add(line["trial"])
    return tuple(sorted(twice))


def open_slices(lines: Iterable[Mapping[str, Any]]) -> int:
    """Slices that were asked for and not reported."""
    last = {line["trial"]: line["event"] for line in lines}
    return sum(event in ("queued", "started") for event in last.values())


def begun(place: Workplace, run: Path, runner: str, seed: int, at_end: bool) -> Process:
    """A search; at its end, where that is wanted."""
    options = ("--time", f"{SEARCH_SECONDS[runner]:g}s", "--runner", runner, "--seed", str(seed))
    process = place.start(common.search_command(run, *options))
    while at_end and process.running() and not (run / "leaderboard.csv").exists():
        time.sleep(0.05)
    return process


def ending_seconds(runner: str, seed: int) -> float:
    """From leaderboard.csv to the end of a search that nobody kills."""
    with common.workplace() as place:
        process = begun(place, place.path / "run", runner, seed, at_end=True)
        began = time.monotonic()
        process.wait(timeout=SEARCH_SECONDS[runner])
        return time.monotonic() - began


def kill_and_resume(runner: str, seconds: float, seed: int, at_end: bool = False) -> Kill:
    """One search, one kill in its first, or its end's first, `seconds`, one resume."""
    moment = random.Random(seed).uniform(0.0, seconds)
    with common.workplace() as place:
        run = place.path / "run"
        killed = _kill_after(begun(place, run, runner, seed, at_end), moment)
        before, had_study = journal(run), (run / "study.json").exists()
        best = common.RunFiles(run).ledger.exportable()[0].trial.id if at_end else None
        resumed = place.run([*AUTOFT, "resume", run])
        if resumed.code == TOO_LITTLE_TIME and had_study and (more := _LEAST.search(resumed.stderr)):
            resumed = place.run([*AUTOFT, "resume", run, "--time", more[1]])  # no model yet, and no time left for one
        after = journal(run)
        outcome = _outcome(run, resumed, had_study)
        winner = (best, common.RunFiles(run).summary.best.trial) if best is not None and outcome == "finished" else None
    lines = resumed.stderr.strip().splitlines()
    return Kill(
        runner=f"{runner}, at the end" if at_end else runner,
        moment=round(moment, 2),
        hit=killed and had_study,
        journal_lines=len(before),
        left_open=open_slices(before),
        outcome=outcome,
        resume_code=resumed.code,
        resume_seconds=round(resumed.seconds, 1),
        twice=run_twice(after),
        said="" if outcome == "finished" else "\n".join(lines[-5:]),
        winner=winner,
    )


def _kill_after(process: Process, moment: float) -> bool:
    """Whether the search was still running when its moment came."""
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


def measure(counts: Mapping[str, int], ending: int, seed: int) -> Result:
    """As many kills as are wanted that hit, and those that did not, printed as they come."""
    kills: list[Kill] = []
    for runner, count in counts.items():
        kills += _until(count, runner, SEARCH_SECONDS[runner], seed, at_end=False)
    if ending:
        kills += _until(ending, "inline", ending_seconds("inline", seed), seed, at_end=True)
    return Result(tuple(kills))


def _until(count: int, runner: str, seconds: float, seed: int, at_end: bool) -> Iterator[Kill]:
    """Kills until so many have hit, or three times as many were tried."""
    hits = 0
    for number in range(3 * count):
        if hits == count:
            return
        kill = kill_and_resume(runner, seconds, seed + 1000 * number + len(runner), at_end)
        hits += kill.hit
        twice = f", RUN TWICE: {kill.twice}" if kill.twice else ""
        print(
            f"{kill.runner} {hits}: killed at {kill.moment:.1f} s with {kill.left_open} slices open, "
            f"resumed in {kill.resume_seconds:.0f} s: {kill.outcome}{twice} {kill.winner or ''}",
            flush=True,
        )
        yield kill


def checks(result: Result, wanted: int) -> list[Check]:
    """The result against its targets."""
    outcomes, tried = Counter(kill.outcome for kill in result.kills), len(result.kills)
    fine, hits = tried - outcomes["broken"], sum(kill.hit for kill in result.kills)
    early, late = outcomes["nothing to resume"], sum(not kill.hit for kill in result.kills)
    told = f"{fine} of {tried} ({early} before study.json, {late - early} after the end)"
    twice = sum(len(kill.twice) for kill in result.kills)
    changed = sum(kill.winner[0] != kill.winner[1] for kill in result.kills if kill.winner)
    return [
        Check("winners that changed by a kill at the end", str(changed), "0", changed == 0),
        Check("kills that hit a search and could be resumed", str(hits), str(wanted), hits == wanted),
        Check("kills that end well", told, f"{tried} of {tried}", fine == tried),
        Check("finished trials run again", str(twice), "0", twice == 0),
    ]


def main() -> int:
    """Kill, resume, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inline", type=int, default=25, help="kills of inline searches")
    parser.add_argument("--ray", type=int, default=5, help="kills of Ray searches")
    parser.add_argument("--ending", type=int, default=20, help="kills of inline searches while they export")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure({"inline": options.inline, "ray": options.ray}, options.ending, options.seed)
    return common.publish("kill_test", result, checks(result, options.inline + options.ray + options.ending))


if __name__ == "__main__":
    sys.exit(main())
