"""Scores as people see them."""

from __future__ import annotations

import numpy as np
import pytest

from autoft.statistics import scores
from autoft.task import METRICS, SingleLabel


def test_a_loss_is_positive_for_people_and_greater_is_better_inside() -> None:
    logits, labels = np.log(np.array([[0.5, 0.5], [0.25, 0.75]])), np.array([0, 1])
    loss = -(np.log(0.5) + np.log(0.75)) / 2
    assert SingleLabel().score("log_loss", logits, labels) == pytest.approx(-loss)
    found = scores(SingleLabel(), "log_loss", logits, labels)
    assert found.metrics["log_loss"] == pytest.approx(loss)
    low, high = found.ci95
    assert 0 < low <= loss <= high
    assert [name for name, metric in METRICS.items() if metric.is_loss] == ["log_loss"]


def test_no_loss_at_all_is_plain_zero() -> None:
    assert str(METRICS["log_loss"].shown(0.0)) == str(METRICS["log_loss"].shown(-0.0)) == "0.0"
