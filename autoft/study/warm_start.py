"""Warm start: a search begins with what another run has found, not with its weights.

The parameters of that run's best trials become the first starts of the candidates of today, and its ranking their order
and their priors: so searchers need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from autoft.errors import RunFolderError, StudyError, first_names
from autoft.study.record import StudyRecord, Taken, WarmStart
from autoft.study.run import Run
from autoft.system.files import as_text
from autoft.values.counts import counted
from autoft.values.dataset import Sample
from autoft.values.ledger import TrialRecord
from autoft.values.space import Params
from autoft.values.trial import Candidate, Trial

MOST_STARTS: Final = 3
"""Of one candidate: each costs a trial before anything new is tried, and the best one may be so by luck."""

FIRST: Final = 1.0
"""The prior of the backbone that was best: no accuracy on ImageNet is as much."""

Reason = tuple[str, str]
"""What is not taken, and why."""


@dataclass(frozen=True)
class Earlier:
    """A run of before: where it lies, its study, and its trials that began from pretrained weights and have a score,
    best first. `seen` are the digests of the images by which they came about.
    """

    path: Path
    record: StudyRecord
    ranking: tuple[TrialRecord, ...]
    seen: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path) -> Self:
        """The run in `path`, as it stands; it may be going on. Nothing is written there.

        Raises `RunFolderError` when there is none or it is damaged, and `StudyError` when nothing has a score in it.
        """
        try:
            run = Run.open(path)
            ranking, seen = run.ledger().ranking(), _seen(run)
        except RunFolderError as problem:
            raise RunFolderError(f"--from: {problem}") from None
        found = tuple(record for record in ranking if not record.trial.parents)
        if not found:
            raise StudyError(f"--from {path}: no trial of that run has a score, so it has found nothing to begin with")
        return cls(path.absolute(), run.record, found, seen)

    def require_task(self, task: str) -> None:
        """Raise `StudyError` when that run was of another task: from its scores nothing follows for this one."""
        if (before := self.record.study.task) != task:
            raise StudyError(
                f"--from {self.path}: that run was of task {before!r}, and this is {task!r}; leave it out, or name the "
                "task with --task"
            )

    def begin(
        self, candidates: Sequence[Candidate], samples: Iterable[Sample], why_not: Callable[[Trial], Reason]
    ) -> tuple[tuple[Candidate, ...], WarmStart]:
        """The candidates with what was found first, best first, and what was taken, for a search on these images.

        `why_not` says of a trial that is of none of them why that is. Raises `StudyError` when all are.
        """
        taken, left_out = self._divided({_pair(candidate): candidate for candidate in candidates}, why_not)
        if not taken:
            raise StudyError(f"--from {self.path}: {_listed(left_out.items())}; with nothing left of it, leave it out")
        starts: dict[tuple[str, str], list[Params]] = {}
        for one in taken:
            starts.setdefault(_pair(one), []).append(one.params)
        priors, order = _priors(dict.fromkeys(one.backbone for one in taken), candidates), list(starts)
        found = sorted(candidates, key=lambda one: order.index(_pair(one)) if _pair(one) in starts else len(order))
        begun = tuple(_begun(one, starts.get(_pair(one), []), priors.get(one.backbone, one.prior)) for one in found)
        metric, best = self.record.metric, self.ranking[0].score or 0.0
        known = sum(sample.split == "test" and sample.digest in self.seen for sample in samples)
        return begun, WarmStart(as_text(self.path), metric.name, metric.shown(best), tuple(taken), left_out, known)

    def _divided(
        self, here: Mapping[tuple[str, str], Candidate], why_not: Callable[[Trial], Reason]
    ) -> tuple[list[Taken], dict[str, str]]:
        """The trials that are taken, best first, and what of the others is left out, with the reason."""
        taken: list[Taken] = []
        left_out: dict[str, str] = {}
        for record in self.ranking:
            trial, candidate = record.trial, here.get(_pair(record.trial))
            if candidate is None:
                left_out.setdefault(*why_not(trial))
            elif (start := candidate.space.fitted(trial.params)) is None:
                left_out.setdefault(f"parameters of {trial.freeze}", candidate.space.problem(trial.params) or "")
            else:
                own = [one.params for one in taken if _pair(one) == _pair(trial)]
                if len(own) < MOST_STARTS and start not in own:
                    taken.append(self._taken(record, start))
        return taken, left_out

    def _taken(self, record: TrialRecord, start: Params) -> Taken:
        trial, score = record.trial, self.record.metric.shown(record.score or 0.0)
        return Taken(trial.id, trial.backbone, trial.freeze, trial.image_size, start, score)

    def remarks(self, now: StudyRecord) -> Iterator[str]:
        """What is to be said of a study that begins with this run, in a line each."""
        if (begun := now.warm_start) is None:
            return
        first, facts = begun.taken[0], self.record.metric
        what = f"{first.backbone}, {first.freeze}, {facts.name} {facts.text(first.score)}"
        yield f"begins with {counted(len(begun.taken), 'trial')} of {begun.run}; the best: {what}"
        if unlike := [*self._other_metric(now), *_other_sizes(begun, now), *self._changed(begun)]:
            yield f"unlike there: {'; '.join(unlike)}"
        if begun.left_out:
            yield f"not taken from there: {_listed(begun.left_out.items())}"
        if begun.test_images_seen:
            of = f"{begun.test_images_seen:,} of {counted(now.data.counts['test'], 'test image')}"
            seed, is_same = self.record.study.seed, self.record.data.fingerprint == now.data.fingerprint
            advice = f"; its split is that of --seed {seed}" if is_same and seed != now.study.seed else ""
            yield f"{of} were for training or validation in that run, and the card says so{advice}"

    def _other_metric(self, now: StudyRecord) -> Iterator[str]:
        if now.metric.name != self.record.metric.name:
            yield f"goes by {now.metric.name}, not {self.record.metric.name}"

    def _changed(self, begun: WarmStart) -> Iterator[str]:
        """The parameters of which this study has not the values that were found."""
        found = {record.trial.id: record.trial.params for record in self.ranking}
        pairs = [(one.params, found[one.trial]) for one in begun.taken]
        changed = dict.fromkeys(n for now, then in pairs for n in {**now, **then} if now.get(n) != then.get(n))
        if changed:
            yield f"as usual, where it does not fit here: {first_names(list(changed))}"


def _other_sizes(begun: WarmStart, now: StudyRecord) -> Iterator[str]:
    """The backbones that see images of another size than they did."""
    sizes = {candidate.backbone: candidate.image_size for candidate in now.candidates}
    there = {one.backbone: one.image_size for one in begun.taken if sizes[one.backbone] != one.image_size}
    if there:
        yield first_names([f"{name} at {sizes[name]} px, not {size}" for name, size in there.items()])


def _begun(candidate: Candidate, first: list[Params], prior: float | None) -> Candidate:
    """The candidate that begins with the `first` starts, before its own."""
    own = [start for start in candidate.space.starts if start not in first]
    return replace(candidate, space=replace(candidate.space, starts=(*first, *own)), prior=prior)


def _priors(found: Iterable[str], candidates: Iterable[Candidate]) -> dict[str, float]:
    """The priors of the backbones that were found, dealt out among them anew, the highest to the best.

    And `FIRST` to that one: those that nobody has tried yet are behind it, and among the others by their own.
    """
    own, ranked = {one.backbone: one.prior or 0.0 for one in candidates}, list(found)
    dealt = sorted((own[name] for name in ranked), reverse=True)
    return dict(zip(ranked, dealt, strict=True)) | {ranked[0]: FIRST}


def _seen(run: Run) -> frozenset[str]:
    """The digests of the images by which a run has chosen; also its test images, if the run that it began with had any.

    Raises `RunFolderError` when its split is damaged.
    """
    began, samples = run.record.warm_start, run.samples()
    all_of_them = began is not None and began.test_images_seen > 0
    return frozenset(sample.digest for sample in samples if all_of_them or sample.split != "test")


def _pair(of: Candidate | Trial | Taken) -> tuple[str, str]:
    """Backbone and strategy; a study has them at one input size, which may not be that of another."""
    return of.backbone, of.freeze


def _listed(reasons: Iterable[Reason]) -> str:
    return first_names([f"{what} ({why})" for what, why in reasons])
