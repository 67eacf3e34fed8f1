from __future__ import annotations

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax as reference_softmax
from sklearn.metrics import log_loss

from autoft.parts.host import Host
from autoft.tasks.calibration import BOUNDS, MIN_IMAGES, calibrated, fit_temperature, prior_correction
from autoft.tasks.forms.base import Answering
from autoft.tasks.forms.table import FORMS
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.statistics import log_losses
from autoft.values.bundle import Calibration
from autoft.values.codec import decode, encode
from autoft.values.target import Targets


def drawn(n: int, classes: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at `temperature` is what the labels were drawn from."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=(n, classes))
    labels = (reference_softmax(scores, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return (scores * temperature).astype(np.float32), labels


@st.composite
def outputs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits of any scale and labels that follow them more or less, some classes rare or absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(MIN_IMAGES, 300)), draw(st.integers(1, 60))
    labels = np.minimum(rng.geometric(draw(st.floats(0.02, 1.0)), size=n) - 1, classes - 1)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += draw(st.floats(-3, 6))
    return (logits * 10.0 ** draw(st.integers(-6, 30))).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.7, 4.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float) -> None:
    found = fit_temperature(*drawn(20_000, 5, temperature, seed=1))
    assert found.temperature == pytest.approx(temperature, rel=0.04)
    assert found.n == 20_000


@given(outputs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_temperature_never_hurts_and_nothing_warns(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_temperature(*data, seed)
    assert found.log_loss_before is not None
    assert found.log_loss_after is not None
    helps = found.log_loss_after < found.log_loss_before
    assert helps or found.temperature == 1
    assert BOUNDS[0] <= found.temperature <= BOUNDS[1]
    assert log_losses(*data, found.temperature).mean() <= log_losses(*data, 1.0).mean() + 1e-12
    assert decode(Calibration, encode(found)) == found


@given(st.integers(0, MIN_IMAGES - 1), st.integers(1, 5))
def test_with_few_images_the_temperature_is_1(n: int, classes: int) -> None:
    found = fit_temperature(np.full((n, classes), 9, np.float32), np.zeros(n, np.int64))
    assert (found.temperature, found.n) == (1.0, n)
    assert found.log_loss_before is None
    assert found.log_loss_after is None
    assert str(MIN_IMAGES) in found.reason


def test_a_temperature_that_only_fits_noise_is_not_kept() -> None:
    tried = [fit_temperature(*drawn(300, 3, 1.0, seed)) for seed in range(8)]
    refused = [one for one in tried if one.temperature == 1]
    assert refused
    for one in refused:
        assert one.log_loss_before is not None
        assert one.log_loss_after is not None
        assert one.log_loss_after >= one.log_loss_before
        assert "does not lower" in one.reason


def test_losses_on_images_the_temperature_was_not_fitted_on_are_reported() -> None:
    logits, labels = drawn(2000, 5, 3.0, seed=2)
    found = fit_temperature(logits, labels)
    at_once = log_losses(logits, labels, found.temperature).mean()
    assert found.log_loss_before == pytest.approx(log_losses(logits, labels, 1.0).mean())
    assert found.log_loss_after is not None
    assert at_once < found.log_loss_after == pytest.approx(at_once, abs=0.01)


def test_the_seed_decides_the_folds() -> None:
    data = drawn(400, 5, 2.0, seed=3)
    assert fit_temperature(*data, seed=1) == fit_temperature(*data, seed=1)
    assert fit_temperature(*data, seed=1).log_loss_after != fit_temperature(*data, seed=2).log_loss_after


def test_every_class_may_have_one_image() -> None:
    labels = np.arange(MIN_IMAGES)
    logits = np.random.default_rng(0).normal(size=(MIN_IMAGES, MIN_IMAGES)).astype(np.float32)
    assert fit_temperature(logits, labels).n == MIN_IMAGES


@pytest.mark.parametrize("data", [drawn(10, 3, 1.0, 0), drawn(300, 3, 3.0, 0), drawn(300, 3, 1.0, 0)])
def test_a_reason_is_one_sentence(data: tuple[np.ndarray, np.ndarray]) -> None:
    assert re.fullmatch(r"[A-Z][^.\n]*\.", fit_temperature(*data).reason)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 8), st.floats(BOUNDS[0], BOUNDS[1]))
def test_calibrated_probabilities_are_the_softmax_at_the_temperature(
    seed: int, n: int, classes: int, temperature: float
) -> None:
    logits = (np.random.default_rng(seed).normal(size=(n, classes)) * 50).astype(np.float32)
    found = calibrated(logits, temperature)
    expected = reference_softmax(logits.astype(np.float64) / temperature, axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.astype(np.float32).argmax(axis=1))


def test_calibrated_probabilities_of_enormous_logits_are_numbers() -> None:
    assert calibrated(np.array([[3e38, -3e38, 0]], np.float32), 0.05).tolist() == [[1, 0, 0]]


def test_losses_are_those_of_scikit_learn_over_many_blocks() -> None:
    logits, labels = drawn(700, 1000, 1.5, seed=4)
    expected = log_loss(labels, reference_softmax(logits.astype(np.float64) / 2.5, axis=1), labels=range(1000))
    assert log_losses(logits, labels, 2.5).mean() == pytest.approx(expected)


def test_a_certain_and_right_answer_has_a_loss_of_zero_without_a_sign() -> None:
    (loss,) = log_losses(np.array([[1000, 0]], np.float32), np.array([0]), 1.0)
    assert str(float(loss)) == "0.0"


@given(st.integers(0, 2**32 - 1), st.floats(*BOUNDS), st.sampled_from(sorted(Host.discover().tasks())))
def test_a_temperature_decides_nothing(seed: int, temperature: float, name: str) -> None:
    rng, task = np.random.default_rng(seed), Host.discover().task(name)
    task = task.on(Targets(name, task.form, ("a", "b", "c", "d"), (0.0,) * 4, (1.0,) * 4))
    outputs = (rng.normal(size=(50, task.outputs)) * 10.0 ** rng.integers(-1, 2)).astype(np.float32)
    plain, cooled = (Calibration(kelvin, 0, None, None, "") for kelvin in (1.0, temperature))
    answering = Answering(task, FORMS[task.form], plain)
    assert answering.flips(task.answers(outputs, cooled), answering.answers(outputs), 1e-4) == 0


@given(st.integers(0, 2**32 - 1), st.floats(*BOUNDS))
def test_thresholds_are_those_of_the_probabilities_at_the_temperature(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    task = MultiLabel().on(Targets("multi_label", "any_of", ("a", "b", "c")))
    outputs = rng.normal(size=(50, 3)).astype(np.float32)
    fitted = Calibration(temperature, 0, None, None, "", tuple(rng.uniform(0.1, 0.9, 3).tolist()))
    answering = Answering(task, FORMS[task.form], fitted)
    clear = answering.form.clearness(answering.answers(outputs), fitted) > 1e-6
    decided = answering.form.decisions(answering.answers(outputs), fitted)
    assert ((answering.judged(outputs) >= 0) == decided)[clear].all()


def test_calibrating_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from autoft.tasks.calibration import fit_temperature\n"
        "from autoft.tasks.forms.table import answering\n"
        "from autoft.tasks.single_label import SingleLabel\n"
        "from autoft.values.target import Targets\n"
        "logits, labels = np.eye(2, dtype=np.float32)[[0, 1] * 100], np.array([0, 1] * 100)\n"
        "task = SingleLabel().on(Targets('single_label', 'one_of', ('a', 'b')))\n"
        "how = answering(task, fit_temperature(logits, labels))\n"
        "how.form.report('val', logits, labels, how)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shares_help_probabilities_of_even_classes_and_harm_those_that_hold_them_already() -> None:
    rng, trained = np.random.default_rng(0), np.repeat([0, 1], [90, 10])
    labels = np.repeat([0, 1], [180, 20])
    even = 1.5 * (rng.standard_normal((200, 2)) + np.eye(2)[labels])  # the log odds of normal features, of even classes
    shares = np.log([0.9, 0.1])
    helped, harmed = (prior_correction(calibrated(logits, 1.0), labels, trained) for logits in (even, even + shares))
    assert helped is not None and harmed is not None
    assert helped.helps and not harmed.helps
    assert (helped.n, helped.shares) == (200, (0.9, 0.1))
    assert helped.log_loss_before == pytest.approx(log_loss(labels, calibrated(even, 1.0)), rel=1e-5)
    assert helped.log_loss_after == pytest.approx(log_loss(labels, calibrated(even + shares, 1.0)), rel=1e-5)
    assert prior_correction(calibrated(even, 1.0), labels, np.repeat([0, 1], [50, 49])) is None
