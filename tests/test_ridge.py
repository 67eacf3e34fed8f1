"""The closed-form head against brute force."""

from __future__ import annotations

import pytest
import torch

from autoft.train.ridge import STRENGTHS, _decompose, fit_ridge


def _problem(n, dim, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=generator)
    return centres[labels] + torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30)], ids=["more rows", "more columns"])
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_leave_one_out_is_exact(n, dim, strength):
    features, labels = _problem(n, dim)
    x = features.double() - features.double().mean(dim=0)
    y = torch.nn.functional.one_hot(labels, 3).double() * 2 - 1
    centre = y.mean(dim=0)
    fast = _decompose(x, y - centre).leave_one_out(strength, y - centre) + centre
    for left_out in range(n):
        rest = torch.arange(n) != left_out
        mean_x, mean_y = x[rest].mean(dim=0), y[rest].mean(dim=0)
        a, b = x[rest] - mean_x, y[rest] - mean_y
        weights = torch.linalg.solve(a.T @ a + strength * torch.eye(dim).double(), a.T @ b)
        torch.testing.assert_close((x[left_out] - mean_x) @ weights + mean_y, fast[left_out], rtol=1e-8, atol=1e-8)


def test_leave_one_out_is_honest_about_noise():
    """Without the intercept's 1/n in the leverage, pure noise would look learnable."""
    features = torch.randn(200, 400, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 4
    assert fit_ridge(features, labels, 4).loo_accuracy < 0.4


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (60, 200)])
def test_head_separates_new_rows_and_gives_logits(n, dim):
    features, labels = _problem(2 * n, dim)
    head = fit_ridge(features[:n], labels[:n], 3)
    logits = features[n:] @ head.weight.T + head.bias
    assert head.strength in STRENGTHS
    assert (logits.argmax(dim=1) == labels[n:]).float().mean() > 0.8
    assert torch.nn.functional.cross_entropy(logits, labels[n:]) < 0.8 * torch.log(torch.tensor(3.0))


def test_constant_features_do_no_harm():
    features, labels = _problem(60, 5)
    features[:, 2] = 7.0
    head = fit_ridge(features, labels, 3)
    assert torch.isfinite(head.weight).all()
    assert torch.isfinite(head.bias).all()
