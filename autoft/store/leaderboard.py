"""The leaderboard: every trial, best first."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

from autoft.system.files import write_atomic
from autoft.values.dataset import TrainOn
from autoft.values.ledger import Ledger, State, TrialRecord
from autoft.values.space import Params
from autoft.values.target import MetricFacts


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial as people see it; the fields are the columns of leaderboard.csv.

    `rank` counts from 1; None without a score. `state` is that of the ledger, but for a trial whose slice was cut short
    with the search: it is "stopped". `score` is the best validation score so far, which ranks and is exported, reached
    after `best_step` passes, with its `standard_error` and its `bound`, the worse end of its 95 % interval, where
    validation images are few or it is past the target of the search; `folds` is that of a head on few images out of
    fold, by which heads are to be compared; `latest_score` the one measured last. Of a loss they are the loss. `step`
    in passes, `seconds` over all slices, `image_seconds` what a forward pass of one image was measured to take, alike
    for all trials of a backbone at a size, None where nobody has. `share` the part of the images to train on that the
    head of the best score was fitted on, None without a score. `train_on` are the splits that it trains on; a refit,
    which has no score, repeats the trial `twin`, and stands above it. `exportable`: it has weights of its own, they are
    kept and whole, and its network is not too slow. `error` is why the trial is in its state, when its last slice
    failed or was given back, or it is a refit that was left out; else empty.
    """

    rank: int | None
    trial: int
    state: State | Literal["stopped"]
    score: float | None
    standard_error: float | None
    bound: float | None
    folds: float | None
    best_step: float | None
    latest_score: float | None
    step: float
    seconds: float
    image_seconds: float | None
    share: float | None
    backbone: str
    freeze: str
    image_size: int
    params: Params
    train_on: TrainOn
    twin: int | None
    exportable: bool
    error: str


def leaderboard_rows(
    ledger: Ledger,
    metric: MetricFacts,
    in_flight: Literal["running", "stopped"],
) -> list[LeaderboardRow]:
    """Every trial: those with a score, best first, each below its refits, then those without one, at last the failed.

    `in_flight` says of the trials whose slice has not ended whether somebody runs them, or nobody does any more.
    """
    networks = {record.trial.network for record in ledger.trials.values()}
    paces = {network: ledger.image_seconds(*network) for network in networks}
    board = _Board(metric, in_flight, frozenset(record.trial.id for record in ledger.exportable()), paces)
    ranking = ledger.ranking()
    refits = {record.trial.id: ledger.refits(record) for record in ranking}
    above = {refit.trial.id for found in refits.values() for refit in found}
    unscored = [one for one in ledger.trials.values() if one.score is None and one.trial.id not in above]
    unscored.sort(key=lambda record: (record.state == "failed", record.trial.id))
    ranked: list[LeaderboardRow] = []
    for rank, record in enumerate(ranking, start=1):
        ranked += [*(board.row(refit, None) for refit in refits[record.trial.id]), board.row(record, rank)]
    return ranked + [board.row(record, None) for record in unscored]


def pareto_front(rows: Sequence[LeaderboardRow], cost: Callable[[LeaderboardRow], float]) -> list[LeaderboardRow]:
    """Of rows as they rank, those that no other beats in both score and what inference costs.

    Of several alike in both it is the first. A refit stays with its twin, whose score stands for it.
    """
    front, cheapest = set[int](), math.inf
    ranked = (row for row in rows if row.rank is not None)
    for _, alike in groupby(ranked, attrgetter("score")):
        best = min(alike, key=cost)
        if cost(best) < cheapest:
            front.add(best.trial)
            cheapest = cost(best)
    return [row for row in rows if row.trial in front or row.twin in front]


def write_leaderboard(path: Path, ledger: Ledger, metric: MetricFacts) -> None:
    """Write leaderboard.csv of a search that has ended; see `LeaderboardRow` for the columns. Raises `OSError`."""
    write_atomic(path, as_csv(leaderboard_rows(ledger, metric, "stopped")))


def as_csv(rows: Iterable[LeaderboardRow]) -> str:
    """The rows under the names of their columns, as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(LeaderboardRow))
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue()


@dataclass(frozen=True)
class _Board:
    metric: MetricFacts
    in_flight: Literal["running", "stopped"]
    exportable: frozenset[int]
    paces: Mapping[tuple[str, int], float | None]

    def row(self, record: TrialRecord, rank: int | None) -> LeaderboardRow:
        trial = record.trial
        weights = record.has_weights
        return LeaderboardRow(
            rank=rank,
            trial=trial.id,
            state="stopped" if record.in_flight and self.in_flight == "stopped" else record.state,
            score=self._shown(record.score),
            standard_error=record.standard_error,
            bound=self._shown(record.bound),
            folds=self._shown(record.folds),
            best_step=record.best_step if weights else None,
            latest_score=self._shown(record.latest_score),
            step=record.step,
            seconds=record.seconds,
            image_seconds=self.paces[trial.backbone, trial.image_size],
            share=record.share if weights else None,
            backbone=trial.backbone,
            freeze=trial.freeze,
            image_size=trial.image_size,
            params=trial.params,
            train_on=trial.train_on,
            twin=trial.twin.trial if trial.twin else None,
            exportable=trial.id in self.exportable,
            error="" if record.in_flight else record.reports[-1].error or "",
        )

    def _shown(self, score: float | None) -> float | None:
        return None if score is None else self.metric.shown(score)


def _cells(row: LeaderboardRow) -> list[object]:
    """The row's cells; the csv module leaves None empty."""
    return [
        row.rank,
        row.trial,
        row.state,
        row.score,
        None if row.standard_error is None else round(row.standard_error, 6),
        None if row.bound is None else round(row.bound, 6),
        row.folds,
        None if row.best_step is None else round(row.best_step, 6),
        row.latest_score,
        round(row.step, 6),
        round(row.seconds, 3),
        None if row.image_seconds is None else round(row.image_seconds, 6),
        None if row.share is None else round(row.share, 6),
        row.backbone,
        row.freeze,
        row.image_size,
        json.dumps(dict(row.params), separators=(",", ":"), ensure_ascii=False),
        row.train_on,
        row.twin,
        "yes" if row.exportable else "no",
        row.error,
    ]
