"""The closed-form head against brute force, on few images, on features of little variance, and when it is stopped."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from autoft.system import parallel
from autoft.train import ridge
from autoft.train.ridge import DEVIATION_FLOOR, RELATIVE_STRENGTHS, ROUNDING, TIE, _Path, _Rows, fit_ridge


def _problem(n, dim, classes=3, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=generator)
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def _logits(head, features):
    return features.double() @ head.weight.T.double() + head.bias.double()


def _standardised(features):
    x = features.double()
    variance, squares = x.var(dim=0, unbiased=False), x.square().mean(dim=0)
    rounding = ROUNDING**2 * (squares + squares.mean())
    deviation = (variance + DEVIATION_FLOOR**2 * variance.mean() + rounding).sqrt()
    return (x - x.mean(dim=0)) / deviation, deviation


def _refitted(x, y, strength):
    """Ridge with a free intercept, by a plain solve: coefficients and intercept."""
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    weights = torch.linalg.solve(a.T @ a + strength * torch.eye(x.shape[1]).double(), a.T @ b)
    return weights, y.mean(dim=0) - x.mean(dim=0) @ weights


def _left_out_by_refitting(x, y, strength):
    predictions = []
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        weights, intercept = _refitted(x[rest], y[rest], strength)
        predictions.append(x[row] @ weights + intercept)
    return torch.stack(predictions)


@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30)], ids=["more rows", "more columns"])
@pytest.mark.parametrize("place", [0, 12, -1])
def test_leave_one_out_is_exact(n, dim, place):
    features, labels = _problem(n, dim)
    rows = _Rows.of(features, labels, 3, lambda: None)
    path = _Path.of(rows)
    ((block, _),) = rows.blocks()
    fast = path.leave_one_out(block @ path.axes, labels, path.strengths[place])
    targets = torch.nn.functional.one_hot(labels, 3).double()
    slow = _left_out_by_refitting(block, targets, path.strengths[place])
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
def test_head_is_that_of_plain_solves(n, dim):
    """The strength is the one that refitting without each image prefers; the head is the solution up to one factor."""
    features, labels = _problem(n, dim, spread=2.0)
    head = fit_ridge(features, labels, 3)
    x, deviation = _standardised(features)
    targets = torch.nn.functional.one_hot(labels, 3).double()
    mean_eigenvalue = x.square().sum() / torch.linalg.matrix_rank(x)
    strengths = [float(relative * mean_eigenvalue) for relative in RELATIVE_STRENGTHS]
    left_out = [_left_out_by_refitting(x, targets, strength) for strength in strengths]
    accuracies = [float((p.argmax(dim=1) == labels).double().mean()) for p in left_out]
    least = max(accuracies) - TIE * math.sqrt(max(accuracies) * (1 - max(accuracies)) / n)
    errors = [
        float((p - targets).square().mean()) if a >= least else math.inf
        for p, a in zip(left_out, accuracies, strict=True)
    ]
    chosen = min(range(len(errors)), key=errors.__getitem__)
    assert head.strength == pytest.approx(strengths[chosen])
    assert head.loo_accuracy == pytest.approx(accuracies[chosen])
    weights, intercept = _refitted(x, targets, head.strength)
    expected = x @ weights + intercept - 1 / 3
    logits = _logits(head, features)
    factor = (logits * expected).sum() / expected.square().sum()
    torch.testing.assert_close(logits, factor * expected, rtol=1e-6, atol=1e-6 * float(logits.abs().max()))
    torch.testing.assert_close(head.weight.T.double(), factor * weights / deviation[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_number_of_blocks_changes_nothing(n, dim, monkeypatch):
    features, labels = _problem(n, dim, spread=3.0)
    whole = fit_ridge(features, labels, 3)
    again = fit_ridge(features, labels, 3)
    assert torch.equal(whole.weight, again.weight)
    monkeypatch.setattr(ridge, "ROWS_AT_ONCE", 7)
    parts = fit_ridge(features, labels, 3)
    assert parts.strength == pytest.approx(whole.strength)
    assert parts.loo_accuracy == whole.loo_accuracy
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=1e-5, atol=1e-6)


def test_leave_one_out_is_honest_about_noise():
    """Without the intercept's 1/n in the leverage, pure noise would look learnable."""
    features = torch.randn(200, 400, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 4
    assert fit_ridge(features, labels, 4).loo_accuracy < 0.4


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_head_separates_new_rows_and_gives_logits(n, dim):
    features, labels = _problem(2 * n, dim)
    head = fit_ridge(features[:n], labels[:n], 3)
    logits = _logits(head, features[n:])
    assert (logits.argmax(dim=1) == labels[n:]).float().mean() > 0.8
    assert torch.nn.functional.cross_entropy(logits, labels[n:]) < 0.8 * math.log(3.0)
    torch.testing.assert_close(logits.sum(dim=1), torch.zeros(n).double(), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- few images


@pytest.mark.parametrize("a_class", [1, 2, 3])
def test_few_images_of_many_classes_give_usable_probabilities(a_class):
    features, labels = _problem(50 * 20, 300, classes=50, spread=2.5)
    n = 50 * a_class
    head = fit_ridge(features[:n], labels[:n], 50)
    logits = _logits(head, features[n:])
    means = torch.stack([features[:n][labels[:n] == label].mean(dim=0) for label in range(50)])
    nearest = torch.cdist(features[n:], means).argmin(dim=1)
    accuracy = (logits.argmax(dim=1) == labels[n:]).double().mean()
    assert accuracy >= (nearest == labels[n:]).double().mean() - 0.02
    probabilities = logits.softmax(dim=1).amax(dim=1)
    assert 0.1 < probabilities.mean() < 0.9
    assert torch.nn.functional.cross_entropy(logits, labels[n:]) < 0.8 * math.log(50)
    first, second = logits.topk(2, dim=1).values.T
    assert (first - second).median() > 0.2
    rows = _Rows.of(features[:n], labels[:n], 50, lambda: None)
    assert head.strength < max(_Path.of(rows).strengths)


def test_answers_that_are_always_right_leave_some_doubt():
    """Laplace's rule: after 60 right answers of 60 another one is right with a probability of about 61 / 62."""
    features, labels = _problem(60, 40, spread=0.01)
    head = fit_ridge(features, labels, 3)
    probability = _logits(head, features).softmax(dim=1).amax(dim=1).mean()
    assert head.loo_accuracy == 1
    assert 0.97 < probability < 0.999


def test_the_only_image_of_a_class_does_not_spoil_the_others():
    features, labels = _problem(90, 20, spread=2.0)
    alone = fit_ridge(features, labels, 3)
    one_more = torch.cat([features, torch.full((1, 20), 8.0)]), torch.cat([labels, torch.tensor([3])])
    head = fit_ridge(*one_more, 4)
    assert head.loo_accuracy == pytest.approx(alone.loo_accuracy, abs=0.05)
    assert _logits(head, one_more[0])[-1].argmax() == 3
    spread, before = _logits(head, features).std(), _logits(alone, features).std()
    assert 0.5 < spread / before < 2


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_at_all(n):
    head = fit_ridge(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), torch.arange(n), 3)
    assert head.weight.isfinite().all()
    assert head.bias.argmax() < n


# ---------------------------------------------------------------- features of little variance


def test_constant_features_do_no_harm():
    features, labels = _problem(60, 5)
    features[:, 2] = 7.0
    head = fit_ridge(features, labels, 3)
    assert head.weight.isfinite().all()
    assert head.weight[:, 2].abs().max() < 1e-9


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_features_constant_up_to_rounding_say_nothing(value):
    """A network that sees nothing in the images: the answer is how frequent the classes are, not amplified rounding."""
    noise = torch.randn(80, 30, generator=torch.Generator().manual_seed(0))
    features, labels = value * (1 + 3e-8 * noise), (torch.arange(80) % 4).clamp_max(2)
    head = fit_ridge(features, labels, 3)
    logits = _logits(head, features)
    assert (logits.argmax(dim=1) == 2).all()
    assert logits.std(dim=0).max() < 1e-6


def test_a_feature_hardly_seen_in_training_does_not_throw_new_images():
    """Rectified features are zero for most images: one of tiny deviation may be as large as any in a new image."""
    features, labels = _problem(120, 30)
    features[:, 3] = 0.0
    features[5, 3] = 1e-4
    head = fit_ridge(features, labels, 3)
    unusual = features.clone()
    unusual[:, 3] = 1.0
    assert (_logits(head, unusual) - _logits(head, features)).abs().max() < 0.01 * _logits(head, features).abs().max()


def test_rounding_of_the_features_is_not_amplified():
    """Half of the features vary by a thousandth of their size, as those of very dark images may."""
    features, labels = _problem(150, 64)
    features[:, ::2] = 3.0 + 1e-3 * features[:, ::2]
    head = fit_ridge(features, labels, 3)
    noise = 1e-6 * features * torch.randn(150, 64, generator=torch.Generator().manual_seed(1))
    logits = _logits(head, features)
    assert (_logits(head, features + noise) - logits).abs().max() < 2e-5 * logits.abs().max()


# ---------------------------------------------------------------- what is not finite, what is stopped


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value):
    features, labels = _problem(30, 4)
    features[[3, 9], 1] = value
    with pytest.raises(FloatingPointError, match=r"^the features of 2 of 30 images are not finite$"):
        fit_ridge(features, labels, 3)


def test_labels_that_are_not_finite_are_refused():
    features, labels = _problem(30, 4)
    with pytest.raises(FloatingPointError, match=r"^the labels of 1 of 30 images are not finite$"):
        fit_ridge(features, torch.where(torch.arange(30) == 4, math.nan, labels.double()), 3)


def test_a_head_beyond_single_precision_is_refused():
    features, labels = _problem(30, 4)
    with pytest.raises(FloatingPointError, match="single precision"):
        fit_ridge(features.double() * 1e-60, labels, 3)


def test_a_class_without_images_is_never_the_answer():
    features, labels = _problem(60, 10)
    assert (_logits(fit_ridge(features, labels, 4), features).argmax(dim=1) < 3).all()


class _Stop(Exception):
    pass


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
def test_every_check_can_stop_the_fit(n, dim, monkeypatch):
    monkeypatch.setattr(parallel, "SECONDS_BETWEEN_CHECKS", 60.0)  # as many checks each time
    features, labels = _problem(n, dim)
    asked = 0

    def count():
        nonlocal asked
        asked += 1

    fit_ridge(features, labels, 3, count)
    assert asked > len(RELATIVE_STRENGTHS)
    for last in range(1, asked, 5):
        left = iter(range(last))

        def stop(left=left):
            if next(left, None) is None:
                raise _Stop

        with pytest.raises(_Stop):
            fit_ridge(features, labels, 3, stop)


def test_a_long_eigendecomposition_does_not_delay_the_stop(monkeypatch):
    done, asked = threading.Event(), []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: done.wait(60))
    monkeypatch.setattr(parallel, "SECONDS_BETWEEN_CHECKS", 0.01)

    def check():
        asked.append(1)
        if len(asked) > 20:
            raise _Stop

    with pytest.raises(_Stop):
        fit_ridge(*_problem(60, 8), 3, check)
    done.set()
