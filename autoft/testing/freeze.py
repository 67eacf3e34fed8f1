"""Checks of a freeze strategy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import get_args

from autoft.parts.base import FreezeStrategy
from autoft.parts.guard import plan_problem
from autoft.testing.base import Conformance
from autoft.testing.training import small_network, train
from autoft.values.backbone import ParameterInfo, Stage
from autoft.values.codec import decode, encode
from autoft.values.plan import ClosedFormHead, Plan
from autoft.values.space import Circumstances, Device, Params, Space

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

    def test_its_plans_train_a_real_network(self) -> None:
        """Two steps with each start and two samples: what the groups name moves once they have begun, and nothing else.

        So from the first step on and, for groups that begin later, from their pass on.
        """
        import torch

        network, space, rng = small_network(), self.part().space(), random.Random(1)
        for params in (*space.starts, space.sample(rng), space.sample(rng)):
            plan = self.part().plan(network.stages, params)
            if isinstance(plan.head, ClosedFormHead):
                continue
            before = dict(network.module.named_parameters())
            for passes in sorted({0.0, *(group.from_pass for group in plan.groups)}):
                after = train(network, plan, network.input.size, passes)
                moved = {name for name, one in before.items() if not torch.equal(one, after.tensors[name])}
                idle, when = sorted(after.begun - moved)[:3], f"{params}: two steps after {passes:g} passes"
                assert moved <= after.begun, f"{when}: {sorted(moved - after.begun)[:3]} moved, of no group that began"
                assert moved or not after.begun, f"{when}: nothing moved of {idle}"

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
