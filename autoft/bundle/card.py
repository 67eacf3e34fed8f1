"""`model_card`: what a stranger has to know of a model before using it, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from autoft.bundle import figures
from autoft.bundle.licenses import NOTICE, TOOL_LICENCE
from autoft.media.image.decode import EXACT_PIXELS, MAX_PIXELS
from autoft.system.markdown import plain, table
from autoft.tasks.forms.base import AnswerForm, Model, split_name
from autoft.values.backbone import Backbone
from autoft.values.bundle import (
    CORE,
    IMAGES,
    LICENSES,
    METRICS,
    MIN_ONNXRUNTIME,
    MODEL,
    PARITY,
    PREPROCESS,
    VECTORS,
    Latency,
    MetricsReport,
    ParityReport,
    Training,
)
from autoft.values.counts import counted, milliseconds
from autoft.values.dataset import DatasetInfo, SplitName, ValueRange
from autoft.values.handoff import Handoff, Layout, Preprocess, View
from autoft.values.target import MetricFacts

_TRUST: Final[Mapping[SplitName, str]] = {
    "test": "Its score comes from {n:,} images of the test split, which took no part in training or in choosing it.",
    "val": "**Its figures are optimistic.** They come from {n:,} images of the validation split, by which this model\n"
    "was {chosen}. No figures from a test split are here.",
    "train": "**Its figures say little.** They come from {n:,} images that it was trained on.",
}
_OF_THE_TWIN: Final = """**Its figures are not its own.** They are those of trial {twin} on {n:,} validation images,
by which it was {chosen}, so they are optimistic. It had the same training without these images{part}; this
model was trained on them too. No figures from a test split are here."""
_REOPENED: Final = """
The test images were scored {times} times in this run's life: it went on after it had ended, or an end of it failed or
was stopped once they were scored. Whoever went on because of such a score has chosen by it."""
_SEEN_BEFORE: Final = """
The search began with the best parameters of another one, which had {seen:,} of the test images for training or for
validation. No weights come from there, but the figures may be slightly optimistic."""
_FED: Final[Mapping[Layout, tuple[str, str]]] = {
    "image": ("pixels", "one image a call, of shape (height, width, 3)"),
    "batch": ("pixels[None]", "images of one size a call, of shape (batch, height, width, 3)"),
}
_SEEN: Final[Mapping[View, str]] = {
    "crop": "Cut out the centre square: side = min(width, height), left = (width - side) // 2, top =\n"
    "   (height - side) // 2. What is outside of it is not seen.",
    "squash": "Take the whole image.",
    "pad": "Take the whole image.",
}
_RESIZED: Final[Mapping[View, str]] = {
    "crop": "to {size} x {size}.",
    "squash": "to {size} x {size}, whatever its shape.",
    "pad": "with long = max(width, height), each side to\n"
    "   max(1, (2 * side * {size} + long) // (2 * long)). Paste it on a square of {size} x {size} of the RGB colour\n"
    "   {colour}, ({size} - width) // 2 pixels from the left and ({size} - height) // 2 from the top.",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of: what other files of the bundle hold, and how they came about.

    `form` is that of the answers. `layout` is what model.onnx takes, `vectors` the number of images in
    test_vectors/, `created` a date in ISO 8601, `known` how the task's metrics are shown, by name. `max_latency` is
    what the core was allowed to take for one image, `core_milliseconds` what it took; None without a limit.
    """

    handoff: Handoff
    form: AnswerForm
    data: DatasetInfo
    metrics: MetricsReport
    parity: ParityReport
    latency: Latency
    layout: Layout
    vectors: int
    versions: Mapping[str, str]
    created: str
    known: Mapping[str, MetricFacts] = field(default_factory=dict)
    max_latency: float | None = None
    core_milliseconds: float | None = None

    def shown(self, metric: str) -> MetricFacts:
        """How a metric is shown."""
        return self.known.get(metric, MetricFacts(metric))


def model_card(facts: CardFacts) -> str:
    """The card. All its figures come from `facts`; a path on this machine keeps only its last part."""
    handoff, form, metrics = facts.handoff, facts.form, facts.metrics
    sections = (
        _head(facts),
        _use(facts),
        _limits(facts),
        _data(facts),
        form.score(metrics, facts.shown),
        f"## Calibration\n\n{form.calibration(metrics)}{_prior(facts)}",
        figures.parity(facts.parity, form),
        figures.speed(facts.latency),
        _preprocessing(handoff.preprocess, form.from_core(Model(handoff.targets, metrics.calibration))),
        _licences(handoff.backbone),
        _provenance(facts),
    )
    return "\n\n".join(sections) + "\n"


def _head(facts: CardFacts) -> str:
    targets, backbone, metrics = facts.handoff.targets, facts.handoff.backbone, facts.metrics
    trust = _TRUST[metrics.split] if metrics.of_trial is None else _OF_THE_TWIN
    chosen = f"{_came_about(facts)}{_better(facts)}"
    again = _REOPENED.format(times=metrics.test_openings) if metrics.test_openings > 1 else ""
    before = _SEEN_BEFORE.format(seen=metrics.test_images_seen) if metrics.test_images_seen else ""
    share, train = facts.handoff.scored_share, facts.data.counts["train"]
    part = "" if share == 1 else f" and on {_part(share, train, 'training images')}"
    return f"""# {facts.form.title(targets)}

{trust.format(n=metrics.n, twin=metrics.of_trial, chosen=chosen, part=part)}{again}{before}

{facts.form.about(targets)}
autoft made it on {plain(facts.created)} from the pretrained backbone {plain(backbone.name)}
({backbone.parameters:,} parameters){_seen_by_the_head(facts.handoff)}."""


def _seen_by_the_head(handoff: Handoff) -> str:
    if not handoff.tapped:
        return ""
    return f"; beside its features the model's head sees {handoff.tapped:,} means and maxima of what each stage gives"


def _use(facts: CardFacts) -> str:
    fed, shape = _FED[facts.layout]
    return f"""## How to use

`pip install "onnxruntime>={MIN_ONNXRUNTIME}" numpy pillow` (before 1.19 with `"numpy<2"`), then in this folder, with a
photo of your own:

```python
import json, numpy, os, pathlib
from PIL import Image, ImageOps
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else onnxruntime from 1.29 on sends events to its maker
import onnxruntime
session = onnxruntime.InferenceSession("{MODEL}", providers=["CPUExecutionProvider"])
formats = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]  # not EPS, for which Pillow starts Ghostscript
image = ImageOps.exif_transpose(Image.open("photo.jpg", formats=formats))
if image.mode[0] in "IF":  # Pillow would cut off what is above 255
    raise SystemExit("more than 8 bits: {_deep(facts.handoff.preprocess.value_range)}")
image = image.convert("RGBA")
pixels = numpy.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
{facts.form.usage(fed)}
```

`image` is uint8 RGB of any size: {shape}. To bound memory, `examples/infer.py`
halves images of more than {EXACT_PIXELS // 1_000_000} megapixels, as was done in training, and refuses those of
more than {MAX_PIXELS // 1_000_000}. It reads photos of phones (HEIC) where `pi-heif` is installed. `{MODEL}` takes
about 22 MiB a megapixel: some 300 MiB at 12 megapixels, 1 GiB at 48, 2.2 GiB at 98. Shrink large images first, or
refuse them, where that is too much. How other images become RGB is below, under Preprocessing.

Runtimes other than onnxruntime, such as OpenVINO, TensorRT and OpenCV's dnn, take `{CORE}`, which is here too; how
it is fed is under Preprocessing.

Wherever you deploy the model, run `python verify.py` first: it checks that this folder is complete, and that both
models answer there as they did where they were made."""


def _deep(found: ValueRange | None) -> str:
    """What becomes of images of more than 8 bits."""
    if found is None:
        return "examples/infer.py takes 16-bit grey; the data had no float or 32-bit image"
    return "examples/infer.py scales such images as those of training"


def _limits(facts: CardFacts) -> str:
    own = "\n".join(f"- {limit}" for limit in facts.form.limits(facts.handoff.targets))
    return f"""## Intended use and limits

{own}
- No test of drift and no test with out-of-distribution images was made: how it does with another camera, place or
  time is not known. Measure it on your own images before you rely on it.
- What the pretraining data brought in, biases among it, was not examined; that data has terms of its own."""


def _groups(data: DatasetInfo) -> str:
    if not data.groups:
        return ""
    return f"""
Images belong to {counted(data.groups, "group")}, each of which is in one split unless the table parts it. Intervals
take images for independent, which those of a group are not: they are too narrow."""


def _data(facts: CardFacts) -> str:
    data, vectors = facts.data, facts.vectors
    counts = ", ".join(f"{split_name(split)} {count:,}" for split, count in data.counts.items())
    return f"""## Data

Images: {counts}; median short side {data.short_side} pixels, median ratio of the long side to it {data.aspect:.2f}.
Files that were not used: {len(data.problems):,}. Fingerprint: {plain(data.fingerprint)}.{_groups(data)}

{_trained_on(facts)}{_test_counts(facts.metrics)}

**Privacy.** `{VECTORS}/` holds {vectors} images that are, or were made of, images from the validation split,
`{PARITY}` names some files of the data, and by `{IMAGES}` whoever holds an image can tell that it was in the
data. If that must not be, remove any of the three, `{VECTORS}/` as a whole, before you pass this folder on:
`verify.py` then notes what was left out, and passes. The `label` of a vector is that of the image it was made
from, which need not be what the model answers: its answers are the numbers beside it.

{facts.form.data(facts.handoff.targets, facts.metrics)}"""


def _trained_on(facts: CardFacts) -> str:
    """The images that it was trained on, and what the validation images did."""
    handoff, counts, fitted = facts.handoff, facts.data.counts, facts.metrics.calibration.is_fitted
    trial, train, val = handoff.trial, counts["train"], counts["val"]
    scored = _scored(facts.metrics.calibration.n, val)
    if trial.twin is None:
        part = _seen(handoff, handoff.training, _part(handoff.share, train, "training images"))
        did = f"{'chose' if handoff.better is None else 'scored'}{' and calibrated' if fitted else ''}"
        return f"Trained on {part}. {scored} {did} it{_better(facts)}, and did not train it."
    twin = _seen(handoff, handoff.scored_training, _part(handoff.scored_share, train, "training images"))
    part = _seen(handoff, handoff.training, _part(handoff.share, train + val, "training and validation images"))
    come = "the validation score below and the calibration come" if fitted else "and the validation score below come"
    settings = "The settings, " if fitted else "The settings "
    return f"""This model was trained on {part} (trial {trial.id}, a refit).
{settings}{come} from trial {trial.twin.trial}, the same training on
{twin}, scored on {scored[0].lower()}{scored[1:]}."""


def _test_counts(metrics: MetricsReport) -> str:
    """What the counts of test images in metrics.json are."""
    if metrics.split != "test":
        return ""
    return f"""
In `{METRICS}`, `test_openings` ({metrics.test_openings}) is how often the search has scored its test images, and
`test_images_seen` ({metrics.test_images_seen}) how many of them another search had that it began with."""


def _scored(scored: int, images: int) -> str:
    """Which validation images chose and calibrated it: there may not have been time to score all."""
    return (
        f"{scored:,} of the {images:,} validation images"
        if 0 < scored < images
        else f"The {images:,} validation images"
    )


def _came_about(facts: CardFacts) -> str:
    """What was done to a model by the validation images."""
    chosen = "chosen" if facts.handoff.better is None else "scored"
    return f"{chosen} and calibrated" if facts.metrics.calibration.is_fitted else chosen


def _better(facts: CardFacts) -> str:
    """That the search prefers another trial, where it does."""
    better = facts.handoff.better
    return "" if better is None else f" (by these the search puts trial {better} first)"


def _part(share: float, images: int, what: str) -> str:
    """How many of the images a model was trained on; a head in closed form may have had no time for all."""
    if share == 1:
        return f"all {images:,} {what}"
    return f"{round(share * images):,} of the {images:,} {what}, for lack of time"


def _seen(handoff: Handoff, training: Training | None, part: str) -> str:
    """What was trained on; steps by gradient, each of one batch, need not have seen all of it."""
    if training is None:
        return part
    how = "a pass leaves out what does not fill a batch"
    if handoff.balance == "sampling":
        how = "each pass draws all classes alike, rare images again and again, others not at all"
    return f"batches of the {part.removeprefix('all ')} for {training} ({how})"


def _prior(facts: CardFacts) -> str:
    """What probabilities of a model are worth that was trained to weigh classes of unlike sizes alike."""
    found, fitted = facts.metrics.prior_correction, facts.metrics.calibration.is_fitted
    if found is None:
        return ""
    trial, images = facts.handoff.trial, f"{found.n:,} validation images"
    held = f"what trial {trial.twin.trial} made of {images}" if trial.twin else images
    before, after = f"{found.log_loss_before:.3f}", f"{found.log_loss_after:.3f}"
    weighed = f"""

Training weighed all classes alike, whatever their sizes (by `{plain(facts.handoff.balance)}`), so probabilities may
lean to rare classes{"" if fitted else ", and they were not calibrated"}. """
    if not found.helps:
        return f"""{weighed}To multiply them by the classes' shares does not mend that
here: the log loss of {held} is {before} as they come, and {after} with the shares of the training
images. So take them as they come, and measure on your own images."""
    return f"""{weighed}Where classes are as frequent as in training, take
`probabilities * shares`, divided by their sum, with `prior_correction.shares` in `{METRICS}`: the log loss of
{held} is {before} as they come, and {after} so. Where they have other shares, take those."""


def _preprocessing(recipe: Preprocess, from_core: str) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (recipe.mean, recipe.std))
    size = recipe.size
    return f"""## Preprocessing

Decode to 8-bit RGB, upright by the EXIF orientation, transparency over white, 16-bit grey divided by 257 and rounded.
{_range(recipe.value_range)}

`{MODEL}` does the rest itself; what `{CORE}` takes as `images` is made so:

1. {_SEEN[recipe.view]}
2. Resize it as Pillow does, {recipe.interpolation}, with antialiasing, first the width, then the height, rounded to
   whole numbers each time: {_RESIZED[recipe.view].format(size=size, colour=recipe.pad_colour)}
3. Divide by 255, subtract the mean ({mean}) and divide by the standard deviation ({std}) of red, green
   and blue; float32, (batch, 3, {size}, {size}).

Its output is `logits`, (batch, outputs), {from_core}"""


def _range(found: ValueRange | None) -> str:
    if found is None:
        return (
            f"Float and 32-bit integer images were not in the data: `value_range` in `{PREPROCESS}` is null, and\n"
            "there is no scale for them."
        )
    low, high = found
    return (
        f"Of float and 32-bit integer images {low!r} to {high!r} becomes 0 to 255, clipped and rounded: the one scale\n"
        f"of the data, `value_range` in `{PREPROCESS}`. An image's own smallest and largest value are not to be used."
    )


def _licences(backbone: Backbone) -> str:
    return f"""## Licences

- Pretrained weights: {plain(backbone.license)}; source: {plain(backbone.source) or "not given"}.
- The scripts here, which autoft wrote: {TOOL_LICENCE}.
- The pretraining data has terms of its own. The images in `{VECTORS}/` and what fine-tuning added to the weights
  belong to their owners and to whoever trained this model.

`{LICENSES}/{NOTICE}` has more, and says where the copyright notices of the weights' authors are. Pass them on."""


def _provenance(facts: CardFacts) -> str:
    handoff = facts.handoff
    rows = [
        ("Created", plain(facts.created)),
        ("Backbone", plain(handoff.backbone.name)),
        *_trial(handoff),
        *_lengths(handoff),
        *([("Training steps in", f"{handoff.precision}; scored in fp32")] if handoff.precision else ()),
        *_limited(facts),
        (_chosen_by(handoff), facts.shown(handoff.metric).text(handoff.validation_score)),
        *((f"Version of {plain(name)}", plain(version)) for name, version in facts.versions.items()),
    ]
    return f"## Provenance\n\n{table(('What', 'Value'), rows)}"


def _lengths(handoff: Handoff) -> Iterator[tuple[str, str]]:
    """How long the model trained by gradient, and the trial that it repeats."""
    twin = handoff.trial.twin
    if handoff.training:
        yield "Trained for", str(handoff.training)
    if twin and handoff.scored_training:
        yield f"Trial {twin.trial} trained for", str(handoff.scored_training)


def _limited(facts: CardFacts) -> Iterator[tuple[str, str]]:
    """What the core was allowed to take for one image where it was made."""
    if facts.max_latency is not None:
        taken = "" if facts.core_milliseconds is None else f"; {milliseconds(facts.core_milliseconds)} measured"
        yield f"Most that `{CORE}` was to take an image (`--max-latency`)", f"{milliseconds(facts.max_latency)}{taken}"


def _chosen_by(handoff: Handoff) -> str:
    twin = handoff.trial.twin
    if handoff.better is not None:
        return f"Validation {plain(handoff.metric)}{f' of trial {twin.trial}' if twin else ''}"
    return f"{f'Trial {twin.trial} chosen' if twin else 'Chosen'} by validation {plain(handoff.metric)}"


def _trial(handoff: Handoff) -> Sequence[tuple[str, str]]:
    trial = handoff.trial
    params = [(f"Parameter {plain(name)}", plain(str(value))) for name, value in trial.params.items()]
    return [
        ("Trial", f"{trial.id}, refit of trial {trial.twin.trial}" if trial.twin else str(trial.id)),
        ("Freeze strategy", plain(trial.freeze)),
        ("Image size", str(trial.image_size)),
        *params,
        *_seeds(handoff),
        *_begun(handoff),
    ]


def _seeds(handoff: Handoff) -> Iterator[tuple[str, str]]:
    """That by which the run can be repeated, and the trial's own."""
    if handoff.search_seed is not None:
        yield "Seed of the search (`--seed`), which made the split unless the data has one", str(handoff.search_seed)
    yield "Seed of the trial", str(handoff.trial.seed)


def _begun(handoff: Handoff) -> Iterator[tuple[str, str]]:
    """What came from another run."""
    if begun := handoff.begun:
        what = f"parameters of {counted(begun.trials, 'trial')} of run {plain(begun.run)}, tried first"
        yield "The search began with (`--from`)", f"{what}; no weights"
