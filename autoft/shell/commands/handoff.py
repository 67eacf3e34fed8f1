"""`autoft export`, `autoft verify` and `autoft predict`: the bundle, made, checked and used."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from autoft.errors import DataError, GateFailed, UserError, first_names
from autoft.shell.commands import (
    Command,
    json_option,
    moved_option,
    plugin_option,
    require_one_form,
    say,
    shown,
    talk_on_stderr,
    to_json,
)
from autoft.values.counts import counted

if TYPE_CHECKING:
    from autoft.bundle.onnx_runtime import PixelModel
    from autoft.bundle.rescore import Rescored
    from autoft.values.dataset import SplitName
    from autoft.values.prediction import Prediction
    from autoft.values.summary import Scores

SPLITS: Final[tuple[SplitName, ...]] = ("train", "val", "test")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@click.command(
    cls=Command,
    examples=(
        "autoft export runs/photos-20260102-030405 --trial 7",
        "autoft export runs/photos-20260102-030405 --trial 7 --out deploy/",
        "autoft export runs/photos-20260102-030405 --batched",
    ),
)
@click.argument("run")
@click.option("--trial", type=int, metavar="N", help="Which one; see autoft leaderboard.  [default: the best]")
@click.option("--out", metavar="DIR", help="Where to.  [default: RUN/exports/N]")
@click.option("--batched", is_flag=True, help="model.onnx takes a batch of equal-sized images.")
@moved_option
@plugin_option
@json_option
def export(
    run: str,
    trial: int | None,
    out: str | None,
    batched: bool,
    data: str | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the bundle of any trial that is still exportable.

    Its files are compared with torch in full, on validation images, and it comes with validation figures only: the
    test images are for the trial that the search chose.
    """
    from autoft.shell.terminal import open_screen
    from autoft.study.machine import cores
    from autoft.study.run import Run

    opened = Run.open(Path(run))
    if data is not None:
        opened = opened.with_images(Path(data))
        opened.verify_images(cores())
    from autoft.engine import conclude, execution  # bring torch, which a mistake found above should not wait for

    with talk_on_stderr():
        wish = execution.ExportWish(trial, Path(out) if out else None, conclude.layout(batched))
        exported = execution.export_trial(opened, plugins, wish, open_screen())
    if as_json:
        say(to_json(exported))
        return
    say(f"trial       {exported.trial.id}: {exported.trial.backbone}, {exported.trial.freeze}")
    say(f"bundle      {shown(Path(exported.folder))}, model.onnx {exported.model_bytes / 1e6:.1f} MB")
    say(f"validation  {_figures(exported.validation)}")
    worst = max(parity.max_delta / parity.scale for parity in exported.parity.core)
    pixels = exported.parity.pixels
    say(f"parity      {counted(pixels.n, 'image')}: logits within {worst:.1g} of their scale, from pixels answers")
    say(f"            within {pixels.max_delta:.1g}; {exported.parity.exporter}")


def _figures(scores: Scores) -> str:
    return f"{', '.join(f'{name} {scores.text(name)}' for name in scores.metrics)}  ({scores.counted()})"


@dataclass(frozen=True)
class Verified:
    """What `autoft verify` found; `rescored` when it was given images."""

    passed: bool
    problems: tuple[str, ...]
    unlisted: tuple[str, ...]
    notes: tuple[str, ...]
    files: int
    vectors: int
    worst_difference: float | None
    seconds: float
    rescored: Rescored | None


@click.command(
    cls=Command,
    examples=(
        "autoft verify runs/photos-20260102-030405/export",
        "autoft verify deploy/ labelled/      and its score on labelled images",
        "autoft verify deploy/ other.csv      or on those of a manifest, image,label",
        "autoft verify deploy/ photos/ --all  even on those it was trained on",
    ),
)
@click.argument("bundle")
@click.argument("images", required=False)
@click.option("--all", "everything", is_flag=True, help="Score images that the model was trained or chosen on, too.")
@json_option
def verify(bundle: str, images: str | None, everything: bool, as_json: bool) -> None:
    """Check a bundle: every file by its hash, both models on the test vectors.

    BUNDLE is an exported folder, or a run folder with one. IMAGES, a CSV manifest or one folder of images a class,
    also inside split folders, is scored as well; images that the model was trained or chosen on are recognised by
    their content and left out, copies of one image count once, and not at all where their labels differ. Exit code 3
    when something is not as promised, 2 when an image cannot be read. Needs no torch; nothing in the bundle is
    executed.
    """
    from autoft.bundle.standalone.verify import measured_line, unlisted_line

    result = _verified(Path(bundle), Path(images) if images else None, everything)
    _mention_a_later_search(Path(bundle))
    if as_json:
        say(to_json(result))
    elif result.passed:
        measured = measured_line(result.vectors, result.worst_difference)
        say(f"PASS: {counted(result.files, 'file')}, {measured}, {result.seconds:.1f} s")
    for note in result.notes:
        click.echo(note, err=True)
    if result.unlisted:
        click.echo(unlisted_line(list(result.unlisted)), err=True)
    if not result.passed:
        raise GateFailed(f"{bundle} is not as promised: {'; '.join(result.problems)}")
    if result.rescored is None:
        return
    if not as_json:
        say(f"{_figures(result.rescored.scores)}{_doubt(result.rescored)}")
        for line in (*_provenance(result.rescored), *_copies(result.rescored)):
            say(line)
        for line in result.rescored.unreadable:
            click.echo(line, err=True)
    _require_all_read(len(result.rescored.unreadable), "the score is of the others")


def _doubt(rescored: Rescored) -> str:
    """What to say behind a score of which the bundle cannot tell that it is a fair one."""
    if not rescored.unsure:
        return ""
    said = "trained on, or chosen by" if rescored.train_on == "train" else "trained on, validation images among them"
    return f"; may include images that the model was {said}"


def _provenance(rescored: Rescored) -> Iterator[str]:
    """What the given images are to the model; nothing when it has never met one of them."""
    if not any(rescored.known.values()):
        if rescored.left_out:
            why = "of the train and val splits there, as the bundle cannot tell which it was trained on"
            yield f"left out    {rescored.left_out} {why}; --all scores them too"
        return
    untold = "of which the bundle cannot tell, as it lists a sample of the run's images"
    trained, chose, tested = (rescored.scored[split] for split in SPLITS)
    if trained + chose:
        share = (trained + chose) / rescored.scores.n
        splits = f"training split ({trained}) or its {_validation(rescored)} ({chose})"
        yield f"optimistic  {share:.0%} of these images are of the run's {splits}"
        return
    counts = {"of the run's test split": tested, "new to the model": rescored.fresh, untold: rescored.unsure}
    yield f"scored      {', '.join(f'{count} {what}' for what, count in counts.items() if count)}"
    if not rescored.left_out:
        return
    trained, chose = rescored.known["train"], rescored.known["val"]
    if trained + chose:
        splits = f"{trained} of the run's training split, {chose} of its {_validation(rescored)}"
        yield f"left out    {splits}; --all scores them too"
    if unsure := rescored.left_out - trained - chose:
        yield f"left out    {unsure} {untold}"


def _copies(rescored: Rescored) -> Iterator[str]:
    if copies := rescored.copies:
        said = "1 file is a copy of another" if copies == 1 else f"{copies} files are copies of others"
        yield f"copies      {said}; each image counts once"
    if torn := rescored.contradictory:
        count = "1 image has" if len(torn) == 1 else f"{len(torn)} images have"
        yield f"left out    {count} several labels: {first_names(torn)}"


def _validation(rescored: Rescored) -> str:
    """What the validation split is called. That all images of a split trained a model is not said: it may be a part."""
    return "validation split" + (", which trained it too" if rescored.train_on == "train+val" else "")


def _verified(bundle: Path, images: Path | None, everything: bool) -> Verified:
    from autoft.bundle.onnx_runtime import PixelModel
    from autoft.bundle.predict import find_bundle
    from autoft.bundle.rescore import labelled_images, read_known, read_source, rescore, task_of
    from autoft.bundle.standalone import verify as standalone
    from autoft.values.bundle import MODEL

    folder = find_bundle(bundle)
    try:
        outcome = standalone.verify(folder)
    except standalone.CannotRun as problem:
        raise UserError(str(problem)) from problem
    rescored, notes = None, tuple(outcome.notes)
    if images and not outcome.problems:
        model = PixelModel(folder / MODEL)
        source = read_source(model, images)
        labelled = labelled_images(source.images, read_known(folder, model.train_on), task_of(model))
        chosen = labelled.everything if everything else labelled.fair
        rescored = rescore(model, labelled, chosen, source.unreadable)
        notes += source.notes
    return Verified(
        passed=not outcome.problems,
        problems=tuple(outcome.problems),
        unlisted=tuple(outcome.unlisted),
        notes=notes,
        files=outcome.files,
        vectors=outcome.vectors,
        worst_difference=outcome.worst_difference,
        seconds=outcome.seconds,
        rescored=rescored,
    )


@click.command(
    cls=Command,
    examples=(
        "autoft predict runs/photos-20260102-030405 new/cat.jpg",
        "autoft predict deploy/ new/ 'more/*.png' --json",
        "autoft predict deploy/model.onnx new/ --csv > answers.csv",
    ),
)
@click.argument("model")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one line an image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: image, what the model says, error.")
def predict(model: str, inputs: tuple[str, ...], as_json: bool, as_csv: bool) -> None:
    """Say what an exported model sees in images.

    MODEL is a run folder, a bundle or its model.onnx; INPUT an image, a folder with all images below it, a CSV file
    that names images, or a glob pattern. Prints what the model says, a label with its probability or numbers, and the
    file. Exit code 2 when an image cannot be read. Needs no torch.
    """
    require_one_form(as_json, as_csv)
    from autoft.bundle import predict as prediction

    opened = prediction.open_model(Path(model))
    _mention_a_later_search(Path(model))
    show = _json_lines if as_json else _csv if as_csv else _table
    _require_all_read(show(opened, prediction.predictions(opened, inputs)), "the others are above")


def _mention_a_later_search(model: Path) -> None:
    """Say on stderr when the run was searched on after its model was exported."""
    from autoft.bundle.predict import searched_on

    if run := searched_on(model):
        name = shlex.quote(shown(run))
        what = "goes on with it and exports the best"
        click.echo(f"run {name} was searched on since it exported this model: `autoft resume {name}` {what}", err=True)


def _require_all_read(unreadable: int, others: str) -> None:
    """Raise `DataError` when images could not be read; `others` says what became of the rest."""
    if unreadable:
        raise DataError(f"{counted(unreadable, 'image')} could not be read; {others}")


def _table(model: PixelModel, predictions: Iterable[Prediction]) -> int:
    """Print the predictions; how many images could not be read."""
    unreadable = 0
    for image in predictions:
        if image.error is not None:
            unreadable += 1
            click.echo(f"{_on_one_line(image.image)}: {image.error}", err=True)
        else:
            say(f"{model.form.line(image)}  {_on_one_line(image.image)}")
    return unreadable


def _on_one_line(name: str) -> str:
    """A file name without control characters: it may hold newlines, and what a terminal would obey."""
    return _CONTROL.sub(" ", name)


def _json_lines(model: PixelModel, predictions: Iterable[Prediction]) -> int:
    unreadable = 0
    for image in predictions:
        unreadable += image.error is not None
        say(to_json(model.form.record(image)))
    return unreadable


def _csv(model: PixelModel, predictions: Iterable[Prediction]) -> int:
    unreadable = 0
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(model.form.columns(model.targets))
    for image in predictions:
        unreadable += image.error is not None
        writer.writerow(model.form.cells(image, model.targets))
    return unreadable
