"""The abstract parts: what a plugin can offer, one small class for each kind.

A part has a `name`, unique among its kind; a part with a `summary` shows it in `autoft plugins`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.values.backbone import Backbone, Stage
from autoft.values.dataset import Listing
from autoft.values.handoff import Artifact, Handoff, Output
from autoft.values.ledger import Ledger
from autoft.values.plan import Plan
from autoft.values.space import Params, Space
from autoft.values.trial import Candidate, Clock, Done, Fit, Slice, Wait

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from autoft.parts.network import Network


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

    `fit` is how the head is fitted: "closed_form" makes a trial one cheap slice.
    """

    fit: Fit = "gradient"

    @abstractmethod
    def space(self) -> Space:
        """The hyperparameters, and the starts that are known to do well."""

    @abstractmethod
    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """What to train of a network with these `stages`, ordered from input to head.

        There may be a single stage. The head that classifies is in none of them; the plan's `head` is about it.
        """


@dataclass(frozen=True)
class Problem:
    """What a searcher searches: the candidates, the seed, and how much at most.

    `workers` slices run at a time; `trials` is the most trials to start, None for no limit.
    """

    candidates: tuple[Candidate, ...]
    seed: int
    workers: int
    trials: int | None = None


class Searcher(Part):
    """What to train next, and for how long."""

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


class Exporter(Part):
    """A trained classifier to a file that can be deployed.

    The exporter "onnx" writes the core that the bundle is made around. Further ones, asked for with `--exporter`, write
    what they like into a folder of their own in the bundle; what is ONNX of the same interface passes the same gate.
    """

    @abstractmethod
    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        """Write a file into `folder`, the core `model.core.onnx`, and yield what it is; `yield` makes it a generator.

        `classifier` is in eval mode on the CPU and maps `(batch, 3, size, size)` float32 to logits `(batch, classes)`;
        so does the file, from `images` to `logits`, in plain ONNX opset 18, IR 8, with `autoft.schema` 1 and the
        handoff's `autoft.labels` and `autoft.preprocess` in its metadata, as JSON. When the file is refused because it
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
        """Like `export`, from what `prepare` left in the folder `prepared` for this backbone, size and class count.

        By default nothing, as when `prepared` is of no use or not there; what it yields passes the same gate, and
        `export` comes after it.
        """
        return iter(())


class Reader(Part):
    """A data set format (internal until there is a second one)."""

    @abstractmethod
    def read(self, root: Path) -> Listing:
        """The classes and files under `root`; no image is decoded. Raises `DataError`."""


class Task(Part):
    """What is predicted: head size, loss, metrics, outputs of a deployed model (internal until there is a second)."""

    metrics: Sequence[str]
    outputs: tuple[Output, ...]

    @abstractmethod
    def head_size(self, classes: int) -> int:
        """Number of outputs."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Scalar loss of logits `(batch, outputs)` and class indices `(batch,)`."""

    @abstractmethod
    def score(self, metric: str, logits: np.ndarray, labels: np.ndarray) -> float:
        """The metric, greater is better; logits `(n, outputs)`, class indices `(n,)`."""
