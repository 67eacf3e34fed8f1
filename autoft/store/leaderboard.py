"""The leaderboard: every trial, best first."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path

from autoft.files import write_atomic
from autoft.ledger import Ledger, State, TrialRecord
from autoft.space import Params


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial as people see it; the fields are the columns of leaderboard.csv.

    `rank` counts from 1; None without a score. `step` in passes, `seconds` over all slices. `exportable`: it has a
    score, and its checkpoint is kept. `error` is the cause of a failure, else empty.
    """

    rank: int | None
    trial: int
    state: State
    score: float | None
    step: float
    seconds: float
    backbone: str
    freeze: str
    image_size: int
    params: Params
    exportable: bool
    error: str


def leaderboard_rows(ledger: Ledger) -> list[LeaderboardRow]:
    """Every trial: those with a score, best first, then those without one yet, then the failed."""
    ranking = ledger.ranking()
    unscored = [record for record in ledger.trials.values() if record.score is None]
    unscored.sort(key=lambda record: (record.state == "failed", record.trial.id))
    kept = ledger.with_checkpoint() & {record.trial.id for record in ranking}
    ranked = [_row(record, rank, kept) for rank, record in enumerate(ranking, start=1)]
    return ranked + [_row(record, None, kept) for record in unscored]


def write_leaderboard(path: Path, ledger: Ledger) -> None:
    """Write leaderboard.csv, whole or not at all; see `LeaderboardRow` for the columns. Raises `OSError`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(field.name for field in fields(LeaderboardRow))
    writer.writerows(_cells(row) for row in leaderboard_rows(ledger))
    write_atomic(path, text.getvalue())


def _row(record: TrialRecord, rank: int | None, kept: frozenset[int]) -> LeaderboardRow:
    trial = record.trial
    return LeaderboardRow(
        rank=rank,
        trial=trial.id,
        state=record.state,
        score=record.score,
        step=record.step,
        seconds=record.seconds,
        backbone=trial.backbone,
        freeze=trial.freeze,
        image_size=trial.image_size,
        params=trial.params,
        exportable=trial.id in kept,
        error=(record.reports[-1].error or "") if record.reports else "",
    )


def _cells(row: LeaderboardRow) -> list[object]:
    """The row's cells; the csv module leaves None empty."""
    return [
        row.rank,
        row.trial,
        row.state,
        row.score,
        round(row.step, 6),
        round(row.seconds, 3),
        row.backbone,
        row.freeze,
        row.image_size,
        json.dumps(dict(row.params), separators=(",", ":"), ensure_ascii=False),
        "yes" if row.exportable else "no",
        row.error,
    ]
