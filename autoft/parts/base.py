"""The abstract parts: what a plugin can offer, one small class for each kind.

A part has a `name`, unique among its kind; a part with a `summary` shows it in `autoft plugins`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from autoft.errors import unknown_name
from autoft.values.backbone import Backbone, Stage
from autoft.values.bundle import Calibration
from autoft.values.dataset import Imbalance, Listing
from autoft.values.handoff import Artifact, Handoff
from autoft.values.ledger import Ledger
from autoft.values.plan import Balance, Fit, Plan, Recipe
from autoft.values.space import Circumstances, Params, Space
from autoft.values.target import Form, Targets
from autoft.values.trial import Candidate, Clock, Done, Slice, Wait

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from autoft.parts.linear_head import LinearHead
    from autoft.parts.metric import Metric
    from autoft.parts.network import Network

UNCALIBRATED: Final = Calibration(1.0, 0, None, None, "Nothing was calibrated.")


class Named(Protocol):
    """All that a plugin can offer: it has a name, unique among its kind."""

    @property
    def name(self) -> str:
        """One word."""


class Part(ABC):
    """What all kinds share: a `name` unique among its kind, and a one-line `summary`."""

    name: str
    summary: str = ""

    def __str__(self) -> str:
        """How messages call the part; one that comes from a `Host` says whose it is."""
        return repr(self.name)


class Zoo(Part):
    """Which backbones there are, and how to build one. A backbone's address is `zoo/model`."""

    @abstractmethod
    def backbones(self) -> Iterable[Backbone]:
        """Every backbone on offer. Cheap: no weights are touched, no network is waited for."""

    @abstractmethod
    def build(self, backbone: Backbone) -> Network:
        """The backbone with its pretrained weights, on the CPU.

        Raises `BackboneUnavailable`, saying what to do, when the weights cannot be had.
        """


class FreezeStrategy(Part):
    """What trains, when, at which learning rate; with its own flat space of hyperparameters.

    `fit` is how the head is fitted: "closed_form" makes a trial one cheap slice. `by_default` says whether a search
    tries it unasked; one that is not by default is named, `--freeze NAME`.
    """

    fit: Fit = "gradient"
    by_default: bool = True

    @abstractmethod
    def space(self) -> Space:
        """The hyperparameters, and the starts that are known to do well."""

    def space_for(self, circumstances: Circumstances) -> Space:
        """The space of a run, once its device and images are known; by default `space()`.

        A run keeps it, so that one that goes on on another device has the trials that it had.
        """
        return self.space()

    @abstractmethod
    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """What to train of a network with these `stages`, ordered from input to head.

        There may be a single stage. The head that classifies is in none of them; the plan's `head` is about it. With an
        `adapter` for these parameters its own stand among the others, in the stages of what they were put into.
        """

    def adapter(self, params: Params) -> Adapter | None:
        """What puts parameters of its own into a network for a trial with these parameters; by default None."""
        return None


class Adapter(ABC):
    """Puts parameters of its own into a network that is to train, and takes them out again, as low-rank adapters do.

    What is averaged and goes on is the adapted network; what is scored, kept, exported and handed to a child is merged.
    """

    @abstractmethod
    def adapt(self, module: nn.Module) -> nn.Module:
        """The module with parameters added, changed in place or another one; best such that they change nothing yet.

        A function of the module and of torch's generator, which is seeded before. Where nothing can be added, the
        module as it is.
        """

    @abstractmethod
    def merge(self, adapted: nn.Module) -> nn.Module:
        """The plain module again, with the names and shapes of tensors that it had, and the features of `adapted`.

        In place or another one; it is called with a copy of what `adapt` gave, before it trains and as it has trained.
        Of what it gives only the tensors are kept.
        """


@dataclass(frozen=True)
class Problem:
    """What a searcher searches: the candidates, the seed, and how much at most.

    In a run `candidates` become fewer towards its end: those whose export would still fit, should they win.
    `workers` slices run at a time; `trials` is the most trials to start, None for no limit.
    """

    candidates: tuple[Candidate, ...]
    seed: int
    workers: int
    trials: int | None = None


class Searcher(Part):
    """What to train next, and for how long.

    `tries_starts`: new trials of a candidate begin with `Candidate.space.starts`; a search with `--from` needs that.
    """

    tries_starts: bool = True

    @abstractmethod
    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The next slice, `WAIT` for a report of one in flight, or `DONE`.

        A function of its arguments alone: everything that happened stands in `ledger`, so a search goes on after a
        crash without the searcher noticing. `WAIT` with nothing in flight is a bug.

        A new trial comes from `candidate.trial(len(ledger.trials), params, seed)` and starts at 0; a paused one goes
        on from its record's `step`, if it is in `ledger.with_checkpoint()`. `until` counts passes over the training
        images; a trial reports "finished" at its recipe's horizon. One whose `fit` is "closed_form" is a single slice
        to 1.0, "paused" without a score if it was given back for lack of time. Once `clock.remaining` is 0, nothing
        more is asked for; a call that takes more than a share of the time left, or during which the run is
        stopped, is interrupted by a `BaseException` and not repeated.
        """

    def remark(self, problem: Problem) -> str:
        """What a user should know of this search, said before it begins; by default nothing."""
        return ""


class Exporter(Part):
    """A trained network to a file that can be deployed.

    The exporter "onnx" writes the core that the bundle is made around. Further ones, asked for with `--exporter`, write
    what they like into a folder of their own in the bundle; what is ONNX of the same interface passes the same gate.
    """

    @abstractmethod
    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        """Write a file into `folder`, the core `model.core.onnx`, and yield what it is; `yield` makes it a generator.

        `classifier` is in eval mode on the CPU and maps `(batch, 3, size, size)` float32 to its outputs `(batch, n)`,
        `handoff.width` of them; so does the file, from `images` to `logits`, in plain ONNX opset 18, IR 8, with
        `autoft.schema` 1 and the handoff's `autoft.labels`, `autoft.targets` and `autoft.preprocess` in its metadata,
        as JSON. When the file is refused because it
        differs from torch, the next one is asked for, written in another way to the same path. Raises `RunFailed` when
        no way of exporting works.
        """

    def prepare(self, classifier: nn.Module, image_size: int, folder: Path) -> None:
        """Leave in `folder`, which is empty, what makes `export_prepared` quick; by default nothing.

        Called during the search, in a process of its own, with a classifier of the backbone whose weights are not yet
        those to export. Whatever it raises means that nothing is prepared.
        """

    def export_prepared(
        self, classifier: nn.Module, handoff: Handoff, prepared: Path, folder: Path
    ) -> Iterator[Artifact]:
        """Like `export`, from what `prepare` left in the folder `prepared` for this backbone, size and
        number of outputs.

        By default nothing, as when `prepared` is of no use or not there; what it yields passes the same gate, and
        `export` comes after it.
        """
        return iter(())


class Reader(Part):
    """A data set format: class folders, or a manifest. The two are autoft's own; no plugin can add one."""

    @abstractmethod
    def read(self, root: Path) -> Listing:
        """The labels and files of `root`, a folder or a file; no image is decoded. Raises `DataError`."""


class Task(Part):
    """What is predicted: how labels become targets, the loss, the closed form, the metrics, and what a model answers.

    A subclass of a built-in one (`autoft.SingleLabel`, `autoft.MultiLabel`, `autoft.Regression`) that changes a method
    or two is a task of its own. A label is the text of an image's target: the name of its folder, or its cell in a
    manifest; several columns are one line of CSV. All arrays have a row an image.
    """

    form: Form
    """What a deployed model answers; how that is compared, reported and shown goes by the form."""

    metrics: Sequence[Metric]
    """The first is the one to search by, unless `--metric` names another."""

    targets: Targets
    """What is predicted of the data set at hand; `on` sets it."""

    balances: Sequence[Balance] = ()
    """What training by gradient may do for rare classes, first what a plan gets unasked; by default nothing."""

    goal: str = ""
    """The metric that is searched by, where it is known; `towards` sets it."""

    weighs_classes: bool = False
    """Whether training is to weigh classes alike, as the goal does; `towards` sets it."""

    def on(self, targets: Targets) -> Self:
        """The task of one data set: a copy that knows its `targets`."""
        bound = copy.copy(self)
        bound.targets = targets
        return bound

    def towards(self, metric: str) -> Self:
        """The task of a search by that metric: a copy, whose metric "auto" it is. Raises as `metric`."""
        aimed, found = copy.copy(self), self.metric(metric)
        aimed.goal, aimed.weighs_classes = found.name, found.facts.weighs_classes
        return aimed

    def with_metrics(self, further: Iterable[Metric]) -> Self:
        """The task with further metrics after its own: a copy."""
        whole = copy.copy(self)
        whole.metrics = (*self.metrics, *further)
        return whole

    # ---------------------------------------------------------------- labels

    def claims(self, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """Whether `labels` of `columns` are plainly of this task, asked when the user names none; by default no."""
        return False

    @abstractmethod
    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """What the answers are about, from the distinct labels in natural order and the names of their columns.

        Raises `DataError`, saying why, when nothing can be learned of them.
        """

    @abstractmethod
    def problem(self, label: str) -> str | None:
        """Why an image with this label cannot be used ("'abc' is no number"); None when it can."""

    @abstractmethod
    def encode(self, labels: Sequence[str]) -> NDArray[Any]:
        """The targets of labels: of the form "one_of" class indices int64 `(n,)`, of others float32 `(n, names)`."""

    @abstractmethod
    def strata(self, labels: Sequence[str]) -> Sequence[Hashable]:
        """A group for each label; splits, and parts of them, hold the groups as the whole does. Needs no `targets`."""

    def too_few(self, sizes: Mapping[Hashable, int], needed: int) -> str | None:
        """What to say when strata with so many training images each cannot be split; None when they can.

        `needed` images a stratum leave one for each split to be carved. By default a small stratum trains.
        """
        return None

    def with_moments(self, targets: Targets, training: NDArray[Any]) -> Targets:
        """The targets of a data set once its training images `(n, ...)` are known; by default as they are."""
        return targets

    def imbalance(self, labels: Sequence[str]) -> Imbalance | None:
        """How unlike in size the classes of training images with these labels are.

        By default None, as where they are near enough or there are no classes.
        """
        return None

    def remedies(self, labels: Sequence[str]) -> Sequence[Balance]:
        """Those of its `balances` that training images with these labels have need of.

        None where classes are near enough in size, or the metric that is searched by weighs images alike.
        """
        return self.balances if self.weighs_classes and self.imbalance(labels) else ()

    def remark(self) -> str:
        """What a user should know of how the labels were taken, said before anything trains; by default nothing."""
        return ""

    # ---------------------------------------------------------------- training

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for an image; by default one a name."""
        return len(self.targets.names)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Scalar loss of outputs `(batch, outputs)` for encoded targets `(batch, ...)`, both on one device."""

    @property
    def has_closed_form(self) -> bool:
        """Whether `closed_form` gives a head: unless it is this class's own, `closed_form = Task.closed_form`."""
        return type(self).closed_form is not Task.closed_form

    def closed_form(self, features: Tensor, targets: Tensor, check: Callable[[], None]) -> LinearHead | None:
        """The best head of features `(n, dim)` float32 for targets `(n, ...)`, on the CPU, without gradients.

        None by default: there is no closed form, nothing is probed, and heads start from zeros. A subclass whose loss
        is another one than its parent's closed form is of says so with `closed_form = Task.closed_form`. `check` is to
        be called every second or so and may raise to give up.
        """
        return None

    # ---------------------------------------------------------------- scores and answers; numpy alone

    @abstractmethod
    def judged(self, outputs: NDArray[Any], calibration: Calibration = UNCALIBRATED) -> NDArray[Any]:
        """What metrics judge of outputs `(n, outputs)`: logits of the names, or numbers in the data's own units."""

    def calibrate(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Calibration:
        """What the ending of a deployed model takes from validation images; by default nothing."""
        return UNCALIBRATED

    @abstractmethod
    def answers(self, outputs: NDArray[Any], calibration: Calibration) -> NDArray[np.float32]:
        """What a deployed model answers `(n, names)`: probabilities, or numbers in the data's own units."""

    @abstractmethod
    def tail(self, calibration: Calibration) -> str:
        """`answers` as ONNX text: nodes that make `answers` of `outputs`, both float[batch, ...].

        As `onnx.parser` reads the body of a graph, in opset 18, constants included; it is held against `answers`.
        """

    def metric(self, name: str) -> Metric:
        """The metric of that name, "auto" the one that is searched by, else the first. Raises `StudyError`."""
        known = {metric.name: metric for metric in self.metrics}
        if name == "auto":
            return known.get(self.goal, self.metrics[0])
        if name not in known:
            raise unknown_name("metric", name, known)
        return known[name]

    def score(self, metric: str, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        """The metric of outputs `(n, outputs)` for targets `(n, ...)`; greater is better."""
        return self.metric(metric).score(self.judged(outputs), targets)
