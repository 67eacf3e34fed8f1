from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.bundle.predict import find_bundle
from autoft.errors import RunFolderError, UserError
from autoft.store import (
    Checkpoint,
    CheckpointStore,
    Journal,
    RunFolder,
    leaderboard_rows,
    pareto_front,
    write_leaderboard,
)
from autoft.system.files import sha256, write_atomic
from autoft.values.codec import encode
from autoft.values.ledger import Kept, Ledger
from autoft.values.target import MetricFacts
from autoft.values.trial import Clock, Costs, Event, Lost, Parent, Queued, Report, Slice, Started, Trial

PARAMS = {"learning_rate": 1e-3, "depth": 2, "flip": True, "init": "ridge"}


def trial(number: int, **changes: object) -> Trial:
    return Trial(**{"id": number, "backbone": "timm/a", "freeze": "full", "image_size": 64, "params": PARAMS,
                    "seed": 7, **changes})  # fmt: skip


def queued(number: int, start: float = 0.0) -> Queued:
    return Queued(number, Slice(trial(number), start, start + 1, 90.0), Clock(1.5, 100.0))


def report(number: int, event: str = "finished", score: float | None = 0.5, **rest: object) -> Report:
    return Report(number, event, rest.pop("step", 1.0), score, rest.pop("seconds", 2.0), **rest)


def history(trials: int) -> list[Event]:
    return [event for number in range(trials) for event in (queued(number), report(number))]


def write_journal(path: Path, events: list[Event]) -> None:
    with Journal(path) as journal:
        for event in events:
            journal.append(event)


def in_child(work: Callable[[], object]) -> int:
    """Fork, run `work`, and give the child's id; it exits 0, or 1 after an exception."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_call(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child: die by SIGKILL at the `number`-th step a write takes, just before it happens."""
    steps = iter(range(1000))

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for owner, name in (
        (os, "fsync"),
        (os, "write"),
        (os, "open"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "open"),
    ):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Root may write anywhere; be nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------- journal

texts = st.text(max_size=20)
scalars = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53), texts, st.booleans()
)
facts = st.dictionaries(texts, scalars, max_size=3)
numbers = st.floats(0, 1e6)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for number in range(draw(st.integers(1, 3))):
        shape = trial(
            number,
            backbone=draw(texts),
            params=draw(facts),
            parents=tuple(Parent(other, 1.0) for other in range(number)),
        )
        reached = 0.0
        for event in [*["paused"] * draw(st.integers(0, 2)), draw(st.sampled_from(["finished", "failed", "open"]))]:
            events.append(Queued(number, Slice(shape, reached, draw(numbers), 9.0), Clock(draw(numbers), 9.0)))
            if draw(st.booleans()):
                events.append(Started(number, draw(numbers)))
            if draw(st.booleans()):
                events.append(Lost(number, "memory", draw(texts), draw(numbers)))
            if event != "open":
                reached, score = draw(numbers), None if event == "failed" else draw(numbers)
                error = draw(st.none() | texts)
                events.append(report(number, event, score, step=reached, facts=draw(facts), error=error))
    return events


@settings(max_examples=15)
@given(histories())
def test_journal_reads_back_what_was_written_wherever_the_last_line_is_cut(events: list[Event]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trials.jsonl"
        write_journal(path, events)
        assert Journal.read(path) == events
        whole = path.read_bytes()
        assert whole.count(b"\n") == len(events)
        last = whole.rindex(b"\n", 0, -1) + 1 if len(events) > 1 else 0
        for cut in reversed(range(last, len(whole))):
            os.truncate(path, cut)
            assert Journal.read(path) == events[:-1]


def test_appending_goes_on_after_the_last_good_line_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    events = history(1)
    write_journal(path, events)
    whole = path.read_bytes()
    for cut in reversed(range(whole.index(b"\n") + 1, len(whole))):
        os.truncate(path, cut)
        write_journal(path, events[1:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b"\xff\xfe{", b'{"event": "star', b"\0\0\0\0"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(2))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert Journal.read(path) == history(2)
    Journal(path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\xff\xfe{\n", b'{"event": "star\n', b"\0\0\n"])
def test_a_damaged_last_line_is_an_error_with_its_number(tmp_path: Path, damage: bytes) -> None:
    """It ends as a line does, so it was there once, and with it what the run believes in."""
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(2))
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(RunFolderError, match=r"trials\.jsonl, line 5: .*delete it, as it is the last, or restore"):
        Journal.read(path)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_line_that_is_gone_is_an_error_with_the_number_of_the_one_in_its_place(tmp_path: Path, gone: int) -> None:
    """Also where the rest could be read without: of two slices of a trial, say, one with its report."""
    path = tmp_path / "trials.jsonl"
    write_journal(path, [queued(0), Started(0, 1.0), Started(0, 2.0), report(0)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    is_gone = rf"trials\.jsonl, line {gone + 1}: .*a line between them is gone; restore the file"  # the last is whole
    with pytest.raises(RunFolderError, match=is_gone):
        Journal.read(path)


def test_lines_that_change_places_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, [queued(0), queued(1), report(0), report(1)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[3], lines[2]]))
    with pytest.raises(RunFolderError, match="line 3: its checksum does not follow"):
        Journal.read(path)


def test_an_append_that_a_signal_cuts_short_leaves_the_journal_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with Journal(tmp_path / "trials.jsonl") as journal:
        journal.append(queued(0))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", interrupted)
            journal.append(report(0))
        journal.append(report(0))
    assert Journal.read(tmp_path / "trials.jsonl") == [queued(0), report(0)]


@pytest.mark.parametrize("damage", [b"\xff\n", b'{"event"\n', b"\n", b"{}\n", b"[]\n"])
@pytest.mark.parametrize("tail", [b"", b'{"event": "sta'])
def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path, damage: bytes, tail: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + b"".join(lines[1:]) + tail)
    with pytest.raises(RunFolderError, match=r"trials\.jsonl, line 2: ") as caught:
        Journal.read(path)
    assert "\n" not in str(caught.value)


def test_only_one_line_at_the_end_is_ever_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(1))
    path.write_bytes(path.read_bytes() + b'{"damaged\n{"torn')
    with pytest.raises(RunFolderError, match="line 3"):
        Journal.read(path)


def test_a_complete_last_line_that_is_no_event_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(1))
    with path.open("a") as file:
        file.write('{"event": "of a later version"}\n')
    with pytest.raises(RunFolderError, match="line 3"):
        Journal.read(path)


def test_a_line_that_cannot_follow_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, [queued(0), report(0), report(0)])
    with pytest.raises(RunFolderError, match="line 3: trial 0 is finished, but no slice"):
        Journal.read(path)


def test_a_bit_that_flips_anywhere_is_an_error_with_the_number_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(2))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    begin, end = len(lines[0]), len(lines[0]) + len(lines[1]) - 1  # the first report, without its newline
    for place in range(begin, end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunFolderError, match=r"trials\.jsonl, line 2: .*restore the file from a backup"):
            Journal.read(path)


@pytest.mark.parametrize(("was", "now"), [('"score": 0.5', '"score": 0.9'), ('"step": 1.0', '"step": 2.0')])
def test_a_number_that_was_changed_by_hand_is_told_in_the_last_line_too(tmp_path: Path, was: str, now: str) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(1))
    path.write_text(path.read_text().replace(was, now))
    with pytest.raises(RunFolderError, match=r"line 2: its checksum does not follow"):
        Journal.read(path)


def test_a_slice_of_a_version_that_journalled_it_as_started_is_read_as_queued(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    lines = [encode(event).replace('"event": "queued"', '"event": "started"') for event in history(2)]
    path.write_text("".join(line + "\n" for line in lines))
    assert '"started"' in path.read_text()
    assert Journal.read(path) == history(2)


@pytest.mark.parametrize("was", ["true", "false"])
def test_a_report_of_a_version_that_marked_what_failed_by_circumstance_is_read_without(
    tmp_path: Path, was: str
) -> None:
    path, more = tmp_path / "trials.jsonl", f'"loss": null, "by_circumstance": {was}'
    for events in (history(2), [queued(0), replace(report(0), facts={"why": ', "by_circumstance": true}'})]):
        lines = [encode(event).replace(', "refused": false', "") for event in events]
        marked = [line.replace('"loss": null', more) for line in lines]
        assert marked[1] != lines[1]
        path.write_text("".join(line + "\n" for line in marked))
        assert Journal.read(path) == events


def with_own_checksum(event: Event) -> str:
    plain = encode(event)
    return f'{plain[:-1]}, "crc32": "{zlib.crc32(plain.encode()):08x}"}}\n'


@pytest.mark.parametrize("old", [with_own_checksum, lambda event: f"{encode(event)}\n"], ids=["crc32", "none"])
def test_lines_of_older_versions_are_read_and_appended_to(tmp_path: Path, old: Callable[[Event], str]) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(map(old, history(1))))
    write_journal(path, [queued(1), report(1)])
    assert Journal.read(path) == history(2)
    lines = path.read_text().splitlines(keepends=True)
    assert ["chain" in json.loads(line) for line in lines] == [False, False, True, True]
    path.write_text("".join([*lines[:2], lines[3]]))
    with pytest.raises(RunFolderError, match="line 3"):
        Journal.read(path)
    path.write_text("".join(lines) + old(queued(2)))  # no older version could have read what stands before it
    with pytest.raises(RunFolderError, match="line 5: it"):
        Journal.read(path)


def test_a_parameter_called_chain_is_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    events = [queued(0), Report(0, "finished", 1.0, 0.5, 2.0, {"chain": "0123abcd"})]
    path.write_text("".join(f"{encode(event)}\n" for event in [*events, queued(1)]))
    assert Journal.read(path) == [*events, queued(1)]


def test_a_changed_digit_of_an_older_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(map(with_own_checksum, history(1))).replace('"score": 0.5', '"score": 0.9'))
    with pytest.raises(RunFolderError, match="line 2: its checksum is not that of its text"):
        Journal.read(path)


def test_no_journal_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert Journal.read(tmp_path / "trials.jsonl") == []


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be written"):
        Journal(tmp_path / "missing" / "trials.jsonl")


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    write_journal(path, history(1))
    whole = path.read_bytes()

    def work() -> None:
        with Journal(path) as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, resource.RLIM_INFINITY))
            with pytest.raises(RunFolderError, match="File too large"):
                journal.append(queued(1))
            assert path.read_bytes() == whole
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            journal.append(queued(1))

    assert exit_status(in_child(work)) == 0
    assert Journal.read(path) == [*history(1), queued(1)]


# ---------------------------------------------------------------- checkpoints


def tensors(value: float, size: int = 64) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.full((2, size), value), "head.bias": torch.tensor(value)}


def save(store: CheckpointStore, number: int, step: float, value: float = 1.0) -> None:
    store.save(checkpoint(number, step, value))


def checkpoint(number: int, step: float, value: float = 1.0, size: int = 64) -> Checkpoint:
    moments = {"moment": torch.full((3,), value)}
    return Checkpoint(trial(number), step, f"weights {value}", tensors(value, size), moments)


def value_of(checkpoint: Checkpoint | None) -> float:
    """The one number that all of the checkpoint's tensors hold, and its fingerprint."""
    assert checkpoint is not None
    held = torch.cat([t.flatten() for t in (*checkpoint.model.values(), *checkpoint.training.values())]).unique()
    assert checkpoint.weights == f"weights {held.item()}"
    return held.item()


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(store: CheckpointStore, tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    model = {"a": weight, "tied": weight, "turned": weight.T, "half": weight.bfloat16(), "scalar": torch.tensor(3)}
    training = {"a": torch.arange(4, dtype=torch.float64), "mask": torch.tensor([True, False])}
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    child = trial(3, parents=(Parent(1, 2.5),))
    store.save(Checkpoint(child, 2.1234567891, "abc", model, training, logits))
    for loaded in (store.load_latest(3), store.load(Parent(3, 2.1234567891))):
        assert loaded is not None
        assert (loaded.trial, loaded.step, loaded.weights) == (child, 2.1234567891, "abc")
        assert loaded.model.keys() == model.keys()
        assert all(torch.equal(loaded.model[name], model[name]) for name in model)
        assert np.array_equal(loaded.logits, logits)
    going_on = store.load_latest(3)
    assert going_on is not None
    assert all(torch.equal(going_on.training[name], training[name]) for name in training)
    *data, sidecar = sorted(files_of(tmp_path), key=lambda path: path.suffix, reverse=True)
    written = json.loads(sidecar.read_text())
    assert [written["model"]["sha256"], written["training"]["sha256"]] == [sha256(path) for path in data]
    assert {path.stat().st_mode & 0o777 for path in (*data, sidecar)} == {sidecar.stat().st_mode & 0o777}


def test_a_checkpoint_of_a_version_that_knew_no_refits_is_read(store: CheckpointStore, tmp_path: Path) -> None:
    saved = checkpoint(3, 1.5)
    store.save(saved)
    (sidecar,) = tmp_path.rglob("*.json")
    older = json.loads(sidecar.read_text())
    del older["trial"]["train_on"], older["trial"]["twin"]
    older["check"] = ""
    older["check"] = hashlib.sha256(json.dumps(older, ensure_ascii=False).encode()).hexdigest()
    sidecar.write_text(json.dumps(older, ensure_ascii=False))
    assert store.load(Parent(saved.trial.id, saved.step)) is not None
    older["trial"]["seed"] += 1
    sidecar.write_text(json.dumps(older, ensure_ascii=False))
    assert store.load(Parent(saved.trial.id, saved.step)) is None


def test_an_ended_trial_has_no_state_of_training(store: CheckpointStore) -> None:
    store.save(Checkpoint(trial(0), 1, "abc", {"a": torch.ones(1)}))
    loaded = store.load(Parent(0, 1.0))
    assert loaded is not None
    assert (loaded.step, loaded.training, loaded.logits) == (1.0, {}, None)
    assert store.load_latest(0) is None  # there is nothing to go on with


def test_a_trial_never_saved_has_none(store: CheckpointStore) -> None:
    assert store.load_latest(0) is None
    assert store.load(Parent(0, 0.0)) is None
    store.prune({}, set())


def test_a_save_replaces_what_it_is_told_to_replace(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 7, 1.0, 1.0)
    store.save(checkpoint(7, 2.0, 2.0))
    assert len(files_of(tmp_path)) == 6  # what was scored at 1 stays beside the new one
    store.save(checkpoint(7, 2.5, 2.5), replacing=2.0)
    assert len(files_of(tmp_path)) == 6
    store.save(checkpoint(7, 2.5, 3.0))  # the same step again
    assert len(files_of(tmp_path)) == 6
    assert value_of(store.load_latest(7)) == 3.0
    assert store.load(Parent(7, 1.0)) is not None


def test_a_file_nobody_touched_is_hashed_once(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr("autoft.store.checkpoints.sha256", lambda path: hashed.append(path) or sha256(path))
    save(store, 0, 1.0)
    assert len(hashed) == 2  # the model and the training tensors
    store.load_latest(0)
    assert len(hashed) == 2
    store.load(Parent(0, 1.0))  # what leaves the run is read to the last byte
    assert len(hashed) == 3


def test_a_file_that_was_touched_is_read_again_once_after_each_touch(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all are in a copy of a run; each question may be put to a store of its own."""
    hashed: list[Path] = []
    monkeypatch.setattr("autoft.store.checkpoints.sha256", lambda path: hashed.append(path) or sha256(path))
    save(store, 0, 1.0)
    for path in files_of(tmp_path):
        os.utime(path, (1e9, 1e9))
    hashed.clear()
    again, wanted = CheckpointStore(tmp_path / "checkpoints"), Parent(0, 1.0)
    for one in (store, again):
        assert one.problem(wanted) is one.training_problem(wanted) is None
        assert one.load_latest(0) is not None
    assert len(hashed) == len(set(hashed)) == 2
    (weights,) = tmp_path.rglob("*.model.safetensors")
    flip(weights, 100, 0)
    for one in (store, again):
        assert one.load_latest(0) is None
        assert "is damaged" in (one.problem(wanted) or "")
    assert hashed[2:] == [weights]


SUFFIXES = (".json", ".model.safetensors", ".training.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=30)
@given(position=st.integers(0, 2**16), bit=st.integers(0, 7))
def test_a_flipped_bit_never_goes_unseen(suffix: str, position: int, bit: int) -> None:
    with TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "checkpoints")
        save(store, 0, 1e-5)
        before = store.load_latest(0)
        assert before is not None
        (path,) = (path for path in files_of(Path(folder)) if path.name.endswith(suffix))
        flip(path, position, bit)
        loaded = store.load_latest(0)
        if loaded is not None:  # only a flip that changes nothing, such as 1e-05 to 1E-05
            assert (loaded.trial, loaded.step, value_of(loaded)) == (before.trial, before.step, 1.0)
            assert suffix == ".json"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_the_one_before_is_used_when_the_newest_is_damaged(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, damage: str
) -> None:
    save(store, 0, 1.0, 1.0)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    save(store, 0, 2.0, 2.0)
    for path, content in before.items():  # a kill came before they were removed
        path.write_bytes(content)
    assert value_of(store.load_latest(0)) == 2.0
    (newest,) = (path for path in files_of(tmp_path) if path.name.endswith(suffix) and path not in before)
    match damage:
        case "flipped":
            flip(newest, 100, 0)
        case "cut":
            newest.write_bytes(newest.read_bytes()[:-1])
        case "missing":
            newest.unlink()
    with caplog.at_level(logging.WARNING):
        assert value_of(store.load_latest(0)) == 1.0
    assert ("is not used" in caplog.text) == (newest.exists() or suffix != ".json")


def test_a_store_is_empty_until_a_checkpoint_is_whole(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.is_empty()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for left_by_a_kill in ("00000-1.000000-ab.model.safetensors", ".00000-1.000000.json.ab.tmp"):
        (folder / left_by_a_kill).touch()
    (folder / "notes.json").touch()
    assert store.is_empty()
    save(store, 0, 1.0)
    assert not store.is_empty()


def test_prune_keeps_what_it_is_told_to_keep(store: CheckpointStore, tmp_path: Path) -> None:
    for number in (0, 1, 2, 3, 100000):
        save(store, number, 1.0)
    save(store, 1, 2.0)
    save(store, 3, 2.0)
    folder = tmp_path / "checkpoints"
    others = folder / "notes.txt"
    others.write_text("mine")
    half = [folder / f".{number:05d}-2.000000-ab.xyz" / "tmpfile" for number in (0, 1, 2)]
    for path in half:
        path.parent.mkdir()
        path.touch()
    (folder / ".00000-2.000000.json.ab.tmp").touch()
    store.prune({1: Kept(frozenset({1.0, 2.0}), going_on=2.0), 3: Kept(frozenset({1.0}))}, in_flight={2})
    left = {path.name for path in files_of(tmp_path)}
    assert store.load_latest(0) is None
    assert store.load(Parent(1, 1.0)) is not None
    assert value_of(store.load_latest(1)) == 1.0
    assert [name for name in left if name.startswith("00001-1.") and "training" in name] == []
    assert (store.load(Parent(3, 1.0)) is not None, store.load(Parent(3, 2.0))) == (True, None)
    assert half[2].exists()  # trial 2 may be saving at this moment
    assert store.load_latest(2) is not None
    assert not half[1].exists()
    assert others.exists()
    assert not [name for name in left if name.startswith((".00000", "00000", "100000"))]


def test_a_full_disk_leaves_the_checkpoint_before(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 0, 1.0, 1.0)
    before = files_of(tmp_path)
    large = checkpoint(
        0, 2.0, 2.0, size=10_000
    )  # few enough numbers that torch starts no threads, which a fork would lose

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(RunFolderError, match="File too large; make room there"):
            store.save(large)

    assert exit_status(in_child(work)) == 0
    assert files_of(tmp_path) == before
    assert value_of(store.load_latest(0)) == 1.0


def test_a_full_disk_under_the_sidecar_leaves_the_checkpoint_before(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 0, 1.0, 1.0)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match="No space left"):
        patch.setattr("autoft.store.checkpoints.write_atomic", full)
        save(store, 0, 2.0, 2.0)
    assert value_of(store.load_latest(0)) == 1.0
    assert len(files_of(tmp_path)) == 3


# ---------------------------------------------------------------- kill -9


@pytest.mark.parametrize("again", [1.0, 2.0], ids=["same step", "later step"])
def test_a_save_killed_before_any_of_its_steps_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float
) -> None:
    seen = []
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        store = CheckpointStore(tmp_path / str(number) / "checkpoints")
        save(store, 0, 1.0, 1.0)

        def work(store: CheckpointStore = store, number: int = number) -> None:
            kill_at_call(number, monkeypatch)
            save(store, 0, again, 2.0)

        status = exit_status(in_child(work))
        seen.append(value_of(store.load_latest(0)))
        save(store, 0, 3.0, 3.0)
        assert value_of(store.load_latest(0)) == 3.0
        store.prune({0: Kept(frozenset({3.0}), going_on=3.0)}, set())
        assert len(files_of(tmp_path / str(number))) == 3  # nothing half written is left
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert seen == sorted(seen)  # the old one up to a point, the new one from there
    assert {1.0, 2.0} == set(seen)
    assert len(seen) > 8


def test_a_journal_append_killed_before_any_of_its_steps_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        write_journal(path, history(1))

        def work(path: Path = path, number: int = number) -> None:
            kill_at_call(number, monkeypatch)
            write_journal(path, [queued(1)])

        status = exit_status(in_child(work))
        counts.append(len(Journal.read(path)))
        if status == 0:
            break
    assert status == 0
    assert counts == sorted(counts)
    assert set(counts) == {2, 3}


def test_kills_at_random_moments_leave_a_run_readable(tmp_path: Path) -> None:
    path, store = tmp_path / "trials.jsonl", CheckpointStore(tmp_path / "checkpoints")
    rng = random.Random(0)

    def work() -> None:
        with Journal(path) as journal:
            step = Ledger(Journal.read(path)).trials[0].step
            while True:
                journal.append(queued(0, step))
                step += 1
                save(store, 0, step, step)
                journal.append(report(0, "paused", step=step))

    write_journal(path, [queued(0), report(0, "paused", step=0.0)])
    save(store, 0, 0.0, 0.0)
    for _ in range(10):
        child = in_child(work)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) == -signal.SIGKILL
        record = Ledger(Journal.read(path)).trials[0]
        checkpoint = store.load_latest(0)
        assert checkpoint is not None
        assert value_of(checkpoint) == checkpoint.step
        assert record.step <= checkpoint.step <= record.step + 1  # a checkpoint is durable before its report
        if record.in_flight:  # resuming runs the open slice again
            write_journal(path, [report(0, "paused", step=checkpoint.step)])
    assert Ledger(Journal.read(path)).trials[0].step > 0


# ---------------------------------------------------------------- the folder


def test_create_and_open(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    RunFolder.check_writable(path)
    assert not path.parent.exists()
    made = RunFolder.create(path, '{"seed": 1}')
    assert made.study.read_text() == '{"seed": 1}'
    assert RunFolder.open(path) == made
    assert RunFolder.create(path, '{"seed": 1}') == made  # a kill came right after


def test_another_study_keeps_its_folder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", '{"seed": 1}')
    with pytest.raises(RunFolderError, match=r"another study; choose another --out.*autoft resume"):
        RunFolder.create(tmp_path / "run", '{"seed": 2}')
    assert RunFolder.open(tmp_path / "run").study.read_text() == '{"seed": 1}'


def test_a_run_that_searched_is_resumed_not_begun_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "{}")
    write_journal(run.journal, history(1))
    with pytest.raises(RunFolderError, match="autoft resume"):
        RunFolder.create(tmp_path / "run", "{}")
    with pytest.raises(RunFolderError, match="autoft resume"):
        RunFolder.check_writable(tmp_path / "run")


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    for refuse in (RunFolder.check_writable, lambda path: RunFolder.create(path, "{}")):
        with pytest.raises(RunFolderError, match="holds other files"):
            refuse(tmp_path)
        with pytest.raises(RunFolderError, match="choose another --out"):
            refuse(tmp_path / "photo.jpg" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_create_killed_before_any_of_its_steps_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        path = tmp_path / str(number)

        def work(path: Path = path, number: int = number) -> None:
            kill_at_call(number, monkeypatch)
            RunFolder.create(path, "{}")

        status = exit_status(in_child(work))
        RunFolder.create(path, "{}")
        assert RunFolder.open(path).study.read_text() == "{}"
        if status == 0:
            break
    assert status == 0
    assert number > 3


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "{}")
    (run.path / ".lock").unlink()
    run.path.chmod(0o555)
    (tmp_path / "closed").mkdir(mode=0o555)
    with without_root():
        for path in (tmp_path / "closed", tmp_path / "closed" / "run"):
            with pytest.raises(RunFolderError, match=r"cannot be written: .*ermission"):
                RunFolder.create(path, "{}")
            with pytest.raises(RunFolderError, match=r"cannot be written: .*ermission.*; choose another --out"):
                RunFolder.check_writable(path)
        with pytest.raises(RunFolderError, match="cannot be written: Permission denied"), run.lock():
            pytest.fail("locked without permission to")


@pytest.mark.parametrize("name", ["missing", "empty", "left/by a kill"])
def test_where_a_run_can_begin_the_command_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name != "missing":
        path.mkdir(parents=True)
    if "kill" in name:
        (path / ".lock").touch()
    with pytest.raises(RunFolderError, match=r"`autoft search DATA --out \S.*` begins one"):
        RunFolder.open(path)
    RunFolder.create(path, "{}")


@pytest.mark.parametrize("name", ["file", "photos", "file/below"])
def test_where_none_can_begin_no_command_is_told_that_would_be_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="; give the folder of a run, as"):
        RunFolder.open(tmp_path / name)
    with pytest.raises(RunFolderError):
        RunFolder.check_writable(tmp_path / name)


def test_the_runs_that_a_path_may_mean_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "one").mkdir(parents=True)  # the data
    names = [f"digits-{number}" for number in range(5)]
    for age, name in enumerate(names):
        run = RunFolder.create(Path("runs") / name, "{}")
        os.utime(run.study, (1e9 + age, 1e9 + age))
    (Path("runs") / "digits-4" / "export").mkdir()
    latest = r"it contains runs/digits-4, runs/digits-3, runs/digits-2 and 2 more: give one of them"
    for path, hint in (
        ("runs", latest),
        (".", latest),
        ("runs/digits-4/export", "it lies in a run: give runs/digits-4$"),
        ("runs/digits-4/export/model.onx", "it lies in a run: give runs/digits-4$"),
        ("runs/digit-3", r"did you mean runs/digits-3\?"),
        ("digits-3", r"did you mean runs/digits-3\?"),
        ("digits", r"did you mean runs/digits-4\?"),
    ):
        with pytest.raises(RunFolderError, match=hint):
            RunFolder.open(Path(path))
        if "export" not in path:
            with pytest.raises(UserError, match=hint):
                find_bundle(Path(path))
    with pytest.raises(RunFolderError, match=r"digits-1/export.*it lies in a run"):
        RunFolder.open(Path("runs/digits-1/export").absolute())


def test_the_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "{}")
    reading, writing = os.pipe()

    def work() -> None:
        with run.lock():
            os.write(writing, b"x")
            time.sleep(60)

    child = in_child(work)
    os.read(reading, 1)
    try:
        with pytest.raises(RunFolderError, match=rf"in use by process {child} on {os.uname().nodename}"), run.lock():
            pytest.fail("two processes hold the lock")
        with pytest.raises(RunFolderError, match="in use"):
            RunFolder.create(run.path, "{}")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for _ in range(2):
        with run.lock():
            pass


def test_write_atomic_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "one\r\né")
    assert path.read_bytes() == "one\r\né".encode()
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_bytes() == "one\r\né".encode()
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- leaderboard


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(
        [
            *(queued(0), replace(report(0, score=0.5), share=0.02)),
            *(queued(1), report(1, "failed", None, error='OSError: "disk full",\nno space')),
            *(queued(2), replace(report(2, "paused", 0.9, step=3.0), standard_error=0.0625, bound=0.75)),
            *(queued(2, 3.0), replace(report(2, score=0.8, step=9.0), standard_error=0.125, bound=0.5)),
            *(queued(3), Started(3, 2.0)),
            *(queued(4), report(4, "paused", 0.8, seconds=1.0)),
            *(queued(5), report(5, score=-0.25)),
            queued(6),
        ],
        keep=2,
    )


def test_leaderboard_has_every_trial_best_first_then_open_then_failed(ledger: Ledger) -> None:
    rows = leaderboard_rows(ledger, MetricFacts("accuracy"), "running")
    assert [(row.rank, row.trial, row.state) for row in rows] == [
        (1, 2, "finished"),  # for its best, although it got worse
        (2, 4, "paused"),
        (3, 0, "finished"),
        (4, 5, "finished"),
        (None, 3, "running"),
        (None, 6, "queued"),
        (None, 1, "failed"),
    ]
    assert [row.trial for row in rows if row.exportable] == [2, 4]
    assert rows[0].seconds == 4.0


def test_weights_that_are_not_whole_are_not_exportable(ledger: Ledger, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    for number, step in ((2, 3.0), (4, 1.0)):
        store.save(checkpoint(number, step))
    assert store.damaged(ledger) == {}
    (weights,) = (tmp_path / "checkpoints").glob("00002-*.model.safetensors")
    os.truncate(weights, 10)
    ledger.damaged = store.damaged(ledger)
    problem = f"00002-3.000000.json: {weights.name} is damaged: its SHA-256 is not the one in the sidecar"
    assert ledger.damaged == {Parent(2, 3.0): problem}
    rows = leaderboard_rows(ledger, MetricFacts("accuracy"), "running")
    assert [(row.rank, row.trial, row.exportable) for row in rows[:2]] == [(1, 2, False), (2, 4, True)]
    shutil.rmtree(tmp_path / "checkpoints")
    assert list(store.damaged(ledger)) == [Parent(2, 3.0), Parent(4, 1.0)]


def test_leaderboard_csv_reads_back(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    write_leaderboard(path, ledger, MetricFacts("accuracy"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("rank", "trial", "state", "score", "standard_error", "bound", "folds", "best_step", "latest_score", "step"),
        *("seconds", "image_seconds", "share", "backbone", "freeze", "image_size", "params", "train_on", "twin"),
        *("exportable", "error"),
    ]
    assert [row["trial"] for row in rows] == ["2", "4", "0", "5", "3", "6", "1"]
    assert [row["exportable"] for row in rows] == ["yes", "yes", "no", "no", "no", "no", "no"]
    assert json.loads(rows[0]["params"]) == PARAMS
    first = tuple(float(rows[0][column]) for column in ("score", "best_step", "latest_score", "step"))
    assert first == (0.9, 3.0, 0.8, 9.0)
    errors = [row["standard_error"] for row in rows]
    assert errors == ["0.0625", "", "", "", "", "", ""]  # that of the best score, where it is known
    assert [row["bound"] for row in rows] == ["0.75", "", "", "", "", "", ""]
    assert [row["share"] for row in rows] == ["1.0", "1.0", "0.02", "1.0", "", "", ""]
    assert rows[4]["state"] == rows[5]["state"] == "stopped"  # nobody runs them once this file is written
    assert (rows[-1]["rank"], rows[-1]["score"]) == ("", "")
    assert rows[-1]["error"] == 'OSError: "disk full",\nno space'


def test_losses_are_positive_on_the_leaderboard_and_the_smallest_leads() -> None:
    best = replace(report(1, score=-0.25), bound=-0.375)
    events = [queued(0), report(0, score=-0.5), queued(1), best, queued(2)]
    rows = leaderboard_rows(Ledger(events), MetricFacts("log_loss", is_loss=True), "stopped")
    assert [(row.trial, row.score, row.latest_score) for row in rows] == [
        (1, 0.25, 0.25),
        (0, 0.5, 0.5),
        (2, None, None),
    ]
    assert [row.bound for row in rows] == [0.375, None, None]


def scored(number: int, backbone: str, score: float, image: float = 0.0) -> list[Event]:
    trial = Trial(number, backbone, "full", 64, {}, 0)
    ended = replace(report(number, score=score), costs=Costs(image=image))
    return [Queued(number, Slice(trial, 0.0, 1.0, 60.0), Clock(0.0, 60.0)), ended]


def test_the_seconds_an_image_are_those_of_the_network_whoever_measured_them() -> None:
    """A head on features that were kept has measured none, and one may have been measured in a bad moment."""
    paces = (0.0, 0.01, 0.012, 0.5)
    events = [event for number, pace in enumerate(paces) for event in scored(number, "z/a", 0.5, pace)]
    rows = leaderboard_rows(Ledger([*events, *scored(4, "z/b", 0.5)]), MetricFacts("accuracy"), "stopped")
    assert {(row.backbone, row.image_seconds) for row in rows} == {("z/a", 0.012), ("z/b", None)}


@pytest.mark.parametrize("is_loss", [False, True])
def test_the_front_is_what_nobody_beats_in_both_score_and_cost(is_loss: bool) -> None:
    costs = {"z/large": 3.0, "z/middle": 2.0, "z/slow": 4.0, "z/small": 1.0}
    scores = {0: ("z/large", 0.9), 1: ("z/middle", 0.9), 2: ("z/slow", 0.8), 3: ("z/middle", 0.8), 4: ("z/small", 0.8)}
    scores |= {5: ("z/small", 0.7), 6: ("z/small", 0.8)}
    events = [one for n, (name, score) in scores.items() for one in scored(n, name, score - is_loss)]
    refit = Trial(7, "z/small", "full", 64, {}, 0, train_on="train+val", twin=Parent(4, 1.0))
    ended = replace(report(7), score=None)
    events += [Queued(7, Slice(refit, 0.0, 1.0, 60.0), Clock(0.0, 60.0)), ended, queued(8)]
    rows = leaderboard_rows(Ledger(events, keep=10), MetricFacts("x", is_loss=is_loss), "stopped")
    front = pareto_front(rows, lambda row: costs[row.backbone])
    assert [row.trial for row in front] == [1, 7, 4]  # of equals the first; the refit is its twin's
    assert pareto_front([], lambda row: 0.0) == []
    assert pareto_front(rows[-1:], lambda row: 0.0) == []  # without a score


def test_a_folder_is_in_use_while_somebody_holds_its_lock(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "{}")
    assert not run.in_use()
    with run.lock():
        assert run.in_use()
    assert not run.in_use()
    (run.path / ".lock").unlink()
    assert not run.in_use()
    assert not (run.path / ".lock").exists()
