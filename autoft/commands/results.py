"""`autoft leaderboard`, `autoft export` and `autoft predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft.commands import Command, aligned, document, json_option, shown, talk_on_stderr, to_json

if TYPE_CHECKING:
    from autoft.store import LeaderboardRow

LEADERBOARD = ("rank", "trial", "state", "score", "passes", "seconds", "backbone", "freeze", "px", "exportable")


@click.command(
    cls=Command,
    examples=(
        "autoft leaderboard runs/photos-20260102-030405",
        "autoft leaderboard runs/photos-20260102-030405 --top 3 --json",
    ),
)
@click.argument("run")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the best N.  [default: all]")
@json_option
def leaderboard(run: str, top: int | None, as_json: bool) -> None:
    """Show every trial of a run, best first.

    Scores are validation scores. The run may still be going on.
    """
    from autoft.run import Run
    from autoft.store import leaderboard_rows

    rows = leaderboard_rows(Run.open(Path(run)).ledger())[:top]
    if as_json:
        click.echo(document("trials", rows))
        return
    click.echo(aligned(LEADERBOARD, [_cells(row) for row in rows]))
    for row in rows:
        if row.error:
            click.echo(f"trial {row.trial} failed: {row.error}", err=True)


def _cells(row: LeaderboardRow) -> tuple[str, ...]:
    return (
        "" if row.rank is None else str(row.rank),
        str(row.trial),
        row.state,
        "" if row.score is None else f"{row.score:.4f}",
        f"{row.step:g}",
        f"{row.seconds:.1f}",
        row.backbone,
        row.freeze,
        str(row.image_size),
        "yes" if row.exportable else "no",
    )


@click.command(
    cls=Command,
    examples=(
        "autoft export runs/photos-20260102-030405 --trial 7",
        "autoft export runs/photos-20260102-030405 --trial 7 --out deploy/",
    ),
)
@click.argument("run")
@click.option("--trial", type=int, metavar="N", help="Which one; see autoft leaderboard.  [default: the best]")
@click.option("--out", metavar="DIR", help="Where to.  [default: RUN/exports/N]")
@json_option
def export(run: str, trial: int | None, out: str | None, as_json: bool) -> None:
    """Write the ONNX file of any trial that is still exportable.

    It is compared with torch on validation images, and comes with validation figures only: the test images are for the
    trial that the search chose.
    """
    from autoft import execution

    with talk_on_stderr():
        exported = execution.export_trial(Path(run), trial, Path(out) if out else None)
    if as_json:
        click.echo(to_json(exported))
        return
    scores = exported.validation
    model = Path(run, exported.artifact.path)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
    click.echo(f"trial       {exported.trial.id}: {exported.trial.backbone}, {exported.trial.freeze}")
    click.echo(f"model       {shown(model)}, {exported.artifact.size / 1e6:.1f} MB")
    click.echo(f"validation  {figures}  ({scores.correct} of {scores.n} right)")


@click.command(
    cls=Command,
    examples=(
        "autoft predict runs/photos-20260102-030405 new/cat.jpg",
        "autoft predict model.core.onnx new/ 'more/*.png' --json",
    ),
)
@click.argument("model")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one line an image.")
def predict(model: str, inputs: tuple[str, ...], as_json: bool) -> None:
    """Say what an exported model sees in images.

    MODEL is a run folder, an export folder or an ONNX file; INPUT a file, a folder with all images below it, or a glob
    pattern. Prints probability, label and file.
    """
    from autoft import predict as prediction

    unreadable = 0
    for image in prediction.predict(Path(model), inputs):
        unreadable += image.error is not None
        if as_json:
            click.echo(to_json(image))
        elif image.error is not None:
            click.echo(f"{image.image}: {image.error}", err=True)
        else:
            width = max(map(len, image.probabilities))
            click.echo(f"{image.probability:.4f}  {image.label:<{width}}  {image.image}")
    if unreadable:
        click.echo(f"{unreadable} images could not be read", err=True)
