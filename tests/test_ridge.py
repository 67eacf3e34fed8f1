"""The closed-form heads against brute force, on few images, on features of little variance, and when stopped."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from torch.nn.functional import binary_cross_entropy_with_logits

from autoft.system import parallel
from autoft.system.parallel import never_stop
from autoft.tasks import ridge
from autoft.tasks.ridge import (
    DEVIATION_FLOOR,
    RELATIVE_STRENGTHS,
    ROUNDING,
    TIE,
    _Classes,
    _Columns,
    _LogLoss,
    _Path,
    _Rows,
    _Sigmoids,
    ridge_of_classes,
    ridge_of_labels,
    ridge_of_values,
)


def _problem(n, dim, classes=3, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=generator)
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def _values(n, dim, outputs=3, seed=0, noise=1.0):
    """Features, and numbers of very different units that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator)
    values = features @ torch.randn(dim, outputs, generator=generator) / math.sqrt(dim)
    values += noise * torch.randn(n, outputs, generator=generator)
    return features, values * torch.logspace(-3, 3, outputs) + torch.tensor([5.0, -100.0, 0.0, 1.0])[:outputs]


def _marks(n, dim, labels=4, seed=0, noise=1.0):
    """Features, and which of so many labels each image has, from half of them to few."""
    features, values = _values(n, dim, labels, seed, noise)
    standardised = (values - values.mean(dim=0)) / values.std(dim=0)
    return features, (standardised > torch.linspace(0.0, 1.2, labels)).float()


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
    rows = _Rows.of(features, never_stop)
    path = _Path.of(rows, _Classes.of(labels, 3, never_stop))
    ((at, block),) = rows.blocks()
    fast = path.leave_one_out(block @ path.axes, at, path.strengths[place])
    targets = torch.nn.functional.one_hot(labels, 3).double()
    slow = _left_out_by_refitting(block, targets, path.strengths[place])
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-7)


def _weighted_ridge(x, y, weights, strength):
    """A plain solve of least squares that count so much each, with a free intercept: a function of rows."""
    total = weights.sum()
    a, b = x - weights @ x / total, y - weights @ y / total
    coefficients = torch.linalg.solve(
        a.T @ (weights[:, None] * a) + strength * torch.eye(x.shape[1]).double(), a.T @ (weights[:, None] * b)
    )
    return lambda rows: (rows - weights @ x / total) @ coefficients + weights @ y / total


@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30)], ids=["more rows", "more columns"])
@pytest.mark.parametrize("place", [0, 12, -1])
def test_leave_one_out_is_exact_where_classes_count_alike(n, dim, place):
    features, _ = _problem(n, dim)
    labels = (torch.arange(n) % 6).clamp(max=2)  # the last class is four times as large as the others
    targets = _Classes.of(labels, 3, never_stop, "classes")
    rows = _Rows.of(features, never_stop, targets.weights)
    path = _Path.of(rows, targets)
    ((at, block),) = rows.blocks()
    fast = path.leave_one_out(block @ path.axes, at, path.strengths[place])
    x, y, weights = block / rows.roots, torch.nn.functional.one_hot(labels, 3).double(), targets.weights
    for row in range(n):
        rest = torch.arange(n) != row
        slow = _weighted_ridge(x[rest], y[rest], weights[rest], path.strengths[place])(x[row])
        torch.testing.assert_close(fast[row], slow, rtol=1e-7, atol=1e-7)


def test_a_head_to_which_classes_count_alike_finds_the_rare_one():
    features, labels = _problem(700, 20, classes=2, spread=2.5)
    rare = (labels == 1).nonzero()[:, 0]
    kept = torch.cat([(labels == 0).nonzero()[:, 0], rare[:7]])  # 50 : 1
    plain, fair = (ridge_of_classes(features[kept], labels[kept], 2, alike=alike) for alike in ("images", "classes"))
    found = [float((_logits(head, features[rare[7:]]).argmax(dim=1) == 1).double().mean()) for head in (plain, fair)]
    assert found[0] < 0.2
    assert found[1] > 0.6
    assert 0.6 < fair.facts["loo_balanced_accuracy"] <= 1
    assert "loo_accuracy" not in fair.facts


def test_of_classes_of_one_size_it_is_the_same_head_to_the_bit():
    features, labels = _problem(300, 20, spread=2.0)
    marks = torch.nn.functional.one_hot(labels, 3)
    for one, other in (
        [ridge_of_classes(features, labels, 3, alike=alike) for alike in ("images", "classes")],
        [ridge_of_labels(features, marks, classes=classes) for classes in (None, labels)],
    ):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


def test_marks_count_as_the_classes_of_their_images_do():
    """Leave-one-out is exact, and one image alone that makes a column vary is known whatever it counts for."""
    features, marks = _marks(40, 7)
    classes = (torch.arange(40) % 6).clamp(max=2)
    marks = torch.cat([marks, (torch.arange(40) == 5)[:, None], (classes == 0)[:, None]], dim=1)
    weights = _Classes.of(classes, 3, never_stop, "classes").weights
    targets = _Columns.of(marks, "labels", never_stop, weights)
    assert targets.judged.tolist() == [True] * 4 + [False, True]
    rows = _Rows.of(features, never_stop, targets.weights)
    path = _Path.of(rows, targets)
    ((at, block),) = rows.blocks()
    fast = path.leave_one_out(block @ path.axes, at, path.strengths[12]) * targets.deviation + targets.centre
    for row in range(40):
        rest = torch.arange(40) != row
        x, y = (block / rows.roots)[rest], marks[rest].double()
        slow = _weighted_ridge(x, y, weights[rest], path.strengths[12])((block / rows.roots)[row])
        torch.testing.assert_close(fast[row], slow, rtol=1e-7, atol=1e-7)
    judged = targets.judge(path.leave_one_out(block @ path.axes, at, path.strengths[12]), at)
    torch.testing.assert_close(
        judged, weights @ ((fast - marks) / targets.deviation).square(), rtol=1e-7, atol=1e-7, check_dtype=False
    )


@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30)], ids=["more rows", "more columns"])
@pytest.mark.parametrize("place", [0, 12, -1])
@pytest.mark.parametrize("problem", [_values, _marks])
def test_leave_one_out_is_exact_for_columns(n, dim, place, problem):
    features, columns = problem(n, dim)
    rows, targets = _Rows.of(features, never_stop), _Columns.of(columns, "values", never_stop)
    path = _Path.of(rows, targets)
    ((at, block),) = rows.blocks()
    fast = path.leave_one_out(block @ path.axes, at, path.strengths[place]) * targets.deviation + targets.centre
    slow = _left_out_by_refitting(block, columns.double(), path.strengths[place])
    for column in range(columns.shape[1]):
        size = float(slow[:, column].abs().max())
        torch.testing.assert_close(fast[:, column], slow[:, column], rtol=1e-7, atol=1e-7 * size)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
def test_head_is_that_of_plain_solves(n, dim):
    """The strength is the one that refitting without each image prefers; the head is the solution up to one factor."""
    features, labels = _problem(n, dim, spread=2.0)
    head = ridge_of_classes(features, labels, 3)
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
    assert head.facts["ridge_strength"] == pytest.approx(strengths[chosen])
    assert head.facts["loo_accuracy"] == pytest.approx(accuracies[chosen])
    weights, intercept = _refitted(x, targets, head.facts["ridge_strength"])
    expected = x @ weights + intercept - 1 / 3
    logits = _logits(head, features)
    factor = (logits * expected).sum() / expected.square().sum()
    torch.testing.assert_close(logits, factor * expected, rtol=1e-6, atol=1e-6 * float(logits.abs().max()))
    torch.testing.assert_close(head.weight.T.double(), factor * weights / deviation[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
def test_head_of_values_is_that_of_plain_solves(n, dim):
    """Of the strength with the greatest mean R2 when refitted without each image, in the units of the values."""
    features, values = _values(n, dim)
    head = ridge_of_values(features, values)
    x, deviation = _standardised(features)
    strengths = [float(relative * x.square().sum() / torch.linalg.matrix_rank(x)) for relative in RELATIVE_STRENGTHS]
    r2 = [
        r2_score(values.numpy(), _left_out_by_refitting(x, values.double(), strength).numpy()) for strength in strengths
    ]
    assert head.facts["ridge_strength"] == pytest.approx(strengths[r2.index(max(r2))])
    assert head.facts["loo_r2"] == pytest.approx(max(r2))
    weights, intercept = _refitted(x, values.double(), head.facts["ridge_strength"])
    unit = values.std(dim=0)
    torch.testing.assert_close(_logits(head, features) / unit, (x @ weights + intercept) / unit, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        head.weight.T / unit, weights / deviation[:, None] / unit, rtol=1e-5, atol=1e-6, check_dtype=False
    )


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
def test_head_of_labels_is_that_of_plain_solves(n, dim):
    """The strength is that of numbers; a label's logits are the solution times a factor plus an offset, where the
    log-loss of the predictions without each image is stationary."""
    features, marks = _marks(n, dim)
    head = ridge_of_labels(features, marks)
    assert head.facts["ridge_strength"] == ridge_of_values(features, marks).facts["ridge_strength"]
    x, _ = _standardised(features)
    weights, intercept = _refitted(x, marks.double(), head.facts["ridge_strength"])
    left_out = _left_out_by_refitting(x, marks.double(), head.facts["ridge_strength"])
    logits, plain = _logits(head, features), x @ weights + intercept
    held_out = torch.empty_like(logits)
    for label in range(marks.shape[1]):
        both = torch.stack([plain[:, label], torch.ones(n).double()], dim=1)
        factor, offset = torch.linalg.lstsq(both, logits[:, label]).solution
        assert factor > 0
        torch.testing.assert_close(logits[:, label], both @ torch.stack([factor, offset]), rtol=1e-5, atol=1e-5)
        held_out[:, label] = factor * left_out[:, label] + offset
    expected = binary_cross_entropy_with_logits(held_out, marks.double())
    assert head.facts["loo_log_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_sigmoids_have_the_least_log_loss():
    """No slope is left but for scales that would be below 0."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 5, generator=generator) * torch.logspace(-2, 1, 5)
    wanted = (4 * scores + torch.randn(400, 5, generator=generator) > torch.linspace(-1, 3, 5)).double() * 0.9 + 0.05
    wanted[:, 2] = 1 - wanted[:, 2]
    loss = _LogLoss(scores, lambda at: wanted[at], torch.ones(len(scores)).double(), never_stop)
    found = loss.least(_Sigmoids(torch.ones(5).double(), torch.zeros(5).double()), lambda terms: terms)
    by_scale, by_offset, *_ = loss.derivatives(found)
    assert 0 <= found.scale[2] < 1e-9
    assert by_scale[2] > 0
    assert by_scale[[0, 1, 3, 4]].abs().max() < 1e-4
    assert by_offset.abs().max() < 1e-4
    assert loss.mean(found) < loss.mean(_Sigmoids(found.scale * 1.1, found.offset))


def test_an_image_that_counts_twice_is_two_to_the_sigmoids():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 2, generator=generator)
    wanted = (scores + torch.randn(60, 2, generator=generator) > 0).double() * 0.9 + 0.05
    twice = torch.arange(60).repeat_interleave(1 + (torch.arange(60) % 3 == 0).long())
    times = torch.bincount(twice).double()
    start = _Sigmoids(torch.ones(2).double(), torch.zeros(2).double())
    losses = (
        _LogLoss(scores, lambda at: wanted[at], times / times.mean(), never_stop),
        _LogLoss(scores[twice], lambda at: wanted[twice][at], torch.ones(len(twice)).double(), never_stop),
    )
    one, other = (loss.least(start, lambda terms: terms) for loss in losses)
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.offset, other.offset, rtol=1e-3, atol=1e-4)
    assert losses[0].mean(one) == pytest.approx(losses[1].mean(one))


def test_scores_that_are_all_alike_leave_the_offset_to_answer():
    scores = torch.tensor([0.0, 0.1, 1e3]).expand(50, 3)
    wanted = (torch.arange(50)[:, None] < 20).double().expand(50, 3)
    loss = _LogLoss(scores, lambda at: wanted[at], torch.ones(len(scores)).double(), never_stop)
    found = loss.least(_Sigmoids(torch.ones(3).double(), torch.zeros(3).double()), lambda terms: terms)
    torch.testing.assert_close(found.logits(scores).sigmoid(), torch.full((50, 3), 0.4).double(), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- several columns


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(1e-6, 1e6), sign=st.sampled_from([-1, 1]), shift=st.floats(-1e3, 1e3))
def test_a_unit_of_a_column_is_that_of_its_predictions(factor, sign, shift):
    features, values = _values(30, 12)
    values = values.double()
    unit = values.std(dim=0)
    changed = values.clone()
    changed[:, 1] = sign * factor * (values[:, 1] + shift * unit[1])
    before, after = ridge_of_values(features, values), ridge_of_values(features, changed)
    expected = _logits(before, features)
    expected[:, 1] = sign * factor * (expected[:, 1] + shift * unit[1])
    scale = changed.std(dim=0) + 1e-6 * changed.abs().amax(dim=0)
    torch.testing.assert_close(_logits(after, features) / scale, expected / scale, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_constant_column_stays_constant_and_changes_no_other(constant):
    features, values = _values(50, 10)
    alone = ridge_of_values(features, values)
    head = ridge_of_values(features, torch.cat([values, torch.full((50, 1), constant)], dim=1))
    torch.testing.assert_close(head.weight[:3], alone.weight)
    assert head.facts["loo_r2"] == pytest.approx(alone.facts["loo_r2"])
    torch.testing.assert_close(_logits(head, 10 * features)[:, 3], torch.full((50,), constant).double())


def test_values_that_are_all_constant_are_answered():
    head = ridge_of_values(_values(20, 5)[0], torch.tensor([3.0, -0.1]).expand(20, 2))
    torch.testing.assert_close(head.bias, torch.tensor([3.0, -0.1]))
    assert head.facts["loo_r2"] == 0


def test_an_outlier_alone_does_not_choose_the_strength():
    """Of a column that is constant but for one image leave-one-out can say nothing."""
    features, values = _values(50, 10)
    one = torch.zeros(50, 1)
    one[7] = 1e6
    alone, head = ridge_of_values(features, values), ridge_of_values(features, torch.cat([values, one], dim=1))
    assert head.facts == pytest.approx(alone.facts)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_images_give_finite_heads_of_columns(n):
    features, values = _values(n, 8)
    head = ridge_of_values(features, values)
    assert math.isfinite(head.facts["loo_r2"])
    assert _logits(head, features).isfinite().all()
    marks = torch.eye(n, 4)
    labels = ridge_of_labels(features, marks)
    assert math.isfinite(labels.facts["loo_log_loss"])
    logits = _logits(labels, features)
    assert logits.abs().max() < 20
    assert (logits[marks == 1].min() >= logits.T[marks.T == 0].min()) or n == 1


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_number_of_blocks_changes_no_head_of_columns(n, dim, monkeypatch):
    features, values = _values(n, dim)
    marks = (values > values.mean(dim=0)).float()
    whole = ridge_of_values(features, values), ridge_of_labels(features, marks)
    monkeypatch.setattr(ridge, "ROWS_AT_ONCE", 7)
    parts = ridge_of_values(features, values), ridge_of_labels(features, marks)
    for one, other in zip(whole, parts, strict=True):
        assert other.facts == pytest.approx(one.facts)
        torch.testing.assert_close(other.weight, one.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.bias, one.bias, rtol=1e-4, atol=1e-5)


def test_noise_is_not_explained():
    features = torch.randn(200, 400, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(2))
    assert -0.1 < ridge_of_values(features, noise).facts["loo_r2"] < 0.05
    head = ridge_of_labels(features, (noise > 1).float())
    share = (noise > 1).double().mean()
    assert head.facts["loo_log_loss"] > -0.98 * float(share * share.log() + (1 - share) * (1 - share).log())


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(("n", "dim"), [(600, 20), (100, 200)])
def test_labels_of_new_rows_are_found_with_fitting_probabilities(n, dim):
    features, marks = _marks(2 * n, dim, noise=0.5)
    head = ridge_of_labels(features[:n], marks[:n])
    logits, new = _logits(head, features[n:]), marks[n:].double()
    share = marks[:n].double().mean(dim=0)
    ignorant = binary_cross_entropy_with_logits(share.logit().expand(n, -1), new)
    assert binary_cross_entropy_with_logits(logits, new) < (0.7 if n > dim else 0.95) * ignorant
    assert head.facts["loo_log_loss"] == pytest.approx(float(binary_cross_entropy_with_logits(logits, new)), rel=0.2)
    torch.testing.assert_close(_logits(head, features[:n]).sigmoid().mean(dim=0), share, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.double])
def test_marks_may_be_of_any_type(dtype):
    features, marks = _marks(60, 10)
    assert torch.equal(ridge_of_labels(features, marks.to(dtype)).weight, ridge_of_labels(features, marks).weight)


@pytest.mark.parametrize("mark", [0.0, 1.0])
def test_a_label_that_never_or_always_is_there_gets_a_finite_logit(mark):
    """Laplace's rule: after n images without it, it is there with a probability of 1 / (n + 2)."""
    features, marks = _marks(80, 10)
    alone = ridge_of_labels(features, marks)
    head = ridge_of_labels(features, torch.cat([marks, torch.full((80, 1), mark)], dim=1))
    torch.testing.assert_close(head.weight[:4], alone.weight)
    torch.testing.assert_close(head.bias[:4], alone.bias)
    assert head.weight[4].abs().max() == 0
    assert float(head.bias[4].double().sigmoid()) == pytest.approx((80 * mark + 1) / 82)


def test_only_labels_that_are_never_there():
    head = ridge_of_labels(_marks(20, 5)[0], torch.zeros(20, 3))
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 1 / 22))
    assert head.facts["loo_log_loss"] == pytest.approx(-math.log(21 / 22))


def test_a_label_seen_once_is_found_again_and_spoils_no_other():
    features, marks = _marks(120, 30)
    once = torch.zeros(120, 1)
    once[5] = 1
    alone, head = ridge_of_labels(features, marks), ridge_of_labels(features, torch.cat([marks, once], dim=1))
    torch.testing.assert_close(head.weight[:4], alone.weight, rtol=1e-4, atol=1e-5)
    logits = _logits(head, features)[:, 4]
    assert logits.argmax() == 5
    assert logits.sigmoid().mean() == pytest.approx(2 / 122, rel=0.5)


def test_labels_that_are_always_right_leave_some_doubt():
    generator = torch.Generator().manual_seed(0)
    marks = (torch.rand(100, 3, generator=generator) < 0.3).float()
    features = torch.cat([5 * marks, 0.01 * torch.randn(100, 7, generator=generator)], dim=1)
    logits = _logits(ridge_of_labels(features, marks), features)
    assert ((logits > 0) == (marks > 0)).all()
    assert 0.9 < logits.sigmoid()[marks > 0].mean() < 0.999


def test_labels_of_images_that_all_look_the_same():
    """Leave-one-out knows an image's own mark by the mean of the others: no reason to answer against it."""
    features, marks = torch.full((80, 30), 100.0), _marks(80, 30)[1]
    logits = _logits(ridge_of_labels(features, marks), features)
    present = marks.double().sum(dim=0)
    torch.testing.assert_close(logits.sigmoid(), ((present + 1) / 82).expand(80, -1), rtol=0, atol=0.03)


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_number_of_blocks_changes_nothing(n, dim, monkeypatch):
    features, labels = _problem(n, dim, spread=3.0)
    whole = ridge_of_classes(features, labels, 3)
    again = ridge_of_classes(features, labels, 3)
    assert torch.equal(whole.weight, again.weight)
    monkeypatch.setattr(ridge, "ROWS_AT_ONCE", 7)
    parts = ridge_of_classes(features, labels, 3)
    assert parts.facts["ridge_strength"] == pytest.approx(whole.facts["ridge_strength"])
    assert parts.facts["loo_accuracy"] == whole.facts["loo_accuracy"]
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=1e-5, atol=1e-6)


def test_leave_one_out_is_honest_about_noise():
    """Without the intercept's 1/n in the leverage, pure noise would look learnable."""
    features = torch.randn(200, 400, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 4
    assert ridge_of_classes(features, labels, 4).facts["loo_accuracy"] < 0.4


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_head_separates_new_rows_and_gives_logits(n, dim):
    features, labels = _problem(2 * n, dim)
    head = ridge_of_classes(features[:n], labels[:n], 3)
    logits = _logits(head, features[n:])
    assert (logits.argmax(dim=1) == labels[n:]).float().mean() > 0.8
    assert torch.nn.functional.cross_entropy(logits, labels[n:]) < 0.8 * math.log(3.0)
    torch.testing.assert_close(logits.sum(dim=1), torch.zeros(n).double(), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- few images


@pytest.mark.parametrize("a_class", [1, 2, 3])
def test_few_images_of_many_classes_give_usable_probabilities(a_class):
    features, labels = _problem(50 * 20, 300, classes=50, spread=2.5)
    n = 50 * a_class
    head = ridge_of_classes(features[:n], labels[:n], 50)
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
    path = _Path.of(_Rows.of(features[:n], never_stop), _Classes.of(labels[:n], 50, never_stop))
    assert head.facts["ridge_strength"] < max(path.strengths)


def test_answers_that_are_always_right_leave_some_doubt():
    """Laplace's rule: after 60 right answers of 60 another one is right with a probability of about 61 / 62."""
    features, labels = _problem(60, 40, spread=0.01)
    head = ridge_of_classes(features, labels, 3)
    probability = _logits(head, features).softmax(dim=1).amax(dim=1).mean()
    assert head.facts["loo_accuracy"] == 1
    assert 0.97 < probability < 0.999


def test_the_only_image_of_a_class_does_not_spoil_the_others():
    features, labels = _problem(90, 20, spread=2.0)
    alone = ridge_of_classes(features, labels, 3)
    one_more = torch.cat([features, torch.full((1, 20), 8.0)]), torch.cat([labels, torch.tensor([3])])
    head = ridge_of_classes(*one_more, 4)
    assert head.facts["loo_accuracy"] == pytest.approx(alone.facts["loo_accuracy"], abs=0.05)
    assert _logits(head, one_more[0])[-1].argmax() == 3
    spread, before = _logits(head, features).std(), _logits(alone, features).std()
    assert 0.5 < spread / before < 2


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_at_all(n):
    head = ridge_of_classes(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), torch.arange(n), 3)
    assert head.weight.isfinite().all()
    assert head.bias.argmax() < n


# ---------------------------------------------------------------- features of little variance


def test_constant_features_do_no_harm():
    features, labels = _problem(60, 5)
    features[:, 2] = 7.0
    head = ridge_of_classes(features, labels, 3)
    assert head.weight.isfinite().all()
    assert head.weight[:, 2].abs().max() < 1e-9


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_features_constant_up_to_rounding_say_nothing(value):
    """A network that sees nothing in the images: the answer is how frequent the classes are, not amplified rounding."""
    noise = torch.randn(80, 30, generator=torch.Generator().manual_seed(0))
    features, labels = value * (1 + 3e-8 * noise), (torch.arange(80) % 4).clamp_max(2)
    head = ridge_of_classes(features, labels, 3)
    logits = _logits(head, features)
    assert (logits.argmax(dim=1) == 2).all()
    assert logits.std(dim=0).max() < 1e-6


def test_a_feature_hardly_seen_in_training_does_not_throw_new_images():
    """Rectified features are zero for most images: one of tiny deviation may be as large as any in a new image."""
    features, labels = _problem(120, 30)
    features[:, 3] = 0.0
    features[5, 3] = 1e-4
    head = ridge_of_classes(features, labels, 3)
    unusual = features.clone()
    unusual[:, 3] = 1.0
    assert (_logits(head, unusual) - _logits(head, features)).abs().max() < 0.01 * _logits(head, features).abs().max()


def test_rounding_of_the_features_is_not_amplified():
    """Half of the features vary by a thousandth of their size, as those of very dark images may."""
    features, labels = _problem(150, 64)
    features[:, ::2] = 3.0 + 1e-3 * features[:, ::2]
    head = ridge_of_classes(features, labels, 3)
    noise = 1e-6 * features * torch.randn(150, 64, generator=torch.Generator().manual_seed(1))
    logits = _logits(head, features)
    assert (_logits(head, features + noise) - logits).abs().max() < 2e-5 * logits.abs().max()


# ---------------------------------------------------------------- what is not finite, what is stopped


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value):
    features, labels = _problem(30, 4)
    features[[3, 9], 1] = value
    with pytest.raises(FloatingPointError, match=r"^the features of 2 of 30 images are not finite$"):
        ridge_of_classes(features, labels, 3)


def test_labels_that_are_not_finite_are_refused():
    features, labels = _problem(30, 4)
    with pytest.raises(FloatingPointError, match=r"^the labels of 1 of 30 images are not finite$"):
        ridge_of_classes(features, torch.where(torch.arange(30) == 4, math.nan, labels.double()), 3)


@pytest.mark.parametrize("fit", [ridge_of_values, ridge_of_labels])
def test_columns_that_are_not_finite_are_refused(fit):
    features, marks = _marks(30, 4)
    marks[[2, 8], [0, 1]] = math.nan
    with pytest.raises(FloatingPointError, match=r"^the (values|labels) of 2 of 30 images are not finite$"):
        fit(features, marks)


def test_a_head_beyond_single_precision_is_refused():
    features, labels = _problem(30, 4)
    with pytest.raises(FloatingPointError, match="single precision"):
        ridge_of_classes(features.double() * 1e-60, labels, 3)


def test_a_class_without_images_is_never_the_answer():
    features, labels = _problem(60, 10)
    assert (_logits(ridge_of_classes(features, labels, 4), features).argmax(dim=1) < 3).all()


class _Stop(Exception):
    pass


def _fit_classes(features, check):
    return ridge_of_classes(features, torch.arange(len(features)) % 3, 3, check)


def _fit_values(features, check):
    return ridge_of_values(features, _values(len(features), 4)[1], check)


def _fit_labels(features, check):
    return ridge_of_labels(features, _marks(len(features), 4)[1], check)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (24, 40)], ids=["more rows", "more columns"])
@pytest.mark.parametrize("fit", [_fit_classes, _fit_values, _fit_labels])
def test_every_check_can_stop_the_fit(n, dim, fit, monkeypatch):
    monkeypatch.setattr(parallel, "SECONDS_BETWEEN_CHECKS", 60.0)  # as many checks each time
    features, _ = _problem(n, dim)
    asked = 0

    def count():
        nonlocal asked
        asked += 1

    fit(features, count)
    assert asked > len(RELATIVE_STRENGTHS)
    for last in range(1, asked, 5):
        left = iter(range(last))

        def stop(left=left):
            if next(left, None) is None:
                raise _Stop

        with pytest.raises(_Stop):
            fit(features, stop)


def test_a_long_eigendecomposition_does_not_delay_the_stop(monkeypatch):
    done, asked = threading.Event(), []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: done.wait(60))
    monkeypatch.setattr(parallel, "SECONDS_BETWEEN_CHECKS", 0.01)

    def check():
        asked.append(1)
        if len(asked) > 20:
            raise _Stop

    with pytest.raises(_Stop):
        ridge_of_classes(*_problem(60, 8), 3, check)
    done.set()
