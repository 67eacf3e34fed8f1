"""Warm start: a search begins with what did best in another run, and says what it could not take."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts.data import dataset

import autoft
from autoft import Backbone, FreezeStrategy, GradientHead, InputSpec, Plan, hookimpl
from autoft.__main__ import _run
from autoft.builtin.searchers import Halving, OneEpoch
from autoft.data.dataset import write_split_csv
from autoft.data.scan import DIGEST_LENGTH
from autoft.errors import RunFolderError, StudyError
from autoft.parts.base import Problem, Searcher
from autoft.store import Journal, RunFolder
from autoft.study.record import Machine, StudyRecord, WarmStart
from autoft.study.run import Run
from autoft.study.shortlist import why_not
from autoft.study.study import Study
from autoft.study.warm_start import FIRST, MOST_STARTS, Earlier
from autoft.system.markdown import plain
from autoft.system.screen import Silent
from autoft.testing.simulation import simulate
from autoft.values.codec import encode
from autoft.values.dataset import DatasetInfo, Sample, SplitName
from autoft.values.space import Choice, Float, Params, Space
from autoft.values.target import MetricFacts, Targets
from autoft.values.trial import Candidate, Clock, Event, Parent, Queued, Report, Slice, Trial

BACKBONES, STRATEGIES = ("z/a", "z/b", "z/c"), ("full", "last")
PRIORS = {"z/a": 0.8, "z/b": 0.7, "z/c": None}
SPACE = Space(
    {"lr": Float(1e-4, 1e-1, log=True), "batch_size": Choice((16, 32))}, starts=({"lr": 1e-3, "batch_size": 32},)
)
TODAY = (
    *(Candidate(name, "probe", 64, Space({}), "closed_form", prior=PRIORS[name]) for name in BACKBONES),
    *(Candidate(name, strategy, 64, SPACE, prior=PRIORS[name]) for name in BACKBONES for strategy in STRATEGIES),
)
ACCURACY = MetricFacts("accuracy")
TARGETS = Targets("single_label", "one_of", ("a", "b"))
SPLIT: tuple[SplitName, ...] = ("train", "train", "val", "test", "test")
DATA = DatasetInfo("/photos", TARGETS, Counter(SPLIT), "ff", 64, 1.0)
MACHINE = Machine("inline", 1, 1, "cpu")

Found = tuple[Trial, float | None]
"""A trial, and the score that it came to."""


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def trial(backbone: str = "z/a", freeze: str = "full", size: int = 64, **params: Any) -> Trial:
    return Trial(0, backbone, freeze, size, params or {"lr": 1e-2, "batch_size": 16}, seed=0)


def record(**changes: Any) -> StudyRecord:
    known = StudyRecord(
        study=Study("/photos", task="single_label"),
        data=DATA,
        view="crop",
        backbones=(),
        candidates=TODAY,
        plugins=(),
        versions={},
        machine=MACHINE,
        metric=ACCURACY,
    )
    return replace(known, **changes)


def samples(*splits: SplitName) -> tuple[Sample, ...]:
    """An image each, the first of them in the first split, and so on."""
    return tuple(Sample(row, f"{row}.png", "a", split, f"{row:0{DIGEST_LENGTH}}") for row, split in enumerate(splits))


def a_run(folder: Path, *found: Found, data: Any = None, **changes: Any) -> Path:
    """A run on `data` in which these trials came to these scores, or failed."""
    data = data or SimpleNamespace(info=DATA, samples=samples(*SPLIT))
    study = encode(record(data=data.info, **changes))
    run = RunFolder.create(folder, study, lambda run: write_split_csv(data, run.split_csv))
    with Journal(run.journal) as journal:
        for number, (one, score) in enumerate(found):
            slice_ = Slice(replace(one, id=number), 0.0, 1.0, 60.0)
            event, error = ("failed", "no luck") if score is None else ("finished", None)
            journal.append(Queued(number, slice_, Clock(number, 60.0)))
            journal.append(Report(number, event, 1.0, score, 1.0, error=error, elapsed=number + 1.0))  # type: ignore[arg-type]
    return folder


def earlier(*found: Found, **changes: Any) -> Earlier:
    """What such a run has found; the trials that have a score."""
    events: list[Event] = []
    for number, (one, score) in enumerate(found):
        slice_ = Slice(replace(one, id=number), 0.0, 1.0, 60.0)
        events += [Queued(number, slice_, Clock(0.0, 60.0)), Report(number, "finished", 1.0, score, 1.0)]
    return Earlier(Path("/runs/before"), record(**changes), autoft.Ledger(events).ranking())


def unknown(one: Trial) -> tuple[str, str]:
    return one.backbone, "no plugin has it"


def begin(before: Earlier, today: tuple[Candidate, ...] = TODAY) -> tuple[tuple[Candidate, ...], WarmStart]:
    return before.begin(today, (), unknown)


def pair(of: Candidate | Trial) -> tuple[str, str]:
    return of.backbone, of.freeze


# ---------------------------------------------------------------- what becomes of the candidates

rates = st.floats(1e-4, 1e-1)
fine_tunes = st.builds(
    lambda name, freeze, size, lr, batch: trial(name, freeze, size, lr=lr, batch_size=batch),
    st.sampled_from((*BACKBONES, "z/gone")),
    st.sampled_from(STRATEGIES),
    st.sampled_from((64, 96)),
    st.sampled_from((1e-3, 1e-2, 0.5)) | rates,
    st.sampled_from((16, 32, 256)),
)
probes = st.sampled_from(BACKBONES).map(lambda name: Trial(0, name, "probe", 64, {}, 0))
runs = st.lists(st.tuples(fine_tunes | probes, st.floats(0.0, 1.0)), min_size=1, max_size=20).filter(
    lambda found: any(one.backbone != "z/gone" for one, _ in found)
)


@given(runs)
def test_candidates_stay_what_they_are_but_for_order_starts_and_priors(found: list[Found]) -> None:
    begun, _ = begin(earlier(*found))
    bare = [replace(one, space=Space(one.space.dimensions), prior=None) for one in begun]
    assert sorted(bare, key=pair) == sorted(
        (replace(one, space=Space(one.space.dimensions), prior=None) for one in TODAY), key=pair
    )


@given(runs)
def test_what_was_found_comes_first_best_first_and_nothing_twice(found: list[Found]) -> None:
    before = earlier(*found)
    begun, warm = begin(before)
    taken: dict[tuple[str, str], list[Params]] = {}
    for one in warm.taken:
        taken.setdefault((one.backbone, one.freeze), []).append(one.params)
    assert [pair(one) for one in begun][: len(taken)] == list(taken)
    for candidate in begun:
        first = taken.get(pair(candidate), [])
        usual = [start for start in SPACE.starts if candidate.freeze != "probe" and start not in first]
        assert list(candidate.space.starts) == [*first, *usual]
        assert len(first) <= MOST_STARTS
    ranked = [one.trial.id for one in before.ranking]
    assert [one.trial for one in warm.taken] == [number for number in ranked if number in {t.trial for t in warm.taken}]


@given(runs)
def test_a_start_has_every_value_that_fits_and_else_the_usual_one(found: list[Found]) -> None:
    before = earlier(*found)
    asked = {one.trial.id: one.trial.params for one in before.ranking}
    for one in begin(before)[1].taken:
        for name, value in one.params.items():
            fits = SPACE.dimensions[name].contains(asked[one.trial][name])
            assert value == (asked[one.trial][name] if fits else SPACE.starts[0][name])


@given(runs)
def test_the_best_backbone_has_the_highest_prior_and_the_others_keep_theirs_among_them(found: list[Found]) -> None:
    begun, warm = begin(earlier(*found))
    priors = {one.backbone: one.prior for one in begun}
    ranked = list(dict.fromkeys(one.backbone for one in warm.taken))
    assert priors[ranked[0]] == FIRST > max(prior or 0.0 for name, prior in priors.items() if name != ranked[0])
    of_those_found = [priors[name] or 0.0 for name in ranked]
    assert of_those_found == sorted(of_those_found, reverse=True)
    assert {name: priors[name] for name in set(BACKBONES) - set(ranked)} == {
        name: PRIORS[name] for name in set(BACKBONES) - set(ranked)
    }
    assert Counter(one.prior for one in begun) == Counter(priors[one.backbone] for one in TODAY)


@given(runs)
def test_what_is_no_candidate_is_named_with_the_reason_and_is_no_start(found: list[Found]) -> None:
    before = earlier(*found)
    begun, warm = begin(before)
    is_gone = any(one.trial.backbone == "z/gone" for one in before.ranking)
    assert warm.left_out == ({"z/gone": "no plugin has it"} if is_gone else {})
    named = [line for line in before.remarks(record(candidates=begun, warm_start=warm)) if line.startswith("not taken")]
    assert named == ["not taken from there: z/gone (no plugin has it)"] * is_gone


def test_a_strategy_without_starts_takes_only_what_fits_as_a_whole() -> None:
    today = (Candidate("z/a", "full", 64, Space(SPACE.dimensions)),)
    before = earlier((trial(lr=1e-2, batch_size=16), 0.8), (trial(lr=1e-2, batch_size=256), 0.9))
    (begun,), warm = begin(before, today)
    assert begun.space.starts == ({"lr": 1e-2, "batch_size": 16},)
    ((what, why),) = warm.left_out.items()
    assert what == "parameters of full" and "batch_size=256 lies outside" in why


def test_what_began_from_another_trials_weights_is_no_start(tmp_path: Path) -> None:
    child = replace(trial(lr=5e-2, batch_size=16), parents=(Parent(0, 1.0),))
    found = Earlier.of(a_run(tmp_path / "before", (trial(), 0.5), (child, 0.9))).ranking
    assert [one.trial.id for one in found] == [0]


# ---------------------------------------------------------------- what searchers make of it

WINNER = trial("z/c", "last", lr=2e-2, batch_size=16)


def problem(seed: int) -> Problem:
    before = earlier((WINNER, 0.9), (trial("z/b", "last", lr=3e-2, batch_size=16), 0.8), (trial("z/a"), 0.5))
    return Problem(begin(before)[0], seed, workers=1)


@pytest.mark.parametrize("seed", range(20))
def test_halving_probes_the_best_backbone_first_and_races_what_was_best_first(seed: int) -> None:
    heights = {name: random.Random(f"{seed} {name}").random() for name in BACKBONES}
    run = simulate(Halving(), problem(seed), lambda one, step: heights[one.backbone])
    begun = [slice_.trial for slice_ in run.slices if slice_.start == 0.0]
    assert pair(begun[0]) == ("z/c", "probe")
    raced = next(one for one in begun if one.freeze != "probe")
    assert raced.freeze == WINNER.freeze
    candidate = next(one for one in run.problem.candidates if pair(one) == pair(raced))
    assert raced.params == candidate.space.starts[0]
    own = next((one for one in begun if pair(one) == pair(WINNER)), WINNER)
    assert own.params == WINNER.params


@pytest.mark.parametrize("searcher", [Halving(), OneEpoch()], ids=lambda one: one.name)
def test_without_a_probe_the_first_trial_is_the_winner(searcher: Searcher) -> None:
    raced = tuple(one for one in problem(0).candidates if one.fit == "gradient")
    first = simulate(searcher, Problem(raced, 0, workers=1)).slices[0].trial
    assert (pair(first), first.params) == (pair(WINNER), WINNER.params)


@pytest.mark.parametrize("name", ["asha", "grid", "random"])
def test_a_searcher_that_draws_all_by_itself_says_so(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("--from", str(a_run(tmp_path / "before", (trial(), 0.8))), "--searcher", name)
    assert f"--searcher {name} draws all parameters by itself" in line


# ---------------------------------------------------------------- what cannot be begun with


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_images: Path
) -> Callable[..., str]:
    """`autoft search` on the tiny images, which is refused in one line before anything is written."""

    def call(*arguments: str) -> str:
        out = tmp_path / "run"
        command = ["autoft", "search", str(tiny_images), "--time", "24h", "--runner", "inline", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert _run() == 2
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not out.exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    return call


def a_torn_study(run: Path) -> None:
    study = run / "study.json"
    study.write_text(study.read_text()[:-20])


def another_digit(run: Path) -> None:
    journal = run / "trials.jsonl"
    journal.write_text(journal.read_text().replace("0.8", "0.9", 1))


def no_journal(run: Path) -> None:
    (run / "leaderboard.csv").touch()
    (run / "trials.jsonl").unlink()


def another_split(run: Path) -> None:
    split = run / "split.csv"
    split.write_text(split.read_text().replace("val", "test"))


def no_study(run: Path) -> None:
    (run / "study.json").unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (a_torn_study, "study.json is damaged or of another version"),
        (another_digit, "trials.jsonl, line 2: its checksum"),
        (no_journal, "trials.jsonl is missing"),
        (another_split, "split.csv holds {'train': 2, 'test': 3} images, the run has"),
        (no_study, "holds no run: there is no study.json in it"),
    ],
)
def test_a_run_that_is_none_or_is_damaged_is_one_line(
    harm: Callable[[Path], None], says: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    harm(a_run(tmp_path / "before", (trial(), 0.8)))
    line = refused("--from", str(tmp_path / "before"))
    assert line.startswith("error: --from: ") and says in line


def test_a_path_that_is_no_folder_is_one_line_with_the_run_that_is_meant(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    a_run(tmp_path / "before", (trial(), 0.8))
    line = refused("--from", str(tmp_path / "befor"))
    assert f"befor is no folder; did you mean {tmp_path / 'before'}?" in line


@pytest.mark.parametrize("found", [(), ((trial(), None),)])
def test_a_run_without_a_score_has_found_nothing(
    found: tuple[Found, ...], refused: Callable[..., str], tmp_path: Path
) -> None:
    before = a_run(tmp_path / "before", *found)
    assert f"--from {before}: no trial of that run has a score" in refused("--from", str(before))


def test_a_run_of_another_task_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    other = Study("/photos", task="regression")
    before = a_run(tmp_path / "before", (trial(), -0.8), study=other, metric=MetricFacts("mae", is_loss=True))
    assert "that run was of task 'regression', and this is 'single_label'" in refused("--from", str(before))


def test_nothing_to_take_is_refused() -> None:
    with pytest.raises(StudyError, match=r"^--from /runs/before: z/gone \(no plugin has it\); with nothing left of it"):
        begin(earlier((trial("z/gone"), 0.9)))


def test_a_run_that_goes_on_can_be_begun_with(tmp_path: Path) -> None:
    before = a_run(tmp_path / "before", (trial(), 0.8))
    with Run.open(before).folder.lock(), (before / "trials.jsonl").open("a") as journal:
        journal.write('{"trial": 1, "ev')  # a line that is being written
        journal.flush()
        assert len(Earlier.of(before).ranking) == 1


# ---------------------------------------------------------------- why something is not taken, and what is said


class Zoo:
    def __init__(self, *backbones: Backbone) -> None:
        self._backbones = backbones

    def backbones(self) -> list[Backbone]:
        return list(self._backbones)

    def parts(self, kind: type) -> dict[str, None]:
        assert kind is FreezeStrategy
        return {"probe": None, "full": None, "lp_ft": None}


HOST: Any = Zoo(
    Backbone("z/a", 1000, InputSpec(64), license="mit"),
    Backbone("z/own", 1000, InputSpec(64), license="cc-by-nc-4.0"),
    Backbone("z/far", 1000, InputSpec(64), license="mit", weights="download"),
    Backbone("z/big", 9_000_000, InputSpec(64), license="mit"),
)


@pytest.mark.parametrize(
    ("of", "asked", "says"),
    [
        (trial("z/gone"), {}, ("z/gone", "no plugin has it")),
        (trial("z/own"), {}, ("z/own", "--licenses permissive does not allow cc-by-nc-4.0")),
        (trial("z/far"), {"offline": True}, ("z/far", "--offline, and its weights are not here")),
        (trial("z/far"), {"backbones": ("z/*",)}, ("z/far", "its weights could not be had")),
        (trial("z/big"), {"max_params": 1_000_000}, ("z/big", "above --max-params 1,000,000")),
        (trial("z/big"), {"backbones": ("z/a",)}, ("z/big", "not among --backbones")),
        (trial("z/big"), {}, ("z/big", "--backbones z/big searches it")),
        (trial("z/a", "lora"), {}, ("lora", "no plugin has it")),
        (trial("z/a", "lp_ft"), {}, ("lp_ft", "--freeze lp_ft searches it")),
        (trial("z/a", "lp_ft"), {"freeze": ("full",)}, ("lp_ft", "not among --freeze")),
    ],
)
def test_the_reason_is_the_filter_that_leaves_it_out(of: Trial, asked: dict[str, Any], says: tuple[str, str]) -> None:
    assert why_not(Study("data", **asked), HOST, TODAY[:1], of) == says


def said(*found: Found, now: dict[str, Any] | None = None, **before: Any) -> str:
    run = earlier(*found, **before)
    begun, warm = begin(run)
    return "\n".join(run.remarks(record(candidates=begun, warm_start=warm, **(now or {}))))


def test_a_line_says_what_is_begun_with() -> None:
    lines = said((trial(), 0.875), (trial("z/b"), 0.5))
    assert lines == "begins with 2 trials of /runs/before; the best: z/a, full, accuracy 0.8750"
    losses = said((trial(), -12.5), metric=MetricFacts("mae", is_loss=True, greatest=None))
    assert "the best: z/a, full, mae 12.5\n" in losses


@pytest.mark.parametrize(
    ("found", "before", "says"),
    [
        (trial(), {"metric": MetricFacts("macro_f1")}, "goes by accuracy, not macro_f1"),
        (trial(size=96), {}, "z/a at 64 px, not 96"),
        (trial(lr=1e-2, batch_size=256), {}, "as usual, where it does not fit here: batch_size"),
        (trial(lr=1e-2, batch_size=16, balance="none"), {}, "as usual, where it does not fit here: balance"),
    ],
)
def test_a_line_says_what_is_not_as_it_was(found: Trial, before: dict[str, Any], says: str) -> None:
    assert said((found, 0.8), **before).endswith(f"\nunlike there: {says}")


@pytest.mark.parametrize(
    ("today", "began", "known"),
    [
        (SPLIT, False, 0),
        (("test", "train", "val", "test", "train"), False, 1),
        (("test", "train", "test", "test", "train"), False, 2),
        (SPLIT, True, 2),  # what that run began with had seen some of its test images, so it may have seen these
    ],
)
def test_images_that_were_chosen_by_and_are_test_images_now_are_counted_and_said(
    today: tuple[SplitName, ...], began: bool, known: int, tmp_path: Path
) -> None:
    its_own = WarmStart("/runs/first", "accuracy", 0.8, (), {}, test_images_seen=1) if began else None
    before = Earlier.of(a_run(tmp_path / "before", (trial(), 0.8), warm_start=its_own))
    begun, warm = before.begin(TODAY, samples(*today), unknown)
    assert warm.test_images_seen == known
    data = replace(DATA, counts=Counter(today))
    now = record(candidates=begun, warm_start=warm, data=data, study=Study("/photos", seed=0 if began else 1))
    said = [line for line in before.remarks(now) if "for training or validation" in line]
    assert bool(said) is (known > 0)
    assert all(line.startswith(f"{known} of {today.count('test')} test images were for training") for line in said)
    assert all(line.endswith("its split is that of --seed 0") is not began for line in said)


# ---------------------------------------------------------------- from one search to the next


class OnePass(FreezeStrategy):
    name = "one_pass"
    summary = "the head alone, for one pass"

    def space(self) -> Space:
        return Space({"learning_rate": Float(1e-4, 1e-1, log=True)}, ({"learning_rate": 1e-3},))

    def plan(self, stages: tuple[autoft.Stage, ...], params: Params) -> Plan:
        head = GradientHead(float(params["learning_rate"]))
        return Plan((), head, recipe=autoft.Recipe(passes=1.0, warmup_passes=0.0))


class Plugin:
    @hookimpl
    def autoft_freeze_strategies(self) -> list[FreezeStrategy]:
        return [OnePass()]


def test_a_search_begins_with_the_winner_of_another_and_keeps_what_it_took(tiny_images: Path, tmp_path: Path) -> None:
    rate = 0.0123
    winner = trial("small/test_efficientnet", "one_pass", 64, learning_rate=rate)
    before = a_run(
        tmp_path / "before",
        (trial("small/test_resnet", "one_pass", 64, learning_rate=0.05), 0.7),
        (winner, 0.8),
        (trial("small/test_vit", "one_pass", 64, learning_rate=0.02), 0.75),
        data=dataset(tiny_images, set(), seed=1),
    )
    notes = Notes()
    summary = autoft.search(
        tiny_images,
        time="60s",
        trials=1,
        runner="inline",
        backbones=["small/test_resnet", winner.backbone],
        freeze=["one_pass"],
        image_size=32,
        precision="fp32",
        no_refit=True,
        from_=before,
        out=tmp_path / "run",
        plugins=[Path(__file__).parent / "parts" / "small_zoo.py", Plugin()],
        screen=notes,
    )
    run = Run.open(tmp_path / "run")
    (first,) = run.ledger().trials.values()
    assert (first.trial.backbone, first.trial.params) == (winner.backbone, {"learning_rate": rate})
    assert (summary.best.backbone, summary.best.params) == (winner.backbone, {"learning_rate": rate})
    warm = run.record.warm_start
    assert warm is not None
    assert (warm.run, warm.metric, warm.best) == (str(before), "accuracy", 0.8)
    assert [(one.trial, one.image_size, one.score) for one in warm.taken] == [(1, 64, 0.8), (0, 64, 0.7)]
    assert warm.left_out == {"small/test_vit": "not among --backbones"}
    assert [one.space.starts for one in run.record.candidates] == [
        ({"learning_rate": rate}, {"learning_rate": 1e-3}),
        ({"learning_rate": 0.05}, {"learning_rate": 1e-3}),
    ]
    best = "the best: small/test_efficientnet, one_pass, accuracy 0.8000"
    sizes = "small/test_efficientnet at 32 px, not 64, small/test_resnet at 32 px, not 64"
    chosen_by = {one.digest for one in Run.open(before).samples() if one.split != "test"}
    known = sum(one.digest in chosen_by for one in run.samples() if one.split == "test")
    report = json.loads((tmp_path / "run" / "export" / "metrics.json").read_text())
    assert report["test_images_seen"] == warm.test_images_seen == known > 0
    card = (tmp_path / "run" / "export" / "MODEL_CARD.md").read_text()
    assert f"parameters of 2 trials of run {plain(before.name)}, tried first" in card and str(tmp_path) not in card
    place = notes.lines.index(f"begins with 2 trials of {before}; {best}")
    assert notes.lines[place + 1 : place + 3] == [
        f"unlike there: {sizes}",
        "not taken from there: small/test_vit (not among --backbones)",
    ]


def test_python_has_it_by_the_name_that_is_no_keyword(tmp_path: Path, tiny_images: Path) -> None:
    with pytest.raises(RunFolderError, match=r"--from: .*nowhere is no folder"):
        autoft.search(tiny_images, from_=tmp_path / "nowhere", out=tmp_path / "run")
    with pytest.raises(StudyError, match="no option is called 'from'; did you mean 'from_'"):
        autoft.search(tiny_images, **{"from": tmp_path})  # type: ignore[arg-type]
