"""Checks of a freeze strategy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from autoft.parts.base import FreezeStrategy
from autoft.parts.guard import plan_problem
from autoft.parts.network import Network
from autoft.testing.base import Conformance
from autoft.testing.training import IMAGES, STEPS, small_networks, train
from autoft.values.backbone import ParameterInfo, Stage
from autoft.values.codec import decode, encode
from autoft.values.plan import ClosedFormHead, Plan
from autoft.values.space import Circumstances, Device, Params, Space

if TYPE_CHECKING:
    from torch import Tensor

    from autoft.train.adaptation import Adaptation

STEPS_A_PASS = 2

RUNS = (
    *(Circumstances(device, images) for device in get_args(Device) for images in (10, 100_000)),
    Circumstances(balances=("logits", "weights", "sampling")),
)


def layouts() -> dict[str, tuple[Stage, ...]]:
    """Hand-made networks, as their stages: a convolutional one, a transformer, one stage only, no norms."""
    return {
        "convolutional": (_stage("stem"), *(_stage(f"blocks.{n}", 3) for n in range(4)), _stage("conv_head")),
        "transformer": (_stage("patch_embed"), *(_stage(f"blocks.{n}", 4) for n in range(12)), _stage("norm")),
        "one stage": (_stage("everything", 5),),
        "no norms": tuple(Stage(f"s{n}", (ParameterInfo(f"s{n}.w", 100, "weight"),)) for n in range(3)),
    }


def _stage(name: str, layers: int = 1) -> Stage:
    infos: list[ParameterInfo] = []
    for layer in range(layers):
        infos.append(ParameterInfo(f"{name}.{layer}.weight", 432, "weight"))
        infos.append(ParameterInfo(f"{name}.{layer}.bias", 16, "bias"))
        infos.append(ParameterInfo(f"{name}.{layer}.norm.weight", 16, "norm"))
    return Stage(name, tuple(infos))


class FreezeStrategyConformance(Conformance[FreezeStrategy]):
    """Checks of a `FreezeStrategy`: thirty sampled parameter sets on several layouts."""

    def layouts(self) -> dict[str, tuple[Stage, ...]]:
        """The networks it must cope with, by name; override it to add your own."""
        return layouts()

    def networks(self) -> dict[str, Network]:
        """The networks that it must train, by name; override it to add your own."""
        return small_networks()

    def spaces(self) -> list[Space]:
        """Its space, and that of a run on little and on much, on a CPU and on a GPU; each once."""
        found = [self.part().space(), *(self.part().space_for(circumstances) for circumstances in RUNS)]
        return [space for number, space in enumerate(found) if space not in found[:number]]

    def plans(self) -> Iterator[tuple[str, tuple[Stage, ...], Params, Plan]]:
        """Layout name, stages, parameters and plan, for the starts and thirty samples of each space."""
        rng = random.Random(0)
        drawn = [
            params for space in self.spaces() for params in (*space.starts, *(space.sample(rng) for _ in range(30)))
        ]
        for name, stages in self.layouts().items():
            for params in drawn:
                yield name, stages, params, self.part().plan(stages, params)

    def test_its_space_survives_json(self) -> None:
        """Spaces go to workers inside candidates."""
        for space in self.spaces():
            assert decode(Space, encode(space)) == space, f"the space does not survive JSON: {space}"

    def test_its_space_is_a_function_of_the_circumstances(self) -> None:
        """Nothing else is asked for it, so what a run searches can be said again."""
        for circumstances in RUNS:
            one, two = (self.part().space_for(circumstances) for _ in range(2))
            assert one == two, f"{circumstances}: space_for() gives another space the second time"

    def test_its_plans_can_be_carried_out(self) -> None:
        """Every parameter that is named exists and stands in one group, and rates, passes and sizes can be used."""
        for layout, stages, params, plan in self.plans():
            problem = plan_problem(plan, stages)
            assert problem is None, f"{layout}, {params}: {problem}"

    def test_its_plans_train_real_networks(self) -> None:
        """Each start and two samples on each network: at every step its groups that have begun can train, and no more.

        So until the last of them has taken two steps. Nothing else moves, running statistics among it unless the plan
        says so, and of what has begun something does.
        """
        space, rng = self.part().space(), random.Random(1)
        drawn = (*space.starts, space.sample(rng), space.sample(rng))
        for (kind, network), params in itertools.product(self.networks().items(), drawn):
            adaptation = self._adaptation(network, params)
            trained = network if adaptation is None else adaptation.network
            plan = self.part().plan(trained.stages, params)
            if not isinstance(plan.head, ClosedFormHead):
                _train_step_by_step(trained, plan, adaptation, f"{kind}, {params}")

    def test_what_it_puts_into_a_network_comes_out_again(self) -> None:
        """With an `adapter`, features once merged are as they were with what has trained, which is in the tensors.

        The same seed gives the same network.
        """
        import torch

        for (kind, network), params in itertools.product(self.networks().items(), self.part().space().starts):
            one, two = (self._adaptation(network, params) for _ in range(2))
            if one is None or two is None:
                continue
            whose = f"{kind}, {params}"
            tensors, again = one.network.module.state_dict(), two.network.module.state_dict()
            same = all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
            assert same, f"{whose}: adapt() gives another network with the same seed"
            images = torch.randn(2, 3, *[network.input.size] * 2, generator=torch.Generator().manual_seed(0))
            problem = one.problem(self.part().plan(one.network.stages, params), images)
            assert problem is None, f"{whose}: {problem}"

    def _adaptation(self, network: Network, params: Params) -> Adaptation | None:
        from autoft.train.adaptation import Adaptation

        adapter = self.part().adapter(params)
        return None if adapter is None else Adaptation.of(network, adapter, 0)

    def test_plans_survive_json(self) -> None:
        """Plans are recorded with the trial."""
        for layout, _, params, plan in self.plans():
            assert decode(Plan, encode(plan)) == plan, f"{layout}, {params}: the plan does not survive JSON"

    def test_the_same_parameters_give_the_same_plan(self) -> None:
        """A trial that goes on in another process must go on as it was."""
        for layout, stages, params, plan in self.plans():
            assert self.part().plan(stages, dict(params)) == plan, f"{layout}, {params}: plan() is not a function"

    def test_fit_says_how_the_head_is_fitted(self) -> None:
        """`fit` tells the searcher that a trial is one cheap slice."""
        closed = self.part().fit == "closed_form"
        for layout, _, params, plan in self.plans():
            agrees = isinstance(plan.head, ClosedFormHead) == closed
            assert agrees, f"{layout}, {params}: `fit` is {self.part().fit!r}, the head {plan.head}"


def _train_step_by_step(network: Network, plan: Plan, adaptation: Adaptation | None, whose: str) -> None:
    import torch

    plan = replace(plan, recipe=replace(plan.recipe, batch_size=IMAGES // STEPS_A_PASS))
    begins = {name: round(group.from_pass * STEPS_A_PASS) for group in plan.groups for name in group.names}
    buffers = {name for name, _ in network.module.named_buffers()} if plan.batch_norm == "train" else set()
    moved: set[str] = set()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    steps = max(begins.values(), default=0) + STEPS
    for step, after in enumerate(train(network, plan, network.input.size, steps, adaptation)):
        begun, when = {name for name, first in begins.items() if first <= step}, f"{whose}: in step {step + 1}"
        asked = f"{sorted(after.trainable ^ begun)[:3]} can train and should not, or the other way round"
        assert after.trainable == begun, f"{when} {asked}"
        now = {name for name, one in before.items() if not torch.equal(one, after.tensors[name])}
        shared = {name for name in now if _is_one_of(after.tensors, name, begun)}
        assert now <= shared | buffers, f"{when} {sorted(now - shared - buffers)[:3]} moved, of no group that began"
        moved |= now
        before = {name: tensor.clone() for name, tensor in after.tensors.items()}
    assert moved or not begins, f"{whose}: nothing moved of {sorted(begins)[:3]} in {STEPS} steps"


def _is_one_of(tensors: Mapping[str, Tensor], name: str, names: Collection[str]) -> bool:
    """Whether it is one of these parameters, perhaps under another name that the module has for it."""
    return name in names or any(tensors[name].data_ptr() == tensors[one].data_ptr() for one in names)
