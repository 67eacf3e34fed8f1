"""`autoft leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from autoft.shell.commands import Command, aligned, document, json_option, require_one_form, say

if TYPE_CHECKING:
    from autoft.store import LeaderboardRow
    from autoft.study.record import StudyRecord
    from autoft.values.target import MetricFacts

LEADERBOARD = (
    *("rank", "trial", "state", "score", "folds", "at", "latest", "passes", "seconds", "ms/image"),
    *("backbone", "freeze", "px", "exportable", "fitted on", "refit of"),
)


@click.command(
    cls=Command,
    examples=(
        "autoft leaderboard runs/photos-20260102-030405",
        "autoft leaderboard runs/photos-20260102-030405 --top 3 --json",
        "autoft leaderboard runs/photos-20260102-030405 --pareto",
    ),
)
@click.argument("run")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the best N.  [default: all]")
@click.option("--pareto", is_flag=True, help="Only those that no other beats in both score and cost of inference.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead, as in leaderboard.csv.")
def leaderboard(run: str, top: int | None, pareto: bool, as_json: bool, as_csv: bool) -> None:
    """Show every trial of a run, best first.

    The score is the best on validation images, which ranks and is exported, with its standard error where they are few,
    "folds" the score out of fold of a head on few images, to compare heads by, and "at" the passes after which it was
    reached; "latest" is the score after all its passes. "ms/image" is what a forward pass of one image took a worker,
    where that was measured, alike for all trials of a backbone at a size. "fitted on" stands where time sufficed for a
    part of the images only. A "refit of" a trial is the same once more on train + validation: above it, exported in its
    place, and without a score, as it has seen the images of one. The run may still be going on.
    """
    require_one_form(as_json, as_csv)
    from autoft.store import as_csv as csv_of
    from autoft.store import leaderboard_rows
    from autoft.study.run import Run

    opened = Run.open(Path(run))
    in_flight: Literal["running", "stopped"] = "running" if opened.folder.in_use() else "stopped"
    ledger = opened.ledger()
    best = ledger.reaching(opened.record.target)  # it has that score, whatever became of its weights since
    ledger.damaged = opened.checkpoints.damaged(ledger)
    rows = leaderboard_rows(ledger, opened.record.metric, in_flight)
    rows = (_front(rows, opened.record) if pareto else rows)[:top]
    if as_json or as_csv:
        say(document("trials", rows) if as_json else csv_of(rows).removesuffix("\n"))
        return
    metric = opened.record.metric
    say(f"score: {metric.name} on validation images{', smaller is better' if metric.is_loss else ''}")
    if opened.record.study.target is not None:
        how = f"reached: {best.standing(metric)}" if best else "not reached beyond noise"
        say(f"target: {opened.record.study.target:g}, {how}")
    say(aligned(LEADERBOARD, [_cells(row, metric) for row in rows]))
    for row in rows:
        if row.error:
            click.echo(f"trial {row.trial} {row.state}: {row.error}", err=True)


def _front(rows: list[LeaderboardRow], record: StudyRecord) -> list[LeaderboardRow]:
    """Those that no other beats, by measured seconds; by what the networks' sizes say where some have none."""
    from autoft.store import pareto_front

    if all(row.image_seconds for row in rows if row.rank):
        return pareto_front(rows, lambda row: row.image_seconds or 0.0)
    click.echo("cost of inference by parameters and input size: not all networks were timed in this run", err=True)
    sizes = {one.network: one.cost for one in record.candidates}
    return pareto_front(rows, lambda row: sizes[row.backbone, row.image_size])


def _figure(row: LeaderboardRow, metric: MetricFacts) -> str:
    """The score, and its standard error where that is known."""
    if row.score is None:
        return ""
    error = "" if row.standard_error is None else f" ± {metric.text(row.standard_error)}"
    return f"{metric.text(row.score)}{error}"


def _cells(row: LeaderboardRow, metric: MetricFacts) -> tuple[str, ...]:
    from autoft.shell.terminal import part_of_images

    return (
        "" if row.rank is None else str(row.rank),
        str(row.trial),
        row.state,
        _figure(row, metric),
        "" if row.folds is None else metric.text(row.folds),
        "" if row.best_step is None else f"{row.best_step:.3g}",
        "" if row.latest_score is None else metric.text(row.latest_score),
        f"{row.step:.3g}",
        f"{row.seconds:.1f}",
        "" if row.image_seconds is None else f"{1000 * row.image_seconds:.3g}",
        row.backbone,
        row.freeze,
        str(row.image_size),
        "yes" if row.exportable else "no",
        part_of_images(1.0 if row.share is None else row.share),
        "" if row.twin is None else str(row.twin),
    )
