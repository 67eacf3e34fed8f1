"""What the user asks: one validation for flags, TOML and Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from autoft.data.split import Unsplit, split
from autoft.errors import StudyError
from autoft.media.image.batches import Images, TrainingStream
from autoft.study.study import Study, budget_change, licence_allowed, parse_duration, parse_parameters
from autoft.tasks.single_label import SingleLabel
from autoft.values.backbone import InputSpec
from autoft.values.codec import decode, encode
from autoft.values.plan import Recipe


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_durations(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("2m", 120), ("1.5h", 5400), ("1h30m", 5400), ("45s", 45)])
def test_durations_people_write(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("10M", 10**7),
        ("10000000", 10**7),
        (" 2.5m ", 2_500_000),
        ("500k", 500_000),
        ("1G", 10**9),
        ("1.1B", 1_100_000_000),
    ],
)
def test_numbers_of_parameters_people_write(text, count):
    assert parse_parameters(text) == count


@pytest.mark.parametrize("text", ["banana", "", "m", "10 minutes ago", "-5m", "1d"])
def test_no_durations(text):
    with pytest.raises(StudyError, match=r"duration|positive"):
        Study.parse({"data": "x", "time": text})


@pytest.mark.parametrize(
    ("text", "readings"),
    [("10m0", "10m0s or 10m"), ("1h30", "1h30s or 1h30m"), ("1h2m3", "1h2m3s or 1h2m"), (" 1H0.5", "1h0.5s or 1h0.5m")],
)
def test_a_number_without_its_unit_behind_another_is_refused_with_its_readings(text, readings):
    with pytest.raises(StudyError, match=f"may mean {readings}; write the unit"):
        parse_duration(text)
    with pytest.raises(StudyError, match="write the unit"):
        budget_change(f"+{text.strip()}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 0}, "--time must be positive"),
        ({"time": math.inf}, "time: .*finite"),
        ({"time": math.nan}, "time: .*finite"),
        ({"time": "9" * 400 + "h"}, "time: .*finite"),
        ({"trials": 0}, "--trials"),
        ({"max_params": 0}, "--max-params must be at least 1, got 0; try --max-params 10M"),
        ({"max_params": "0.4"}, "--max-params must be at least 1"),
        ({"max_params": "10 million"}, "--max-params '10 million' is no number of parameters; write it like 500k"),
        ({"max_params": "-1M"}, "is no number of parameters"),
        ({"max_latency": 0.0}, "--max-latency must be positive and finite, got 0.0; try --max-latency 20ms"),
        ({"max_latency": "0ms"}, "--max-latency must be positive"),
        ({"max_latency": math.nan}, "max_latency: .*finite"),
        ({"max_latency": "20"}, "--max-latency '20' is no time with its unit; write it like 20ms or 0.5s"),
        ({"max_latency": "-5ms"}, "is no time with its unit"),
        ({"workers": -1}, "--workers"),
        ({"gpus_per_trial": 0.0}, "--gpus-per-trial is auto, a share of one GPU or a whole number of them, got 0"),
        ({"gpus_per_trial": 1.5}, "--gpus-per-trial is auto"),
        ({"gpus_per_trial": -1.0}, "--gpus-per-trial is auto"),
        ({"gpus_per_trial": "many"}, "--gpus-per-trial 'many' is neither a number of GPUs nor auto"),
        ({"keep": 0}, "--keep"),
        ({"image_size": 5}, "--image-size"),
        ({"image_size": "big"}, "--image-size 'big' is neither a number of pixels nor auto"),
        ({"tirals": 3}, "did you mean 'trials'"),
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "--seed is a whole number from 0"),
        ({"seed": 2**63}, "--seed is a whole number from 0"),
        ({"seed": 10**400}, "--seed is a whole number from 0"),
    ],
)
def test_each_wrong_option_is_one_line(options, message):
    with pytest.raises(StudyError, match=message) as caught:
        Study.parse({"data": "x", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "bounds", "message"),
    [
        ("log_loss", {"fail_under": 0.5}, "log_loss is a loss, of which less is better: use --fail-above"),
        ("macro_f1", {"fail_above": 0.5}, "of macro_f1 more is better: use --fail-under"),
        ("auto", {"fail_under": 90}, r"at most 1, the best accuracy there is, got 90; did you mean 0\.9\?"),
        ("macro_f1", {"fail_under": 1.01}, r"at most 1, the best macro_f1 .*did you mean 0\.0101\?"),
        ("auto", {"fail_under": 101}, r"got 101$"),
        ("auto", {"fail_under": 0}, "must be above 0"),
        ("auto", {"fail_under": -0.9}, "must be above 0"),
        ("auto", {"fail_under": math.nan}, "--fail-"),
        ("log_loss", {"fail_above": -0.5}, r"--fail-above must be at least 0, .*got -0\.5"),
        ("log_loss", {"fail_above": math.inf}, "--fail-"),
        ("auto", {"target": 95}, r"--target must be above 0 and at most 1, .*got 95; did you mean 0\.95\?"),
        ("auto", {"target": 0}, "--target must be above 0"),
        ("auto", {"target": math.nan}, "--target"),
        ("log_loss", {"target": -0.5}, r"--target must be at least 0, the best log_loss there is, .*got -0\.5"),
        ("log_loss", {"target": math.inf}, "--target"),
    ],
)
def test_a_bound_that_no_or_every_score_passes_is_one_line(metric, bounds, message):
    with pytest.raises(StudyError, match=message) as caught:
        Study("x", metric=metric, **bounds).require_bounds(SingleLabel().metric(metric).facts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "bounds"),
    [
        *(("auto", {name: x}) for name in ("fail_under", "target") for x in (1, 1e-9)),
        *(("log_loss", {name: x}) for name in ("fail_above", "target") for x in (0, 90)),
    ],
)
def test_a_bound_that_some_scores_pass_and_others_do_not_is_taken(metric, bounds):
    Study("x", metric=metric, **bounds).require_bounds(SingleLabel().metric(metric).facts)


def test_a_metric_that_no_task_has_is_one_line():
    with pytest.raises(StudyError, match="did you mean 'accuracy'"):
        SingleLabel().metric("acuracy")


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_a_time_that_is_no_number_is_refused_in_python_too(seconds):
    with pytest.raises(StudyError, match="--time must be positive and finite"):
        Study("x", time=seconds)


def test_flags_and_toml_and_python_agree(tmp_path):
    (tmp_path / "study.toml").write_text('time = "2m"\nbackbones = ["lite/*"]\nimage-size = "auto"\n')
    from_file = Study.parse({"data": "x", **Study.options_from(tmp_path / "study.toml")})
    assert from_file == Study.parse({"data": "x", "time": 120, "backbones": "lite/*", "image_size": 0})
    assert decode(Study, encode(from_file)) == from_file


@given(st.integers(0, 2**63 - 1))
@example(2**63 - 1)
def test_every_seed_makes_a_study_a_split_and_batches(seed):
    study = decode(Study, encode(Study.parse({"data": "x", "seed": seed})))
    assert study.seed == seed
    digests = [f"{number:032x}" for number in range(10)]
    chosen = split(
        [Unsplit(digest, label, label, None) for digest, label in zip(digests, "ab" * 5, strict=True)], study.seed
    )
    assert {"train", "val", "test"} == set(chosen)
    rows, labels = np.arange(6), np.zeros(6, np.int64)
    pixels = Images(np.zeros((6, 8, 8, 3), np.uint8), InputSpec(8), torch.device("cpu"))
    stream = TrainingStream(pixels, rows, labels, Recipe(batch_size=2, augment="crop_flip"), seed + 1000)
    images, _ = stream.batch(7)
    assert len(images) == 2
    torch.manual_seed(seed + 1000)  # as a plugin may


def test_broken_toml_is_one_line(tmp_path):
    (tmp_path / "study.toml").write_text("time = = 2")
    with pytest.raises(StudyError, match=r"study\.toml"):
        Study.options_from(tmp_path / "study.toml")


def test_licences():
    assert licence_allowed("mit", ("permissive",))
    assert not licence_allowed("cc-by-nc-4.0", ("permissive",))
    assert not licence_allowed("unknown", ("permissive",))
    assert licence_allowed("cc-by-nc-4.0", ("permissive", "cc-by-nc-4.0"))
    assert licence_allowed("unknown", ("any",))
