"""study.json: the study resolved, and how the machine that it began on was shared out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from autoft.parts.plugins import PluginRef
from autoft.study.study import Study
from autoft.values.backbone import Backbone, Interpolation
from autoft.values.counts import counted
from autoft.values.dataset import DatasetInfo
from autoft.values.handoff import View
from autoft.values.space import Device, FeaturesOf, Params
from autoft.values.target import MetricFacts
from autoft.values.trial import Candidate

SCHEMA = "autoft.study/3"

RunnerName = Literal["inline", "ray"]

MOST_IMAGES = 4000
"""To train on, up to which heads see every stage: a head in closed form takes some ten times as long for them."""


def features_of(images: int) -> FeaturesOf:
    """What the heads of a new run see that has so many images to train on."""
    return "every stage" if images <= MOST_IMAGES else "last stage"


@dataclass(frozen=True)
class Machine:
    """How a machine is shared out: `runner` runs `workers` slices at a time, each with `threads` threads on `device`.

    `cpus` and `gpus` are a worker's share of the cores and GPUs of its machine. Where `measured` is not 0 its workers
    share so many GPUs, and that many slices run at a time, one a GPU, until more have been measured to be worth it.
    """

    runner: RunnerName
    workers: int
    threads: int
    device: Device
    cpus: float = 1.0
    gpus: float = 0.0
    measured: int = 0

    def __str__(self) -> str:
        """As people read it."""
        bound = "up to " if self.measured else ""
        workers = f"{counted(self.workers, 'worker')} of {counted(self.threads, 'thread')}"
        return f"{bound}{workers} on {self.device} by {self.runner}"

    @property
    def sure(self) -> int:
        """Slices that run at a time whatever is measured."""
        return self.measured or self.workers

    @property
    def busy(self) -> int:
        """Threads of all workers together."""
        return self.workers * self.threads


@dataclass(frozen=True)
class ViewsCompared:
    """Why it is this `view`: the figure of each, the usual one's first.

    Out-of-fold, of heads in closed form on features of `backbone`, on so many `images` for training and validation.
    """

    view: View
    figures: Mapping[View, float]
    backbone: str
    images: int


@dataclass(frozen=True)
class Taken:
    """A trial of another run that this one began with: what it was, and its `score` as people read it there.

    `params` are as they are tried here.
    """

    trial: int
    backbone: str
    freeze: str
    image_size: int
    params: Params
    score: float


@dataclass(frozen=True)
class WarmStart:
    """What a search began with of another `run`, by its absolute path: the trials `taken`, best first.

    `best` is the figure of all that it had, in the `metric` that it went by. `left_out`: what of it is no candidate
    here, and why. `test_images_seen`: so many of the test images here were for training or validation there.
    """

    run: str
    metric: str
    best: float
    taken: tuple[Taken, ...]
    left_out: Mapping[str, str]
    test_images_seen: int = 0


@dataclass(frozen=True)
class StudyRecord:
    """study.json: the study resolved, everything that resuming and the workers need besides journal and checkpoints.

    `view` is how images become squares, `compared` the evidence for it, if there is any. `warm_start` is what the
    `candidates` have of another run. `versions` of autoft, torch and the like. `machine` is how the one that the run
    began on was shared out, which a resumed run decides anew. `validation` is how many images of the validation split
    are scored, None for all: where scoring them all would take too much of the time. `weighs_classes`: training weighs
    them alike, as the metric does; in a run of a version that had no such training it never does. `features_of`: what
    the heads see, in a run of an older version the last stage alone.
    """

    study: Study
    data: DatasetInfo
    view: View
    backbones: tuple[Backbone, ...]
    candidates: tuple[Candidate, ...]
    plugins: tuple[PluginRef, ...]
    versions: Mapping[str, str]
    machine: Machine
    metric: MetricFacts
    validation: int | None = None
    compared: ViewsCompared | None = None
    weighs_classes: bool = False
    warm_start: WarmStart | None = None
    features_of: FeaturesOf = "last stage"
    schema: str = SCHEMA

    @property
    def target(self) -> float | None:
        """The score at which the search ends, of which greater is better; None without one."""
        return None if self.study.target is None else self.metric.score(self.study.target)

    def on(self, device: Device) -> StudyRecord:
        """The record for a process that computes on that device."""
        return replace(self, machine=replace(self.machine, device=device))

    @property
    def squares(self) -> frozenset[tuple[int, Interpolation, View]]:
        """What this run makes of its images: size in pixels, interpolation and view, as `Dataset.hold` takes them."""
        interpolation = {backbone.name: backbone.input.interpolation for backbone in self.backbones}
        return frozenset((one.image_size, interpolation[one.backbone], self.view) for one in self.candidates)
