"""Searchers whose parameters Optuna draws: TPE, a Gaussian process, CMA-ES.

Optuna is imported when a searcher is first asked, so that listing plugins stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoft import Asha, Candidate, Choice, Dimension, Ledger, Params, Problem, Searcher, TrialRecord, hookimpl

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["OptunaCmaEs", "OptunaGp", "OptunaTpe", "autoft_searchers"]

MOST_FOR_A_PROCESS = 200  # trials; fitting takes the cube of their number
SEEDS = 2**32


class OptunaTpe(Asha):
    """ASHA's rungs; candidates and parameters by the tree-structured Parzen estimator."""

    name = "optuna_tpe"
    summary = "Optuna's TPE draws, and the best third of each rung goes on"
    rungs = (3.0, 9.0, 27.0)  # one pass would tell Optuna little: high rates look bad after it

    def draw(self, problem: Problem, ledger: Ledger, open_to_all: list[Candidate]) -> tuple[Candidate, Params]:
        """A candidate, by TPE over all trials; of it the next start of its space, else what the sampler asks for.

        A function of problem and ledger: studies are built anew, samplers are seeded by the number of the trial.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = (problem.seed + len(ledger.trials)) % SEEDS
        tried = [record for record in ledger.trials.values() if not record.is_refit]
        told = [record for record in tried if record.state != "failed"]
        candidate = self._candidate(open_to_all, told, seed)
        turn = sum(_is_of(record, candidate) for record in tried)
        if turn < len(candidate.space.starts):
            return candidate, candidate.space.starts[turn]
        own = [record for record in told if _is_of(record, candidate)]
        known = {name: _distribution(dimension) for name, dimension in candidate.space.dimensions.items()}
        asked = self.study(own, known, seed).ask(known).params
        return candidate, {name: asked[name] for name in known}

    def sampler(self, seed: int) -> BaseSampler:
        """What draws the parameters."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed)

    def study(self, records: Sequence[TrialRecord], known: dict[str, BaseDistribution], seed: int) -> Study:
        """The trials of one candidate as Optuna is told them, in a study that can be asked for the next."""
        return _study([self.told(record, dict(record.trial.params), known) for record in records], self.sampler(seed))

    def told(self, record: TrialRecord, params: dict[str, Any], known: dict[str, BaseDistribution]) -> FrozenTrial:
        """A trial with its score at the first rung; without one it is running."""
        import optuna

        score = self._score(record)
        state = optuna.trial.TrialState.RUNNING if score is None else optuna.trial.TrialState.COMPLETE
        return optuna.trial.create_trial(state=state, value=score, params=params, distributions=known)

    def _score(self, record: TrialRecord) -> float | None:
        """The score when it first stood at the first rung; of one cut short before, the last."""
        scored = [report for report in record.reports if report.score is not None]
        reached = [report.score for report in scored if report.step >= self.rungs[0]]
        return next(iter(reached), scored[-1].score if scored else None)

    def _candidate(self, open_to_all: list[Candidate], told: list[TrialRecord], seed: int) -> Candidate:
        from optuna.distributions import CategoricalDistribution
        from optuna.samplers import TPESampler

        if len(open_to_all) == 1:
            return open_to_all[0]
        by_key = {_key(one): one for one in open_to_all}
        known: dict[str, BaseDistribution] = {"candidate": CategoricalDistribution(tuple(by_key))}
        trials = [(_key_of(record), record) for record in told]
        known_trials = [self.told(record, {"candidate": key}, known) for key, record in trials if key in by_key]
        chosen = _study(known_trials, TPESampler(seed=seed)).ask(known).params["candidate"]
        return by_key[chosen]


class OptunaGp(OptunaTpe):
    """ASHA's rungs; parameters by a Gaussian process."""

    name = "optuna_gp"
    summary = "Optuna's Gaussian process draws, and the best third of each rung goes on"

    def sampler(self, seed: int) -> BaseSampler:
        """Log expected improvement over a Matern kernel."""
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed)

    def study(self, records: Sequence[TrialRecord], known: dict[str, BaseDistribution], seed: int) -> Study:
        """Of the last trials only: the process takes long with many."""
        return super().study(records[-MOST_FOR_A_PROCESS:], known, seed)


class OptunaCmaEs(OptunaTpe):
    """ASHA's rungs; parameters by CMA-ES."""

    name = "optuna_cmaes"
    summary = "Optuna's CMA-ES draws, and the best third of each rung goes on"

    def sampler(self, seed: int) -> BaseSampler:
        """The plain one; what it cannot vary, choices, is drawn at random."""
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(seed=seed, warn_independent_sampling=False)

    def study(self, records: Sequence[TrialRecord], known: dict[str, BaseDistribution], seed: int) -> Study:
        """The study that evolved: generation by generation, as the sampler keeps its state in the trials it asked for.

        What it asks for meanwhile is not used: the parameters are those of the journal.
        """
        study = _study([], self.sampler(0))
        for record in records:
            study.sampler = self.sampler(record.trial.id)
            study.enqueue_trial(dict(record.trial.params))
            trial = study.ask(known)
            if (score := self._score(record)) is not None:
                study.tell(trial, score)
        study.sampler = self.sampler(seed)
        return study


def _study(trials: Sequence[FrozenTrial], sampler: BaseSampler) -> Study:
    """In memory; scores are the greater the better."""
    import optuna

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def _distribution(dimension: Dimension) -> BaseDistribution:
    """The dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.options)
    of_kind = FloatDistribution if dimension.kind == "float" else IntDistribution
    return of_kind(dimension.low, dimension.high, log=dimension.log)


def _is_of(record: TrialRecord, candidate: Candidate) -> bool:
    return _key_of(record) == _key(candidate)


def _key(candidate: Candidate) -> str:
    return f"{candidate.backbone} {candidate.freeze} {candidate.image_size}"


def _key_of(record: TrialRecord) -> str:
    trial = record.trial
    return f"{trial.backbone} {trial.freeze} {trial.image_size}"


@hookimpl
def autoft_searchers() -> list[Searcher]:
    """One for each of Optuna's samplers."""
    return [OptunaTpe(), OptunaGp(), OptunaCmaEs()]
