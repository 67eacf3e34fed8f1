from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from parts.exported import how, one_of
from PIL import Image, UnidentifiedImageError

from autoft.bundle.card import CardFacts, model_card
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.system.markdown import plain, table
from autoft.tasks.forms.any_of import AnyOf
from autoft.tasks.forms.base import MOST_NAMES, WORST
from autoft.tasks.forms.numbers import Numbers
from autoft.tasks.forms.one_of import OneOf
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.bundle import (
    CORE,
    MODEL,
    Calibration,
    ClassReport,
    CoreParity,
    Estimate,
    Latency,
    MetricsReport,
    Origin,
    ParityReport,
    PixelParity,
    PriorCorrection,
    Timing,
    Training,
)
from autoft.values.dataset import DataProblem, DatasetInfo, SplitName
from autoft.values.handoff import Begun, Handoff, Preprocess, View
from autoft.values.target import MetricFacts
from autoft.values.trial import Parent, Trial

RECIPE = Preprocess(48, (0.11, 0.12, 0.13), (0.21, 0.22, 0.23), "bilinear", "pad", value_range=(-2.5, 310.125))
PRECISION = "bf16, contiguous"
TRICKY = (
    "a|b",
    "`tick`",
    "new\nline",
    "<script>alert(1)</script>",
    "*bold* _it_",
    "[x](http://y)",
    "a\\|b",
    "&amp;",
    "~~s~~",
)
RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def facts(labels: tuple[str, ...] = ("cat", "dog", "owl")) -> CardFacts:
    backbone = Backbone("zoo/net", 1_234_567, InputSpec(48), license="mit", source="net.pth")
    trial = Trial(17, backbone.name, "lower_half", 48, {"learning_rate": 0.00123, "init": "ridge"}, seed=99)
    per_class = tuple(
        ClassReport(label, 40 + index, 0.5, 0.9 - index / 1000, 0.7) for index, label in enumerate(labels)
    )
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    core = CoreParity(64, 10.0, 4.56e-5, 1e-6, 1e-3, 1e-5, 1e-3, 0, (), 8, True)
    return CardFacts(
        form=OneOf(),
        handoff=Handoff(one_of(labels), RECIPE, backbone, trial, "accuracy", 0.8765, "f1n6e7", precision=PRECISION),
        data=DatasetInfo(
            root="/home/me/pets",
            targets=one_of(labels),
            counts={"train": 601, "val": 202, "test": 203},
            fingerprint="f1n6e7",
            short_side=321,
            aspect=1.6,
            problems=(DataProblem("x", "bad"),),
        ),
        metrics=MetricsReport(
            split="test",
            n=203,
            correct=177,
            metrics={name: Estimate(0.81 + i / 100, (0.71 + i / 100, 0.91 + i / 1000)) for i, name in enumerate(names)},
            ece_before_temperature=Estimate(0.0987, (0.05, 0.15)),
            calibration=Calibration(1.374, 202, 0.6543, 0.5432, "It helps."),
            per_class=per_class,
            confusion=(),
            test_openings=1,
        ),
        parity=ParityReport("torch.onnx dynamo", ("no",), (core,), PixelParity(61, 0.00345, 1e-5, 0.02, 0.04, 0, ())),
        latency=Latency(
            "Some CPU @ 2 GHz, 4 cores", "1.23.4", 4, (Timing(MODEL, 1, "512x512", 7.25, 9.75, 20),), 345,
            {MODEL: 98_765, CORE: 87_654}, "python verify.py --latency",
        ),
        layout="image",
        vectors=14,
        versions={"autoft": "0.1.0", "torch": "2.99"},
        created="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


def tables(card: str) -> list[list[str]]:
    """Runs of neighbouring lines that begin with a pipe."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)]


def shown(markdown: str) -> str:
    """What a reader sees: the text of the rendered document."""
    tokens = [child for token in RENDER.parse(markdown) for child in (token.children or [])]
    return "\n".join(token.content for token in tokens)


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


# ---------------------------------------------------------------- what it says


def test_sections_come_in_order() -> None:
    titles = re.findall(r"^## (.+)$", model_card(facts()), re.MULTILINE)
    assert titles == [
        "How to use", "Intended use and limits", "Data", "Score", "Calibration", "Parity", "Speed", "Preprocessing",
        "Licences", "Provenance",
    ]  # fmt: skip


def test_validation_figures_are_called_optimistic_at_the_top() -> None:
    of_validation = facts()
    of_validation = replace(of_validation, metrics=replace(of_validation.metrics, split="val"))
    assert "optimistic" in "".join(model_card(of_validation).splitlines()[:4])
    assert "optimistic" not in model_card(facts())


def test_a_second_opening_of_the_test_split_is_said_at_the_top() -> None:
    of = facts()
    assert "times in this run's life" not in model_card(of)
    head = model_card(replace(of, metrics=replace(of.metrics, test_openings=3))).split("## ")[0]
    assert "The test images were scored 3 times in this run's life: it went on after it had ended, or an end of" in head


def test_counts_of_test_images_in_metrics_json_are_explained_where_they_count_any() -> None:
    of = facts()
    data = section(model_card(replace(of, metrics=replace(of.metrics, split="test", test_openings=2))), "Data")
    assert "`test_openings` (2)" in data
    assert "test_openings" not in section(model_card(replace(of, metrics=replace(of.metrics, split="val"))), "Data")


def test_a_limit_on_latency_is_on_the_card_with_what_was_measured() -> None:
    of = facts()
    assert "max-latency" not in model_card(of)
    rows = section(model_card(replace(of, max_latency=20.0, core_milliseconds=12.3)), "Provenance")
    assert "20 ms; 12.3 ms measured" in rows


def test_test_images_that_another_run_had_seen_are_said_at_the_top() -> None:
    of = facts()
    assert "The search began with" not in model_card(of)
    head = model_card(replace(of, metrics=replace(of.metrics, test_images_seen=1234))).split("## ")[0]
    assert "The search began with the best parameters of another one, which had 1,234 of the test images for" in head


REFIT = {"id": 1, "train_on": "train+val", "twin": Parent(0, 3.0)}


@pytest.mark.parametrize(
    ("trial", "share", "words"),
    [
        ({}, 1.0, "Trained on all 601 training images. The 202 validation images chose and calibrated it,"),
        ({}, 0.25, "Trained on 150 of the 601 training images, for lack of time. The 202 validation"),
        (REFIT, 1.0, "trained on all 803 training and validation images (trial 1, a refit)."),
        (REFIT, 0.25, "trained on 201 of the 803 training and validation images, for lack of time (trial 1,"),
        (REFIT, 1.0, "and the calibration come from trial 0, the same training on all 601 training images, scored"),
    ],
)
def test_the_card_says_which_images_trained_it(trial: dict[str, Any], share: float, words: str) -> None:
    of = facts()
    made = replace(of.handoff, share=share, trial=replace(of.handoff.trial, **trial))
    assert words in " ".join(section(model_card(replace(of, handoff=made)), "Data").split())


@pytest.mark.parametrize(("trial", "before"), [({}, ""), (REFIT, "scored on ")])
def test_the_card_says_how_many_validation_images_there_was_time_for(trial: dict[str, Any], before: str) -> None:
    of = facts()
    metrics = replace(of.metrics, calibration=replace(of.metrics.calibration, n=150))
    made = replace(of.handoff, trial=replace(of.handoff.trial, **trial))
    said = " ".join(section(model_card(replace(of, handoff=made, metrics=metrics)), "Data").split())
    assert f"{before}150 of the 202 validation images" in said


@pytest.mark.parametrize("trial", [{}, REFIT])
def test_validation_images_by_which_another_trial_is_first_did_not_choose_it(trial: dict[str, Any]) -> None:
    of = facts()
    made = replace(of.handoff, better=5, trial=replace(of.handoff.trial, **trial))
    metrics = replace(of.metrics, split="val", of_trial=0 if trial else None)
    card = model_card(replace(of, handoff=made, metrics=metrics))
    head, data = (" ".join(text.split()) for text in (card.split("## ")[0], section(card, "Data")))
    assert "was scored and calibrated (by these the search puts trial 5 first)" in head
    if not trial:
        assert "images scored and calibrated it (by these the search puts trial 5 first), and did not train it" in data
    assert f"| Validation accuracy{' of trial 0' * bool(trial)} | 0.8765 |" in section(card, "Provenance")
    assert "chose" not in card
    assert "the search puts" not in model_card(of)


def test_provenance_has_the_seed_to_repeat_the_search_with_and_the_trials_own() -> None:
    of = facts()
    rows = section(model_card(replace(of, handoff=replace(of.handoff, search_seed=4))), "Provenance")
    assert re.search(r"\| Seed of the search .*, which made the split unless the data has one \| 4 \|", rows)
    assert "| Seed of the trial | 99 |" in rows


def test_provenance_names_the_run_that_the_search_began_with() -> None:
    of = facts()
    assert "--from" not in model_card(of)
    begun = replace(of.handoff, begun=Begun("pets*", 2))
    rows = section(model_card(replace(of, handoff=begun)), "Provenance")
    assert r"| parameters of 2 trials of run pets\*, tried first; no weights |" in rows


def test_the_card_of_a_refit_says_that_its_twin_had_no_time_for_all_images() -> None:
    of = facts()
    made = replace(of.handoff, scored_share=0.25, trial=replace(of.handoff.trial, **REFIT))
    metrics = replace(of.metrics, split="val", of_trial=0)
    card = model_card(replace(of, handoff=made, metrics=metrics))
    part = "150 of the 601 training images, for lack of time"
    head, data = (" ".join(text.split()) for text in (card.split("## ")[0], section(card, "Data")))
    assert f"It had the same training without these images and on {part}; this model was trained on them too" in head
    assert "trained on all 803 training and validation images (trial 1, a refit)" in data
    assert f"trial 0, the same training on {part}, scored on the 202 validation images" in data


LEAVES_OUT = "(a pass leaves out what does not fill a batch)"
DRAWS = "(each pass draws all classes alike, rare images again and again, others not at all)"


@pytest.mark.parametrize(
    ("trial", "balance", "words"),
    [
        ({}, "", f"Trained on batches of the 601 training images for 1 pass, 18 steps {LEAVES_OUT}. The 202"),
        ({}, "sampling", f"Trained on batches of the 601 training images for 1 pass, 18 steps {DRAWS}. The 202"),
        (
            REFIT,
            "",
            f"of the 803 training and validation images for 1.5 passes, 1,037 steps {LEAVES_OUT} (trial 1, a refit",
        ),
        (
            REFIT,
            "",
            f"the same training on batches of the 601 training images for 1 pass, 18 steps {LEAVES_OUT}, scored",
        ),
    ],
)
def test_of_training_by_gradient_the_card_says_how_long_it_was_and_never_all(
    trial: dict[str, Any], balance: str, words: str
) -> None:
    of = facts()
    lengths = {"training": Training(1.5, 1037) if trial else Training(1.0, 18), "scored_training": Training(1.0, 18)}
    made = replace(of.handoff, balance=balance, trial=replace(of.handoff.trial, **trial), **lengths)
    card = model_card(replace(of, handoff=made))
    data = " ".join(section(card, "Data").split())
    assert words in data and "on all" not in data
    rows = section(card, "Provenance")
    assert f"| Trained for | {lengths['training']} |" in rows
    assert ("| Trial 0 trained for | 1 pass, 18 steps |" in rows) is bool(trial)
    twins = lengths["scored_training"] if trial else None
    assert (made.origin.training, made.origin.twin_training) == (lengths["training"], twins)


@pytest.mark.parametrize("trial", [{}, REFIT])
@pytest.mark.parametrize("split", ["val", "test"])
def test_where_nothing_was_fitted_nothing_is_called_calibrated(split: SplitName, trial: dict[str, Any]) -> None:
    of = facts()
    made = replace(of.handoff, trial=replace(of.handoff.trial, **trial))
    for form, reason in ((OneOf(), "Too few images."), (AnyOf(), "So it is."), (Numbers(), "Nothing was calibrated.")):
        plainly = Calibration(1.0, 60, None, None, reason, (0.5, 0.5, 0.5))
        of_twin = 0 if split == "val" and trial else None
        metrics = replace(of.metrics, split=split, calibration=plainly, of_trial=of_twin, per_class=())
        targets = replace(made.targets, mean=(0.0,) * 3, deviation=(1.0,) * 3, task=form.task().name)
        card = model_card(replace(of, handoff=replace(made, targets=targets), metrics=metrics, form=form))
        assert not re.search(r"calibrated|the calibration|fit(ted)? (it )?on", card.replace(reason, ""))
        assert " to 0.5" not in section(card, "Calibration")


def test_what_was_fitted_names_the_trial_whose_outputs_it_was_fitted_on() -> None:
    of = facts()
    assert "fitted on 202 validation images" in section(model_card(of), "Calibration")
    of_twin = replace(of.metrics, origin=Origin(1, "train+val", 0))
    card = model_card(replace(of, metrics=of_twin))
    assert "fitted on what trial 0 made of 202 validation images" in section(card, "Calibration")


def test_the_card_says_which_sizes_are_halved_and_refused() -> None:
    use = " ".join(section(model_card(facts()), "How to use").split())
    assert "halves images of more than 100 megapixels" in use and "refuses those of more than 256." in use


def test_limits_are_stated() -> None:
    limits = section(model_card(facts()), "Intended use and limits")
    for words in ("none of these", "3 classes", "drift", "out-of-distribution", "wrong answers", "pretraining data"):
        assert words in limits


def test_data_section_warns_of_the_users_own_images() -> None:
    data = section(model_card(facts()), "Data")
    assert re.search(
        r"Privacy.*test_vectors/` holds 14 images.*validation.*parity.json.*images.json.*remove", data, re.DOTALL
    )
    for words in ("training 601", "validation 202", "test 203", "not used: 1", "f1n6e7", "| cat | 40 |"):
        assert words in data


def test_groups_of_images_are_told_and_what_they_mean_for_intervals() -> None:
    of = facts()
    assert "group" not in section(model_card(of), "Data")
    data = section(model_card(replace(of, data=replace(of.data, groups=12))), "Data")
    assert "Images belong to 12 groups, each of which is in one split" in data and "too narrow" in data


def test_preprocessing_states_every_number_of_the_recipe() -> None:
    text = section(model_card(facts()), "Preprocessing")
    for words in ("0.11, 0.12, 0.13", "0.21, 0.22, 0.23", "48 x 48", "bilinear", "255", "257", "EXIF", "white"):
        assert words in text


def test_preprocessing_states_the_one_range_of_the_data() -> None:
    of = facts()
    text = section(model_card(of), "Preprocessing")
    assert "-2.5 to 310.125 becomes 0 to 255" in text and "`value_range`" in text
    without = replace(of, handoff=replace(of.handoff, preprocess=replace(RECIPE, value_range=None)))
    text = section(model_card(without), "Preprocessing")
    assert "`value_range` in `preprocess.json` is null" in text and "310" not in text


def test_other_runtimes_are_sent_to_the_core() -> None:
    use = " ".join(section(model_card(facts()), "How to use").split())
    assert "Runtimes other than onnxruntime, such as OpenVINO, TensorRT and OpenCV's dnn, take `model.core.onnx`" in use


def test_preprocessing_says_how_the_core_is_used() -> None:
    text = section(model_card(facts()), "Preprocessing")
    for words in ("`images`", "`logits`", "softmax(logits / 1.374)", "`metrics.json`", "`autoft.temperature`"):
        assert words in text


@pytest.mark.parametrize(
    ("view", "words"),
    [
        ("crop", ("centre square", "outside of it is not seen")),
        ("squash", ("whole image", "to 48 x 48, whatever its shape")),
        ("pad", ("whole image", "(2 * side * 48 + long) // (2 * long)", "(124, 116, 104)")),
    ],
)
def test_preprocessing_tells_the_view(view: View, words: tuple[str, ...]) -> None:
    of = facts()
    text = section(
        model_card(replace(of, handoff=replace(of.handoff, preprocess=replace(RECIPE, view=view)))), "Preprocessing"
    )
    assert all(word in text for word in words)


def test_provenance_names_trial_parameters_and_versions() -> None:
    text = section(model_card(facts()), "Provenance")
    for words in (
        "17",
        r"lower\_half",
        "0.00123",
        "ridge",
        "99",
        "2.99",
        "2026-01-02",
        "0.8765",
        "zoo/net",
        PRECISION,
    ):
        assert words in text


def test_a_class_that_is_never_found_is_said_at_once() -> None:
    of = facts()
    rare = replace(of.metrics.per_class[0], label="rare_one", n=1200, recall=0.0)
    never = replace(of.metrics.per_class[0], label="not in this split", n=0, recall=None)
    metrics = replace(of.metrics, per_class=(rare, never, *of.metrics.per_class[1:]))
    text = section(model_card(replace(of, metrics=metrics)), "Score")
    assert r"**Not one image of this class was recognised:** rare\_one (1,200)." in text
    assert "Not one image" not in model_card(of)


def test_worst_classes_come_first_and_undefined_figures_are_named() -> None:
    of = facts(tuple(f"class{number}" for number in range(9)))
    reports = (
        *of.metrics.per_class[:7],
        ClassReport("never", 0, 0.0, None, 0.0),
        ClassReport("missed", 3, None, 0.0, 0.0),
    )
    text = section(model_card(replace(of, metrics=replace(of.metrics, per_class=reports))), "Score")
    rows = tables(text)[1][2:]
    assert len(rows) == WORST
    assert rows[0] == "| missed | 3 | 0.0000 | undefined | 0.0000 |"
    assert rows[1].startswith("| class6 ")
    assert "never" not in text


@pytest.mark.parametrize("classes", [MOST_NAMES, MOST_NAMES + 1, 1000])
def test_long_lists_of_classes_are_cut_with_a_count(classes: int) -> None:
    card = model_card(facts(tuple(f"name{number}." for number in range(classes))))
    assert len(tables(section(card, "Data"))[0]) == 2 + MOST_NAMES
    hidden = classes - MOST_NAMES
    assert card.count(f"and {hidden} more") == (2 if hidden else 0)
    assert "name30." not in section(card, "Data")


def test_core_sentence_is_of_the_setting_nearest_to_its_limit() -> None:
    of = facts()
    near = replace(of.parity.core[0], batch=1, optimised=False, max_delta=8.88e-4, flips=2)
    text = section(model_card(replace(of, parity=replace(of.parity, core=(*of.parity.core, near)))), "Parity")
    for words in ("0.000888", "batches of 1 and 8", "on and off", "2 clear", "0.0001"):
        assert words in text


@pytest.mark.parametrize(("batches", "missing"), [((1, 8, 32), ""), ((1, 8), "32"), ((1,), "8 and 32"), ((), "")])
def test_batches_that_there_was_no_time_for_are_named(batches: tuple[int, ...], missing: str) -> None:
    of = facts()
    timings = tuple(replace(of.latency.timings[0], batch=batch) for batch in batches)
    text = section(model_card(replace(of, latency=replace(of.latency, timings=timings))), "Speed")
    assert (f"There was no time to measure {missing} images a call." in text) is bool(missing)
    assert ("no time" in text) is bool(missing)


def test_the_card_says_how_its_intervals_are_made() -> None:
    score = " ".join(section(model_card(facts()), "Score").split())
    assert "Intervals: of parts of the images, as accuracy is, Wilson's; of ece a basic (reflected) bootstrap" in score


def test_unknown_peak_memory_and_source_are_called_so() -> None:
    of = facts()
    card = model_card(
        replace(
            of,
            latency=replace(of.latency, peak_memory_mib=0),
            handoff=replace(of.handoff, backbone=replace(of.handoff.backbone, source="")),
        )
    )
    assert "Peak memory of the process: not known." in card
    assert "source: not given" in card


# ---------------------------------------------------------------- every number comes from the facts


def numbers(value: object, path: tuple[object, ...] = ()) -> list[tuple[tuple[object, ...], float]]:
    """Paths of the numbers in a value made of dataclasses, dicts and tuples."""
    if dataclasses.is_dataclass(value):
        inside = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, tuple):
        inside = list(enumerate(value))
    else:
        return [(path, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
    return [found for key, part in inside for found in numbers(part, (*path, key))]


def changed(value, path, number):
    if not path:
        return number
    key, *rest = path
    if dataclasses.is_dataclass(value):
        return replace(value, **{key: changed(getattr(value, key), rest, number)})
    if isinstance(value, dict):
        return {**value, key: changed(value[key], rest, number)}
    return (*value[:key], changed(value[key], rest, number), *value[key + 1 :])


# The card says nothing of these: they are in the JSON files beside it, or are told of refits only.
LEFT_OUT = ("mean_delta", "input", "confusion", "ece_before_temperature.ci95", "prior", "scored_share")
PATHS = [path for path, _ in numbers(facts()) if not any(part in ".".join(map(str, path)) for part in LEFT_OUT)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_each_number_in_the_facts_shows(path) -> None:
    of = facts()
    before = dict(numbers(of))[path]
    assert model_card(changed(of, path, before * 3 + 1)) != model_card(of)


@given(value=st.integers(0, 10_000), name=st.sampled_from(sorted(facts().metrics.metrics)))
def test_a_metric_is_shown_to_four_digits(value: int, name: str) -> None:
    of = facts()
    estimate = Estimate(value / 10_000, (0.0, 1.0))
    card = model_card(replace(of, metrics=replace(of.metrics, metrics={**of.metrics.metrics, name: estimate})))
    assert f"| {plain(name)} | {value / 10_000:.4f} | 0.0000 to 1.0000 |" in card


# ---------------------------------------------------------------- text of others


def test_tricky_labels_break_no_table_and_show_as_they_are() -> None:
    card = model_card(facts(TRICKY))
    assert len(tables(card)) == 5
    for rows in tables(card):
        assert {cells(row) for row in rows} == {cells(rows[0])}
    text = shown(card)
    for label in TRICKY:
        assert label.replace("\n", r"\n") in text
    assert "<script" not in RENDER.render(card)


@given(st.text(max_size=30))
def test_any_text_in_a_cell_is_one_cell_that_shows_it(label: str) -> None:
    visible = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in label)
    html = RENDER.render(table(("a", "b"), [(plain(label), "end")]))
    found = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert len(found) == 2
    assert "".join(re.sub(r"&(lt|gt|amp|quot);", _entity, found[0]).split()) == "".join(visible.split())


def _entity(match: re.Match[str]) -> str:
    return {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[match[1]]


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_a_card_with_any_labels_is_utf_8_and_keeps_its_sections(labels: list[str]) -> None:
    card = model_card(facts(tuple(labels)))
    assert card.encode("utf-8")
    assert RENDER.render(card).count("<h2>") == 10
    assert RENDER.render(card).count("<table>") == 5


def test_where_the_data_lies_is_not_named() -> None:
    assert "/home" not in model_card(facts())


# ---------------------------------------------------------------- the snippet


@pytest.fixture(params=["image", "batch", "README"])
def pasted(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs the code as it stands in a card, or in the README, on a photo of that name beside a bundle."""
    import onnx

    core = """
        <ir_version: 8, opset_import: ["" : 18]>
        core (float[batch, 3, 48, 48] images) => (float[batch, 3] logits)
        <int64[2] shape = {0, 3}> { mean = GlobalAveragePool (images) logits = Reshape (mean, shape) }"""
    code, layout, bundle = deploying_snippet(), "image", tmp_path / "export"
    if request.param != "README":
        layout, bundle = request.param, tmp_path
        code = snippet(model_card(replace(facts(), layout=layout)))
    bundle.mkdir(exist_ok=True)
    onnx.save(onnx.parser.parse_model(core), bundle / CORE)
    write_raw_pixel_model(bundle / CORE, bundle / MODEL, RECIPE, how(("red", "green", "bl\u00fce")).ending(), layout)
    (bundle / "labels.json").write_text(json.dumps(["red", "green", "bl\u00fce"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return lambda photo: exec(compile(re.sub(r"photo\.\w+", photo, code), "pasted", "exec"), {})


def deploying_snippet() -> str:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in one)
    return code


def test_the_snippet_runs(pasted: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((30, 50, 3), (10, 20, 230), np.uint8)).save("photo.jpg")
    pasted("photo.jpg")
    assert capsys.readouterr().out.startswith("bl\u00fce ")


@pytest.mark.parametrize(("kind", "name"), [("uint16", "deep.png"), ("int32", "whole.tif"), ("float32", "float.tif")])
def test_the_snippet_refuses_what_pillow_would_cut_off(kind: str, name: str, pasted: Callable[[str], None]) -> None:
    Image.fromarray(np.full((6, 9), 40_000, kind)).save(name)
    with pytest.raises(SystemExit, match=r"more than 8 bits: .*examples/infer\.py"):
        pasted(name)


def test_the_snippet_starts_no_other_program(postscript: bytes, started: Path, pasted: Callable[[str], None]) -> None:
    Path("renamed.jpg").write_bytes(postscript)
    with pytest.raises(UnidentifiedImageError):
        pasted("renamed.jpg")
    assert not started.exists()


def test_the_card_says_over_which_bins_its_calibration_error_is() -> None:
    of = facts()
    card = model_card(replace(of, metrics=replace(of.metrics, ece_bins="15 of equal mass")))
    assert "split, over bins of the confidence, 15 of equal mass:" in section(card, "Calibration")
    assert "over bins of equal mass" in section(card, "Score")


def test_the_snippet_sends_no_float_image_where_it_is_refused() -> None:
    of = facts()
    assert "infer.py scales such images as those of training" in snippet(model_card(of))
    without = replace(of, handoff=replace(of.handoff, preprocess=replace(RECIPE, value_range=None)))
    code = snippet(model_card(without))
    assert "scales such" not in code
    assert "takes 16-bit grey; the data had no float or 32-bit image" in code
    assert max(map(len, code.splitlines())) <= 120


def test_of_a_metric_that_nobody_here_knows_a_stranger_sees_whether_less_is_better() -> None:
    known = facts()
    losses = {name: MetricFacts(name, is_loss=True, greatest=None) for name in ("log_loss", "mine")}
    figures = {**known.metrics.metrics, "mine": Estimate(0.25, (0.125, 0.375)), "yours": Estimate(0.5, (0.25, 0.75))}
    card = model_card(replace(known, metrics=replace(known.metrics, metrics=figures), known=losses))
    rows = [line.split(" | ") for line in tables(section(card, "Score"))[0]]
    meanings = {row[0].removeprefix("| "): row[3].removesuffix("|").strip() for row in rows}
    assert meanings["mine"] == "smaller is better"
    assert meanings["yours"] == ""
    assert meanings["log\\_loss"] == "natural logarithm; smaller is better"


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("after", "helps"), [(0.203, False), (0.051, True)])
def test_the_card_gives_a_formula_for_rare_classes_only_where_it_helped(
    after: float, helps: bool, fitted: bool
) -> None:
    of = facts()
    made, calibration = replace(of.handoff, balance="logits"), of.metrics.calibration
    assert "weighed" not in model_card(replace(of, handoff=made))  # the classes are even
    metrics = replace(
        of.metrics,
        prior_correction=PriorCorrection(202, (0.5, 0.4, 0.1), 0.094, after),
        calibration=calibration if fitted else replace(calibration, temperature=1.0),
    )
    text = " ".join(section(model_card(replace(of, handoff=made, metrics=metrics)), "Calibration").split())
    assert f"the log loss of 202 validation images is 0.094 as they come, and {after:.3f}" in text
    assert ("`probabilities * shares`, divided by their sum" in text) is helps
    assert ("they were not calibrated" in text) is not fitted
    assert "(by `logits`)" in text and "may lean to rare classes" in text
    refit = replace(made, trial=replace(made.trial, **REFIT))
    text = " ".join(section(model_card(replace(of, handoff=refit, metrics=metrics)), "Calibration").split())
    assert "the log loss of what trial 0 made of 202 validation images" in text


def test_what_the_head_sees_besides_features_is_said() -> None:
    plain_head, given = model_card(facts()), facts()
    assert "head sees" not in plain_head
    seen = " ".join(model_card(replace(given, handoff=replace(given.handoff, tapped=1568))).split())
    sentence = "beside its features the model's head sees 1,568 means and maxima of what each stage gives."
    assert f"(1,234,567 parameters); {sentence}" in seen
