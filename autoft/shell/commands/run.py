"""`autoft search` and `autoft resume`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoft.errors import GateFailed
from autoft.shell.commands import (
    Command,
    json_option,
    moved_option,
    plugin_option,
    say,
    shown,
    talk_on_stderr,
    to_json,
)
from autoft.study.options import Declared, Option, options_of
from autoft.study.study import Study
from autoft.values.counts import counted

if TYPE_CHECKING:
    from autoft.values.summary import Scores, Summary

NAMES_SHOWN = 8


def _study_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each option that a study declares, in that order."""
    for one in reversed(options_of(Study)):
        if one.option:
            command = _flag(one, one.option)(command)
    return command


def _flag(one: Declared, option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The flag of an option; its value is None where it is not given."""
    is_flag, default = one.type is bool, one.default_in_words()
    return click.option(
        one.flag,
        one.name,
        is_flag=is_flag,
        default=None,
        multiple=one.many,
        callback=_joined if one.many else None,
        type=None if is_flag or option.read else one.type,
        metavar=option.metavar,
        help=f"{option.help}  [default: {default}]" if default else option.help,
    )


def _joined(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> str | None:
    """A flag that is given twice is one with commas."""
    return ",".join(values) if values else None


@click.command(
    cls=Command,
    examples=(
        "autoft search photos/ --time 10m",
        "autoft search photos/ --trials 40 --out runs/first --seed 1",
        "autoft search photos/ --offline --backbones 'lite/*' --freeze probe,full",
        "autoft search photos/ --config search.toml --fail-under 0.9 --json",
    ),
)
@click.argument("data")
@_study_options
@click.option("--config", metavar="FILE.toml", help="Read options from a file; flags win over it.")
@plugin_option
@json_option
def search(data: str, config: str | None, as_json: bool, **flags: Any) -> None:
    """Find the best fine-tuned backbone for the images in DATA and export it.

    DATA is a folder with one folder of images a class, or with train, val and test folders of such, or a CSV file that
    names images and what is to be predicted. It is never written to.
    """
    from autoft import api
    from autoft.shell.terminal import open_screen
    from autoft.system import clock

    options = Study.options_from(Path(config)) if config else {}
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    study = Study.parse(options | given | {"data": data})
    _finish(lambda: api.launch(study, open_screen(), clock.process_started()), study.out, as_json)


@click.command(
    cls=Command,
    examples=(
        "autoft resume runs/photos-20260102-030405",
        "autoft resume runs/photos-20260102-030405 --time +10m",
        "autoft resume runs/photos-20260102-030405 --target 0.97",
        "autoft resume runs/photos-20260102-030405 --data /mnt/photos",
        "autoft resume runs/photos-20260102-030405 -p moved/mine.py -p no:tracker",
    ),
)
@click.argument("run")
@click.option(
    "--time", metavar="TIME", help="The budget of the whole run, such as 40m; +10m adds to what it had or has used."
)
@click.option("--target", type=float, metavar="SCORE", help="Stop at this score, or loss, instead of what it had.")
@moved_option
@plugin_option
@json_option
def resume(
    run: str, time: str | None, target: float | None, data: str | None, plugins: tuple[str, ...], as_json: bool
) -> None:
    """Go on with a run that was interrupted, or give one more time.

    One that has reached its target goes on with another. Finished trials are not run again; paused ones go on from
    their checkpoints. Where more time finds a better model, the test images are scored again, for that one, and its
    card says how often they were. The plugins are those of the search; -p takes one from another place, or leaves it
    out.
    """
    from autoft import api
    from autoft.shell.terminal import open_screen
    from autoft.study.run import Run
    from autoft.system import clock

    change, before = api.change_of(time, data, plugins, target), Run.open(Path(run))
    screen = open_screen(before.ledger())
    without = "".join(f" -p {shlex.quote(plugin)}" for plugin in plugins if plugin.startswith("no:"))
    _finish(lambda: api.go_on(Path(run), change, screen, clock.process_started()), run, as_json, without)


def _finish(run: Callable[[], Summary], out: str, as_json: bool, without: str = "") -> None:
    """Run, and print what came of it; also when a gate refuses it in the end.

    `without` are the options that leave plugins of the run out, which going on once more needs as well.
    """
    try:
        with talk_on_stderr(), _resumable(out, without):
            summary = run()
    except GateFailed as gate:
        if gate.summary is not None:
            _print(gate.summary, as_json, without)
        raise
    _print(summary, as_json, without)


@contextlib.contextmanager
def _resumable(out: str, without: str) -> Iterator[None]:
    """Say how to go on, if there is a run already, when a signal comes outside the search, which hears its own."""
    try:
        yield
    except KeyboardInterrupt:
        if out and (Path(out) / "study.json").is_file():
            click.echo(f"go on with: autoft resume {shlex.quote(out)}{without}", err=True)
        raise


def _print(summary: Summary, as_json: bool, without: str) -> None:
    say(to_json(summary) if as_json else "\n".join([*_lines(summary), "", *_next(summary, without)]))


def _lines(summary: Summary) -> list[str]:
    from autoft.shell.terminal import part_of_images

    best, metric = summary.best, summary.metric
    model = Path(summary.run, summary.model)
    counts = ", ".join(f"{count} {state}" for state, count in summary.trials.items() if count)
    part = f", on {part_of_images(best.share)}" if best.share < 1 else ""
    lines = [_score(f"test {metric}", summary.test, metric)] if summary.test else []
    chose = "it chose the trial" if best.twin is None else f"it chose trial {best.twin}, of which the model is a refit"
    refit = "" if best.twin is None else f", refit of trial {best.twin} on train + validation"
    lines += [
        _score("validation", summary.validation, metric) + f"; optimistic, as {chose}",
        _line("best trial", f"{best.trial}: {best.backbone}, {best.freeze}, {best.image_size} px{part}{refit}"),
        _line("trials", f"{counts} in {summary.elapsed:.0f} s"),
        *_runner_up(summary),
        *_tried(summary),
        *_target(summary),
        _line("model", f"{shown(model)}, {_megabytes(model)}"),
        _line("run", shown(Path(summary.run))),
    ]
    if summary.test_openings > 1:
        lines.append(_line("note", f"the test images were scored {summary.test_openings} times in this run's life"))
    if summary.missed:
        lines.append(_line("note", _missed(summary)))
    if summary.problems:
        unused = "1 file was" if summary.problems == 1 else f"{summary.problems} files were"
        lines.append(_line("note", f"{unused} not used; study.json in the run has the names and the reasons"))
    return lines


def _tried(summary: Summary) -> Iterator[str]:
    if summary.candidates:
        rest = "; the others have no score" if summary.tried < summary.candidates else ""
        yield _line(
            "tried", f"{summary.tried} of {counted(summary.candidates, 'pair')} of backbone and freeze strategy{rest}"
        )


def _runner_up(summary: Summary) -> Iterator[str]:
    second = summary.runner_up
    if second and second.is_within_noise:
        score, behind, error = (
            summary.validation.text(summary.metric, figure)
            for figure in (second.validation, second.behind, second.standard_error)
        )
        by_chance = f"{behind} behind with a standard error of {error}, so chance may have decided"
        yield _line("second", f"{second.trial}: validation {score}, {by_chance}")


def _target(summary: Summary) -> Iterator[str]:
    if summary.target is not None:
        yield _line("target", f"{summary.target:g}, {'reached' if summary.reached else 'not reached'} beyond noise")


def _missed(summary: Summary) -> str:
    """The classes that were never found, and the metric that would have minded."""
    named = [f"{label!r} ({n})" for label, n in summary.missed.items()]
    more = f" and {counted(len(named) - NAMES_SHOWN, 'more class')}" if len(named) > NAMES_SHOWN else ""
    hint = f"; --metric {summary.suggested_metric} weighs all alike" if summary.suggested_metric else ""
    return f"not one test image was recognised of {', '.join(named[:NAMES_SHOWN])}{more}{hint}"


def _score(name: str, scores: Scores, metric: str) -> str:
    ends = " to ".join(scores.text(metric, end) for end in scores.ci95 or ())
    interval = f"95 % interval {ends}, " if ends else ""
    return _line(name, f"{scores.text(metric)}  ({interval}{scores.counted(metric)})")


def _line(name: str, text: str) -> str:
    return f"{name:<15}  {text}"


def _megabytes(model: Path) -> str:
    return f"{model.stat().st_size / 1e6:.1f} MB" if model.is_file() else "which is not there any more"


def _next(summary: Summary, without: str = "") -> list[str]:
    run = shlex.quote(shown(Path(summary.run)))
    more = [f"  autoft resume {run} --time +10m{without}"] if summary.goes_on else []
    return [
        "Next:",
        f"  autoft predict {run} IMAGE...",
        f"  autoft verify {shlex.quote(shown(Path(summary.run, summary.model).parent))}",
        f"  autoft leaderboard {run}",
        *more,
    ]
