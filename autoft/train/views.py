"""How well a network sees the images in each view: heads in closed form, judged on images that they have not seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoft.data.dataset import Dataset
from autoft.errors import RunFailed
from autoft.media.image.batches import Images
from autoft.parts.base import Task
from autoft.parts.contract import NO_CLOSED_FORM
from autoft.parts.host import Host
from autoft.parts.metric import Metric
from autoft.parts.network import Network
from autoft.study.views import FEWEST, Comparison, Look
from autoft.system.disk_cache import cache_root
from autoft.system.parallel import Check
from autoft.tasks.statistics import bootstrap, value_of
from autoft.train.features import FeatureCache
from autoft.train.heads import seen_by_heads
from autoft.train.job import TooLate
from autoft.values.backbone import Backbone
from autoft.values.counts import counted
from autoft.values.handoff import View
from autoft.values.space import FeaturesOf

FOLDS: Final = 5

CLEAR: Final = 1.0
"""Standard errors that a gain on the usual view has to be above. To be wrong costs little: with 2, half of what is
gained where a view is better by .03 is lost; with 0, up to .02 where two are about the same (`benchmarks/views.py`)."""

CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Judged:
    """The score of each view, the first one's first; and what the others gain on it, with the standard error."""

    scores: Mapping[View, float]
    gains: Mapping[View, tuple[float, float]]
    images: int

    @property
    def best(self) -> View:
        """The view of the best score among those whose gain is clear; the first one if none is."""
        clear = [view for view, (gain, error) in self.gains.items() if gain > CLEAR * error]
        return max(clear, key=self.scores.__getitem__, default=next(iter(self.scores)))


def built_for(looks: Sequence[Look], host: Host, seen: FeaturesOf) -> Mapping[Backbone, Network]:
    """The networks of the looks, each as heads see it, eval mode, on the CPU. Raises whatever a plugin raises."""
    networks = {backbone: seen_by_heads(host.build(backbone), seen) for backbone in {look.backbone for look in looks}}
    for network in networks.values():
        network.module.eval().to(memory_format=network.layout(CPU))
    return networks


def compare_views(
    dataset: Dataset, comparison: Comparison, networks: Mapping[Backbone, Network], metric: str, check: Check
) -> Judged:
    """What each view comes to, on a fair sample of the images for training and validation.

    On a CPU. How many images the first look decides, by what can be had in its part of the time. Features are kept, so
    that a probe of the same backbone need not compute them again. Raises `TooLate` for too few, what `check` raises,
    and whatever a plugin raises.
    """
    order = dataset.stratified("train+val", 0)[: comparison.images]
    rows, features = dataset.rows("train+val")[order], dict[View, Tensor]()
    enough, fewest = _after(comparison.seconds / len(comparison.looks)), min(FEWEST, len(order))
    with torch.random.fork_rng(devices=[]):
        for look in comparison.looks:
            cache = FeatureCache(cache_root() / "features", dataset.info.fingerprint, look.view)
            network = networks[look.backbone]
            images = Images(dataset.pixels(*look.square), look.backbone.input, CPU, network.layout(CPU))
            found = cache.leading(network, images, rows[: len(order)], enough, check)
            if len(found) < fewest:
                raise TooLate(f"there was time for {counted(len(found), 'image')}")
            features[look.view], order, enough = found, order[: len(found)], _never
        targets = dataset.targets("train+val")[order]
        outputs = {view: out_of_fold(dataset.task, seen, targets, check) for view, seen in features.items()}
    return judge(outputs, targets, dataset.task, dataset.task.metric(metric))


def out_of_fold(task: Task, features: Tensor, targets: NDArray[Any], check: Check) -> NDArray[np.float32]:
    """Outputs `(n, outputs)` for features `(n, dim)`, of heads that were fitted without the fold that they judge.

    The images come in a stratified order, of which every stretch is like the whole: so is a fold. Leaving out one at a
    time would be exact for some tasks; folds are possible for all of them.
    """
    outputs, every = np.empty((len(targets), task.outputs), np.float32), np.arange(len(targets))
    for fold in np.array_split(every, FOLDS):
        rest = np.delete(every, fold)
        head = task.closed_form(features[rest], torch.from_numpy(targets[rest]), check)
        if head is None:
            raise RunFailed(f"task {task.name!r} gave no head in closed form; {NO_CLOSED_FORM}")
        outputs[fold] = (features[fold] @ head.weight.T + head.bias).numpy()
    return outputs


def judge(outputs: Mapping[View, NDArray[np.float32]], targets: NDArray[Any], task: Task, metric: Metric) -> Judged:
    """The outputs `(n, outputs)` of each view for images with these targets `(n, ...)`.

    One bootstrap over the images for all views, as these are wrong about the same ones.
    """
    n, first = len(targets), next(iter(outputs))
    statistics = {view: metric.statistic(task.judged(given), targets) for view, given in outputs.items()}
    scores = {view: value_of(statistic, n) for view, statistic in statistics.items()}
    drawn = bootstrap({str(view): statistic for view, statistic in statistics.items()}, n)
    errors = {view: float(np.nanstd(drawn[view] - drawn[first])) for view in outputs}
    gains = {view: (scores[view] - scores[first], errors[view]) for view in list(outputs)[1:]}
    return Judged(scores, gains, n)


def _after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has gone by since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _never() -> bool:
    return False


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
