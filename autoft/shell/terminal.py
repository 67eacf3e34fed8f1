"""Screens for people: a live table where stderr is a terminal, plain lines where it is not."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from autoft.system.clock import RunClock
from autoft.system.screen import Screen
from autoft.values.counts import counted, passes
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.target import MetricFacts
from autoft.values.trial import Report, Trial

if TYPE_CHECKING:
    from rich.console import Group

TOP = 5
MOST_IN_FLIGHT = 8  # rows; the rest of a large machine's trials are counts
REFRESHES_PER_SECOND = 1.0
STATES = ("running", "queued", "paused", "finished", "left out", "failed")
COLUMNS: Mapping[str, Literal["left", "right"]] = {
    "trial": "right",
    "backbone": "left",
    "freeze": "left",
    "passes": "right",
    "score": "right",
    "seconds": "right",
    "state": "left",
    "": "left",
}


def open_screen(before: Ledger | None = None) -> Screen:
    """A live table when stderr is a terminal that can redraw, else plain lines.

    `before` is what happened in a run that is resumed.
    """
    can_redraw = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return LiveScreen() if can_redraw else LineScreen(before)


@dataclass(frozen=True)
class View:
    """What is on the screen between two events, as texts: the rows, and the part of the last line that stands still.

    It is drawn by another thread than the one that changes the ledger.
    """

    rows: tuple[tuple[str, ...], ...]
    counts: str
    clock: RunClock

    @classmethod
    def of(cls, ledger: Ledger, clock: RunClock, metric: MetricFacts) -> View:
        """The top of the ranking, and below it what is running or waits to."""
        ranking, records = list(ledger.ranking()), list(ledger.trials.values())
        top = ranking[:TOP]
        in_flight = [record for record in records if record.in_flight and record not in top]
        best = ranking[0].trial.id if ranking else None
        states = [record.state for record in records]
        counts = [f"{states.count(state)} {state}" for state in STATES if state in states]
        if ranking:
            counts.append(f"best {_figure(metric, ranking[0].score)} by trial {best}")
        rows = tuple(_row(record, metric, record.trial.id == best) for record in top + in_flight[:MOST_IN_FLIGHT])
        return cls(rows, ", ".join(counts), clock)

    def last_line(self) -> str:
        """Time and counts, as of now."""
        now = self.clock.now()
        return f"{_minutes(now)} elapsed, {_minutes(max(0.0, self.clock.budget - now))} left; {self.counts}"


class LiveScreen(Screen):
    """A table on stderr that is redrawn in place; notes appear above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._view: View | None = None
        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._console = console
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=REFRESHES_PER_SECOND)

    def note(self, text: str) -> None:
        """One line above the table."""
        self._console.print(_plain(text), soft_wrap=True)

    def show(self, ledger: Ledger, clock: RunClock) -> None:
        """Take a new picture; it is drawn within a second, or at once when it is the first."""
        self._view = View.of(ledger, clock, self.metric)
        if not self._live.is_started:
            self._live.start(refresh=True)
            self._console.show_cursor(True)  # Live hides it, and a killed process could not bring it back

    def close(self) -> None:
        """Leave the last picture standing."""
        self._live.stop()

    def _draw(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        if self._view is None:
            return Group()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name, justify in COLUMNS.items():
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
        for row in self._view.rows:
            table.add_row(*row)
        return Group(table, self._view.last_line())


class LineScreen(Screen):
    """One plain line an event on stderr: for logs, pipes and terminals that cannot redraw.

    Of what happened `before`, in a run that is resumed, there is one line.
    """

    def __init__(self, before: Ledger | None = None) -> None:
        self._before = before
        self._seen: Mapping[int, TrialRecord] = {}
        self._best = float("-inf")

    def note(self, text: str) -> None:
        """The line as it is."""
        click.echo(_plain(text), err=True)

    def show(self, ledger: Ledger, clock: RunClock) -> None:
        """What is new since the last time."""
        if self._before is not None and self._before.trials:
            self._say(clock, f"going on after {_stopped(self._before)}")
            self._report_best(self._before, clock)
            self._seen = self._before.trials
        self._before = None
        for record in ledger.trials.values():
            for line in _news(self._seen.get(record.trial.id), record, self.metric):
                self._say(clock, line)
        self._seen = dict(ledger.trials)
        self._report_best(ledger, clock)

    def close(self) -> None:
        """Nothing to leave."""

    def _report_best(self, ledger: Ledger, clock: RunClock) -> None:
        for record in ledger.ranking()[:1]:
            if record.score is not None and record.score > self._best:
                self._best = record.score
                self._say(clock, f"best so far: {_figure(self.metric, record.score)} by trial {record.trial.id}")

    def _say(self, clock: RunClock, text: str) -> None:
        self.note(f"{_minutes(clock.now()):>6}  {text}")


def _stopped(ledger: Ledger) -> str:
    """The trials of a run that nobody runs, by state; a slice in flight was cut short with it."""
    states = ["cut short" if record.state == "running" else record.state for record in ledger.trials.values()]
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
    return f"{counted(len(states), 'trial')}: {counts}"


def _news(before: TrialRecord | None, now: TrialRecord, metric: MetricFacts) -> Iterable[str]:
    """What happened to a trial, one line each."""
    trial = now.trial
    known = before or TrialRecord(trial, (), ())
    for number in sorted(now.started - known.started):
        is_first = number == min(now.started)
        what = f"{trial.backbone}, {trial.freeze}, {trial.image_size} px{refit_of(trial)},"
        begins = f"started: {what}" if is_first else "goes on,"  # its plan, or the time, may end before
        yield f"trial {trial.id} {begins} up to {passes(now.slices[number].until)}"
    for report in now.reports[len(known.reports) :]:
        part = f", on {part_of_images(report.share)}" if report.share < 1 else ""
        rest = part + (f": {report.error}" if report.error else "")
        yield f"trial {trial.id} {report.event}, {_result(now, report, metric)}, {report.seconds:.1f} s{rest}"


def _result(record: TrialRecord, report: Report, metric: MetricFacts) -> str:
    """The score a slice came to; beside it the trial's best, when that was earlier."""
    if report.score is None:
        return f"at {passes(report.step)}"
    figure = _figure(metric, report.score)
    if record.best_step >= report.step:
        return f"{figure} at {passes(report.step)}"
    return f"best {_figure(metric, record.score)} at {passes(record.best_step)}, now {figure} at {report.step:.3g}"


def _standing(record: TrialRecord, metric: MetricFacts) -> str:
    """The best score of a trial, and the latest when it is another."""
    best, latest = _figure(metric, record.score), _figure(metric, record.latest_score)
    return best if best == latest else f"{best} at {record.best_step:.3g}, now {latest}"


def _figure(metric: MetricFacts, score: float | None) -> str:
    return "" if score is None else metric.text(metric.shown(score))


def _row(record: TrialRecord, metric: MetricFacts, is_best: bool) -> tuple[str, ...]:
    trial = record.trial
    return (
        str(trial.id),
        trial.backbone,
        trial.freeze,
        f"{record.step:.3g}",
        _standing(record, metric),
        f"{record.seconds:.1f}",
        record.state,
        ", ".join(filter(None, ("★ best" if is_best else "", part_of_images(record.share), refit_of(trial)[2:]))),
    )


def refit_of(trial: Trial) -> str:
    """Of a refit, behind what it is: of which trial; else empty."""
    return f", refit of trial {trial.twin.trial} on train + validation" if trial.twin else ""


def part_of_images(share: float) -> str:
    """A share of the training images in words, neither none nor all by rounding; empty for all of them."""
    if share >= 1:
        return ""
    return "less than 1 % of the images" if share < 0.01 else f"{min(99.0, 100 * share):.0f} % of the images"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plain(text: str) -> str:
    """The text on one line without control characters: names and causes come from anywhere."""
    return "".join(character if character.isprintable() else " " for character in text)
