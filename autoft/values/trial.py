"""Candidates, trials, slices and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoft.values.dataset import TrainOn
from autoft.values.plan import Fit
from autoft.values.space import Params, Scalar, Space

Network = tuple[str, int]
"""A backbone at an input size: what an exported file is of, whatever its weights are."""


@dataclass(frozen=True)
class Candidate:
    """One backbone under one freeze strategy at one input size, with the space of its hyperparameters.

    `fit` says how its head is fitted: "closed_form" is one cheap slice, "gradient" trains in passes.
    `cost` is the relative price of one pass (parameters times pixels), above zero, for use before anything is measured.
    So is `prior`, the backbone's own, unless another run has found how good it is (`study.warm_start`).
    """

    backbone: str
    freeze: str
    image_size: int
    space: Space
    fit: Fit = "gradient"
    cost: float = 1.0
    prior: float | None = None

    @property
    def network(self) -> Network:
        """What an exported file of it is of."""
        return self.backbone, self.image_size

    def trial(self, number: int, params: Params, seed: int, parents: tuple[Parent, ...] = ()) -> Trial:
        """The trial `number` of this candidate."""
        return Trial(number, self.backbone, self.freeze, self.image_size, dict(params), seed, parents)


@dataclass(frozen=True)
class Parent:
    """A checkpoint that another trial starts from: that of `trial` after `step` passes."""

    trial: int
    step: float


@dataclass(frozen=True)
class Trial:
    """What competes: everything that decides how weights come about. `id` counts from 0 in a run.

    With `parents` it starts from the first parent's weights; they are of the same backbone.

    One with a `twin` is a refit: the same once more, over as many passes as that checkpoint has, on the validation
    images too (`train_on`). No validation score says how good it is; that of its twin stands for it.
    """

    id: int
    backbone: str
    freeze: str
    image_size: int
    params: Params
    seed: int
    parents: tuple[Parent, ...] = ()
    train_on: TrainOn = "train"
    twin: Parent | None = None

    @property
    def network(self) -> Network:
        """What an exported file of it is of."""
        return self.backbone, self.image_size

    @property
    def scored_as(self) -> int:
        """The trial whose validation score and calibration it has: its own, of a refit its twin's."""
        return self.twin.trial if self.twin else self.id


@dataclass(frozen=True)
class Clock:
    """What a searcher knows of time, in seconds of run time: `elapsed` so far, `deadline` when searching ends."""

    elapsed: float
    deadline: float

    @property
    def remaining(self) -> float:
        """Seconds left to search, never negative."""
        return max(0.0, self.deadline - self.elapsed)


@dataclass(frozen=True)
class Slice:
    """A stretch of one trial, from `start` to `until` in passes over the training images.

    It ends early at `deadline`, in seconds of run time.
    """

    trial: Trial
    start: float
    until: float
    deadline: float


@dataclass(frozen=True)
class Wait:
    """A searcher's answer: nothing to do before another report comes in."""


@dataclass(frozen=True)
class Done:
    """A searcher's answer: nothing more to do in this run."""


WAIT, DONE = Wait(), Done()


@dataclass(frozen=True)
class Queued:
    """Journal line: a slice was handed out to wait for a worker, and the clock that `ask` saw.

    It comes once more, with the deadline that the slice has then, when one that is not reported is handed out again, or
    the worker that had begun it left it as it was.
    """

    trial: int
    slice: Slice
    clock: Clock
    event: Literal["queued"] = "queued"


@dataclass(frozen=True)
class Started:
    """Journal line: a worker has the trial's slice, `elapsed` is the run time in seconds.

    One that a kill cut short starts again when the run goes on.
    """

    trial: int
    elapsed: float
    event: Literal["started"] = "started"


@dataclass(frozen=True)
class Lost:
    """Journal line: the process that had the trial's slice is gone without a report; the slice is handed out again.

    `why` "memory": it ran out, and `error` is what is known of that. "unknown": the whole run ended without a word, as
    when it is killed, which may be for memory too. `elapsed` is the run time in seconds when that was found.
    """

    trial: int
    why: Literal["memory", "unknown"]
    error: str
    elapsed: float
    event: Literal["lost"] = "lost"


@dataclass(frozen=True)
class Allowance:
    """What a search knows of how many images a slice can have go through at a time.

    `held`: what trials of its backbone and input size made do with for lack of memory, by the name of the device.
    `lost`: the processes that the slice has cost.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[Lost, ...] = ()

    @property
    def ran_out(self) -> bool:
        """Whether the slice has cost a process for certain because memory ran out."""
        return any(one.why == "memory" for one in self.lost)

    def images(self, usual: int, wanted: int, device: str) -> int:
        """How many at a time on that device, of the `usual` number: half of the `wanted` ones for each process lost."""
        most = min(usual, self.held.get(device, usual))
        return max(1, min(most, wanted) >> len(self.lost)) if self.lost else most


NOTHING_KNOWN = Allowance()


@dataclass(frozen=True)
class Costs:
    """What a slice was measured to cost, in seconds, each kind by itself.

    `step`: one optimiser step at its steady pace, None when there was none beyond the first ones of the slice (two, on
    a GPU four), which pay for plans, caches and libraries. `steps_a_pass` turns it into passes. `scoring`: all
    validation images once through the network. `saving`: one checkpoint. `image`: one forward pass of one image,
    without gradients. `solving`: a head in closed form, once its features are there; training may begin with one.
    """

    step: float | None = None
    steps_a_pass: int = 0
    scoring: float = 0.0
    saving: float = 0.0
    image: float = 0.0
    solving: float = 0.0

    @property
    def a_pass(self) -> float | None:
        """Seconds of one pass over the training images."""
        return None if self.step is None else self.step * self.steps_a_pass


@dataclass(frozen=True)
class Report:
    """Journal line: how a slice ended.

    `event`: "paused" can go on, the others are terminal; "left out" is a refit that is not through and has not failed,
    as when there was no time for it, which older versions called failed. `step` is the passes reached, `score` the
    validation score there (greater is better; None when failed, when the slice was given back without a step, and of a
    refit, which has trained on the validation images), `seconds` what the slice took, `costs` where they went, `facts`
    resolved values such as the ridge strength or memory, `share` the part of the images to train on that a closed-form
    head was fitted on, for lack of time, `error` the cause of a failure, or why it is paused or left out, `elapsed` the
    run time in seconds when the report came in (stamped by the driver). `horizon` is the passes after which the trial's
    plan ends, 0 where no plan has said. `loss` is that of the validation images, where steps were taken: of a trial's
    equal scores it tells which is better. `refused`: a refit that is through and, held against its twin, is not to be
    used; so would another be. `standard_error` is that of the score, and `bound` the lower end of its 95 % interval,
    where it comes from few images or is past the target of the search. `folds` is the score of heads in closed form on
    the images for training and validation, out of fold, where these are few.
    """

    trial: int
    event: Literal["paused", "finished", "failed", "left out"]
    step: float
    score: float | None
    seconds: float
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    error: str | None = None
    elapsed: float = 0.0
    costs: Costs = Costs()
    share: float = 1.0
    horizon: float = 0.0
    loss: float | None = None
    refused: bool = False
    standard_error: float | None = None
    folds: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Stopped:
    """Journal line: the run ended before its time, by a signal or an error, after `elapsed` seconds of run time."""

    elapsed: float
    event: Literal["stopped"] = "stopped"


Event = Queued | Started | Lost | Report | Stopped
