"""What a person sees while a search runs."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from autoft.shell.terminal import MOST_IN_FLIGHT, TOP, LineScreen, LiveScreen, View, open_screen
from autoft.system.clock import RunClock
from autoft.values.ledger import Ledger
from autoft.values.target import MetricFacts
from autoft.values.trial import Clock, Event, Queued, Report, Slice, Started, Trial

ACCURACY, LOG_LOSS = MetricFacts("accuracy"), MetricFacts("log_loss", is_loss=True, greatest=None)
CAUSE = "out of\nmemory \x1b[31mnow"


def started(number: int, start: float = 0.0, until: float = 1.0) -> tuple[Event, Event]:
    """A slice that waits, and then is begun."""
    trial = Trial(number, f"zoo/net_{number}", "full", 64, {}, seed=0)
    return Queued(number, Slice(trial, start, until, 60.0), Clock(0.0, 60.0)), Started(number, 0.0)


def events() -> Iterator[Event]:
    """Three trials: one is paused and goes on to be the best, one fails, one is running."""
    yield from started(0)
    yield Report(0, "paused", 1.0, 0.5, 2.0)
    yield from started(1)
    yield Report(1, "failed", 0.0, None, 1.0, error=CAUSE)
    yield from started(0, 1.0, 3.0)
    yield Report(0, "finished", 3.0, 0.75, 4.0)
    yield from started(2)


@pytest.fixture
def clock() -> RunClock:
    return RunClock(time.time() - 65, 600.0)


def test_lines_tell_every_event_once(clock: RunClock, capsys: pytest.CaptureFixture[str]) -> None:
    screen, ledger = LineScreen(), Ledger()
    for event in events():
        ledger.record(event)
        screen.show(ledger, clock)
        screen.show(ledger, clock)
    screen.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line.strip().partition("  ")[2] for line in captured.err.splitlines()]
    assert lines == [
        "trial 0 started: zoo/net_0, full, 64 px, up to 1 pass",
        "trial 0 paused, 0.5000 at 1 pass, 2.0 s",
        "best so far: 0.5000 by trial 0",
        "trial 1 started: zoo/net_1, full, 64 px, up to 1 pass",
        "trial 1 failed, at 0 passes, 1.0 s: out of memory  [31mnow",
        "trial 0 goes on, up to 3 passes",
        "trial 0 finished, 0.7500 at 3 passes, 4.0 s",
        "best so far: 0.7500 by trial 0",
        "trial 2 started: zoo/net_2, full, 64 px, up to 1 pass",
    ]
    assert all(line.startswith("  1:0") for line in captured.err.splitlines())
    assert captured.err.replace("\n", "").isprintable()


def test_a_resumed_run_is_not_told_again(clock: RunClock, capsys: pytest.CaptureFixture[str]) -> None:
    screen, ledger = LineScreen(Ledger(events())), Ledger(events())
    ledger.record(Report(2, "finished", 1.0, 0.25, 1.0))  # the slice that was cut short, run again
    screen.show(ledger, clock)
    screen.show(ledger, clock)
    texts = [line.strip().partition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert texts == [
        "going on after 3 trials: 1 finished, 1 failed, 1 cut short",
        "best so far: 0.7500 by trial 0",
        "trial 2 finished, 0.2500 at 1 pass, 1.0 s",
    ]


def test_every_slice_of_a_resumed_run_that_had_no_report_yet_gets_its_line(
    clock: RunClock, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = [*started(0), *started(1)]
    screen, ledger = LineScreen(Ledger(begun)), Ledger(begun)
    for number in (1, 0):
        ledger.record(Report(number, "finished", 1.0, 0.5, 1.0))
        screen.show(ledger, clock)
    texts = [line.strip().partition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert texts == [
        "going on after 2 trials: 2 cut short",
        "trial 1 finished, 0.5000 at 1 pass, 1.0 s",
        "best so far: 0.5000 by trial 1",
        "trial 0 finished, 0.5000 at 1 pass, 1.0 s",
    ]


def test_a_slice_that_waits_for_a_worker_is_not_said_to_run(
    clock: RunClock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, ledger = LineScreen(), Ledger()
    for event in (*(begins := started(0)), Report(0, "paused", 1.0, 0.5, 2.0), *(goes_on := started(0, 1.0, 3.0))):
        ledger.record(event)
        screen.show(ledger, clock)
        if event in (begins[0], goes_on[0]):
            assert "1 queued" in View.of(ledger, clock, ACCURACY).last_line()
            assert capsys.readouterr().err == ""
        if event in (begins[1], goes_on[1]):
            assert "1 running" in View.of(ledger, clock, ACCURACY).last_line()
            assert capsys.readouterr().err.count("to ") == 1
        capsys.readouterr()
    assert "1 queued" in _going_on(Ledger([begins[0]]), clock, capsys)
    assert "1 cut short" in _going_on(Ledger(begins), clock, capsys)


def _going_on(before: Ledger, clock: RunClock, capsys: pytest.CaptureFixture[str]) -> str:
    LineScreen(before).show(before, clock)
    return capsys.readouterr().err.splitlines()[0]


def test_a_run_that_was_stopped_before_its_first_trial_begins_as_a_new_one(
    clock: RunClock, capsys: pytest.CaptureFixture[str]
) -> None:
    LineScreen(Ledger()).show(Ledger([*started(0)]), clock)
    assert capsys.readouterr().err.split(maxsplit=1)[1].startswith("trial 0 started")


def test_a_view_has_the_top_then_what_runs_and_counts_the_rest(clock: RunClock) -> None:
    ledger = Ledger()
    for number in range(20):
        for event in started(number):
            ledger.record(event)
        ledger.record(Report(number, "paused", 1.0, number / 20, 1.0))
    for number in range(20, 40):
        for event in started(number):
            ledger.record(event)
    view = View.of(ledger, clock, ACCURACY)
    assert [int(row[0]) for row in view.rows] == [19, 18, 17, 16, 15, *range(20, 20 + MOST_IN_FLIGHT)]
    assert len(view.rows) == TOP + MOST_IN_FLIGHT
    assert [row[-1] for row in view.rows].count("★ best") == 1
    assert view.rows[0][-1] == "★ best"
    assert view.last_line() == "1:05 elapsed, 8:54 left; 20 running, 20 paused, best 0.9500 by trial 19"


def test_a_trial_that_got_worse_shows_its_best_and_its_latest(
    clock: RunClock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, ledger = LineScreen(), Ledger()
    for start, until, score in ((0.0, 9.0, 0.89), (9.0, 27.0, 0.88)):
        for event in started(0, start, until):
            ledger.record(event)
        ledger.record(Report(0, "paused", until, score, 2.0))
        screen.show(ledger, clock)
    lines = [line.strip().partition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[-1] == "trial 0 paused, best 0.8900 at 9 passes, now 0.8800 at 27, 2.0 s"
    (row,) = View.of(ledger, clock, ACCURACY).rows
    assert row[3:5] == ("27", "0.8900 at 9, now 0.8800")


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, ""),
        (0.02, "2 % of the images"),
        (1 / 3, "33 % of the images"),
        (0.999, "99 % of the images"),
        (0.0004, "less than 1 % of the images"),
    ],
)
def test_a_head_on_a_part_of_the_images_says_so(
    share: float, words: str, clock: RunClock, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger([*started(0), Report(0, "finished", 1.0, 0.5, 2.0, share=share)])
    LineScreen().show(ledger, clock)
    news = capsys.readouterr().err.splitlines()[1]
    assert news.endswith("0.5000 at 1 pass, 2.0 s" + (f", on {words}" if words else ""))
    (row,) = View.of(ledger, clock, ACCURACY).rows
    assert row[-1] == (f"★ best, {words}" if words else "★ best")


def test_a_loss_is_shown_positive_and_the_smallest_is_best(clock: RunClock, capsys: pytest.CaptureFixture[str]) -> None:
    screen, ledger = LineScreen(), Ledger()
    screen.metric = LOG_LOSS
    for number, score in ((0, -0.5), (1, -0.25)):
        for event in started(number):
            ledger.record(event)
        ledger.record(Report(number, "finished", 1.0, score, 2.0))
        screen.show(ledger, clock)
    lines = [line.strip().partition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert "trial 1 finished, 0.25 at 1 pass, 2.0 s" in lines
    assert lines[-1] == "best so far: 0.25 by trial 1"
    view = View.of(ledger, clock, LOG_LOSS)
    assert [row[4] for row in view.rows] == ["0.25", "0.5"]
    assert view.counts.endswith("best 0.25 by trial 1")


def test_time_left_is_never_negative() -> None:
    view = View.of(Ledger(), RunClock(time.time() - 7300, 60.0), ACCURACY)
    assert view.last_line().startswith("2:01:40 elapsed, 0:00 left")


def test_the_live_table_shows_trials_and_notes_stand_above_it(clock: RunClock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    screen = LiveScreen()
    screen.note("[bold]a note[/bold]")
    screen.show(Ledger(events()), clock)
    screen.note("another")
    screen.close()
    screen.close()
    text = shown.getvalue()
    assert "[bold]a note[/bold]" in text
    last = text[text.rindex("another") :]
    assert "zoo/net_0" in last and "★ best" in last and "running" in last and "left; " in last
    assert text.count("\x1b[?25l") <= text.count("\x1b[?25h")


def test_a_screen_that_never_ran_closes_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    screen = LiveScreen()
    screen.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("is_terminal", "term", "kind"),
    [(True, "xterm-256color", LiveScreen), (True, "dumb", LineScreen), (False, "xterm-256color", LineScreen)],
)
def test_the_screen_suits_the_terminal(
    is_terminal: bool, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", term)
    assert isinstance(open_screen("accuracy"), kind)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert Console(stderr=True).no_color
