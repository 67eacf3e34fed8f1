"""Checks of a zoo."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING
from unittest import SkipTest

import numpy as np

from autoft.errors import BackboneUnavailable
from autoft.parts.base import Zoo
from autoft.parts.network import Network
from autoft.system import faults
from autoft.testing.base import Conformance
from autoft.testing.training import everything, train
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.codec import decode, encode

if TYPE_CHECKING:
    from torch import Tensor


OTHER_SIZES = (64, 96)
_GENERATORS: Mapping[str, Callable[[], bytes]] = {
    "Python's `random`": lambda: pickle.dumps(random.getstate()),
    "numpy's global generator": lambda: pickle.dumps(np.random.get_state()),
}
_UNAVAILABLE = "build() of a backbone that is not there must raise BackboneUnavailable"


class ZooConformance(Conformance[Zoo]):
    """Checks of a `Zoo`: its list, and at most two of its backbones whose weights lie on this machine."""

    def sample(self) -> list[Backbone]:
        """The backbones that are built: two small local ones; override it to choose others."""
        local = [backbone for backbone in self.part().backbones() if backbone.weights == "local"]
        return sorted(local, key=lambda backbone: backbone.parameters)[:2]

    def _at_hand(self) -> list[Backbone]:
        if sample := self.sample():
            return sample
        raise SkipTest("no backbone of it has its weights here, so none is built")

    def test_addresses_are_unique_and_start_with_the_zoo(self) -> None:
        """`zoo/model`, each once."""
        names = [backbone.name for backbone in self.part().backbones()]
        prefix = f"{self.part().name}/"
        assert len(set(names)) == len(names), "list every backbone once"
        wrong = [name for name in names if not name.startswith(prefix) or name == prefix]
        assert not wrong, f"every name is {prefix}MODEL; look at {wrong[:3]}"

    def test_listing_gives_the_same_twice(self) -> None:
        """A search that goes on must find the same candidates."""
        assert list(self.part().backbones()) == list(self.part().backbones()), "list in a fixed order"

    def test_listed_backbones_survive_json(self) -> None:
        """Backbones go to workers and into the run folder."""
        for backbone in islice(self.part().backbones(), 50):
            assert decode(Backbone, encode(backbone)) == backbone, f"{backbone.name} does not survive JSON"

    def test_listed_facts_are_sane(self) -> None:
        """Sizes, statistics, the prior and the multiply-adds lie where they can be used."""
        for backbone in self.part().backbones():
            spec = backbone.input
            assert spec.size > 0, f"{backbone.name}: `input.size` is in pixels"
            assert spec.size_step >= 0, f"{backbone.name}: `input.size_step` is in pixels, 0 where there is none"
            assert all(0 <= mean <= 1 for mean in spec.mean), f"{backbone.name}: `mean` is of values in [0, 1]"
            assert all(0 < std <= 1 for std in spec.std), f"{backbone.name}: `std` is of values in [0, 1]"
            assert backbone.parameters > 0, f"{backbone.name}: count its `parameters`"
            assert backbone.prior is None or 0 <= backbone.prior <= 1, f"{backbone.name}: `prior` lies in [0, 1]"
            assert backbone.gmacs is None or backbone.gmacs > 0, f"{backbone.name}: count its multiply-adds (`gmacs`)"

    def test_an_unknown_backbone_is_unavailable_with_advice(self) -> None:
        """Not a KeyError: the search goes on without it."""
        for known in self.sample()[:1]:
            try:
                self.part().build(known)
            except Exception:
                raise SkipTest(f"{known.name}, which is there, cannot be built either") from None
        lost = Backbone(f"{self.part().name}/no_such_model_anywhere", 1, InputSpec(32))
        try:
            self.part().build(lost)
        except BackboneUnavailable as error:
            assert lost.name.partition("/")[2] in str(error), "name the backbone in BackboneUnavailable"
            assert "\n" not in str(error), "say what to do in one line"
            return
        except Exception as error:
            raise AssertionError(f"{_UNAVAILABLE}, not {faults.cause(error)}") from error
        raise AssertionError(_UNAVAILABLE)

    def test_features_are_finite_and_of_the_promised_width(self) -> None:
        """`(2, dim)` for two images, at the size the network asks for."""
        for backbone in self._at_hand():
            network = self.part().build(backbone)
            features = _features(network, 2, network.input.size)
            assert tuple(features.shape) == (2, network.dim), f"{backbone.name}: features must be (2, {network.dim})"
            assert bool(features.isfinite().all()), f"{backbone.name}: features must be finite"

    def test_it_takes_other_sizes_unless_it_says_that_it_does_not(self) -> None:
        """Without `fixed_size` a search chooses the size from the images, and `--image-size` is obeyed."""
        for backbone in self._at_hand():
            network = self.part().build(backbone)
            for size in () if backbone.input.fixed_size else OTHER_SIZES:
                advice = f"{backbone.name} fails at {size} px; say InputSpec({network.input.size}, fixed_size=True)"
                try:
                    shape = tuple(_features(network, 2, size).shape)
                except Exception as error:
                    raise AssertionError(f"{advice}: {error}") from error
                assert shape == (2, network.dim), f"{advice}: features are {shape} there"

    def test_it_builds_for_the_sizes_that_it_offers(self) -> None:
        """With `fixed_size` and a `size_step` a search asks `build` for the backbone with another `input.size`."""
        for backbone in self._at_hand():
            spec = backbone.input
            for size in _other_sizes(spec):
                told = f"{backbone.name} offers multiples of {spec.size_step} px, but for {size} px"
                try:
                    network = self.part().build(replace(backbone, input=replace(spec, size=size)))
                    features = _features(network, 2, size)
                except Exception as error:
                    raise AssertionError(f"{told} {faults.cause(error)}") from error
                assert network.input.size == size, f"{told} the network says {network.input.size}"
                assert tuple(features.shape) == (2, network.dim), f"{told} features are {tuple(features.shape)}"

    def test_features_of_an_image_do_not_depend_on_its_batch(self) -> None:
        """Images come one by one and in batches, in rows of channels (`torch.channels_last`)."""
        import torch

        for backbone in self._at_hand():
            network = self.part().build(backbone)
            network.module.eval().to(memory_format=torch.channels_last)
            together = _features(network, 3, network.input.size)
            alone = _features(network, 1, network.input.size)
            close = torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-4)
            assert close, f"{backbone.name}: features of an image differ when others are in its batch"

    def test_it_trains(self) -> None:
        """Two steps as a trial takes them, on a copy: its own weights stay as they are."""
        import torch

        for backbone in self._at_hand():
            network = self.part().build(backbone)
            before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
            *_, last = train(network, everything(network), network.input.size)
            after = last.tensors
            parameters = [name for name, _ in network.module.named_parameters()]
            moved = [name for name in parameters if not torch.equal(before[name], after[name])]
            assert moved, f"{backbone.name}: no gradient reaches its parameters; is there a detach() or no_grad()?"
            own = network.module.state_dict()
            same = all(torch.equal(own[name], tensor) for name, tensor in before.items())
            assert same, f"{backbone.name}: copy.deepcopy() of the module must not share tensors"

    def test_its_forward_pass_draws_from_torch_alone(self) -> None:
        """What is drawn follows from torch's seed, so that a trial can pause and go on in another process."""
        for backbone in self._at_hand():
            network = self.part().build(backbone)
            for mode in ("eval", "train"):
                if drawn := _draws(network, mode == "train"):
                    told = f"{backbone.name}: in {mode} mode its forward pass draws from {drawn}"
                    raise AssertionError(f"{told}; draw from torch's own generator: torch.rand(()), nn.Dropout")

    def test_stages_hold_every_parameter_once(self) -> None:
        """Freezing works by stages, so none may be missing."""
        for backbone in self._at_hand():
            network = self.part().build(backbone)
            staged = [parameter.name for stage in network.stages for parameter in stage.parameters]
            held = [name for name, _ in network.module.named_parameters()]
            assert sorted(staged) == sorted(held), f"{backbone.name}: `stages` must hold every parameter exactly once"

    def test_two_halves_give_what_the_whole_gives(self) -> None:
        """A network need not have a place to cut; where it has, frozen stages are computed once (`Network.split`)."""
        import torch

        for backbone in self._at_hand():
            network = self.part().build(backbone)
            network.module.eval().to(memory_format=torch.channels_last)
            images = _noise(3, network.input.size)
            whole = _features(network, 3, network.input.size)
            for depth in {1, len(network.stages) // 2, len(network.stages) - 1} - {0}:
                if cut := network.split(depth):
                    with torch.inference_mode():
                        halves = cut.after(network.module)(cut.before(network.module)(images))
                    close = torch.allclose(halves, whole, rtol=1e-4, atol=1e-5)
                    assert close, f"{backbone.name}: cut at {cut.place}, its halves give other features than the whole"

    def test_building_twice_gives_the_same_weights(self) -> None:
        """Every worker builds its own copy."""
        for backbone in self._at_hand()[:1]:
            one, two = (_built(self.part(), backbone, seed) for seed in (1, 2))
            differ = [name for name, tensor in one.items() if not tensor.equal(two[name])]
            advice = "seed what is drawn, inside torch.random.fork_rng()"
            assert not differ, f"{backbone.name}: two builds differ, look at {differ[:3]}; {advice}"

    def test_the_network_is_what_the_list_said(self) -> None:
        """The list decides the plan before anything is built."""
        for backbone in self._at_hand():
            network = self.part().build(backbone)
            count = sum(parameter.numel() for parameter in network.module.parameters())
            assert network.input == backbone.input, f"{backbone.name}: the list and the network differ in `input`"
            told = f"{backbone.name}: it has {count} parameters, the list says {backbone.parameters}"
            assert count == backbone.parameters, f"{told}, which stands in the model card"


def _other_sizes(spec: InputSpec) -> list[int]:
    """The two smallest sizes of usual images for which the backbone has to be built anew."""
    if not (spec.fixed_size and spec.size_step):
        return []
    fewest = -(-min(OTHER_SIZES) // spec.size_step)
    return [size for size in (fewest * spec.size_step, (fewest + 1) * spec.size_step) if size != spec.size]


def _built(zoo: Zoo, backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """The tensors of a backbone, built where torch's generator stands somewhere else for each seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors: dict[str, Tensor] = zoo.build(backbone).module.state_dict()
    return tensors


def _features(network: Network, count: int, size: int) -> Tensor:
    """Features of `count` noise images of `size` pixels."""
    import torch

    network.module.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        return network.features(_noise(count, size))


def _draws(network: Network, training: bool) -> str:
    """Which generator other than torch's a forward pass draws from; "" for none.

    One of its own shows in the features: with the same seed and the same buffers they are others the second time.
    """
    import torch

    module, images, features = network.module.train(training), _noise(2, network.input.size), []
    buffers = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for _ in range(2):
        module.load_state_dict(buffers)
        states = {name: state() for name, state in _GENERATORS.items()}
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            features.append(network.features(images))
        if moved := [name for name, state in _GENERATORS.items() if state() != states[name]]:
            return " and ".join(moved)
    one, two = features
    return "" if torch.allclose(one, two, rtol=1e-3, atol=1e-4, equal_nan=True) else "a generator of its own"


def _noise(count: int, size: int) -> Tensor:
    """Images `(count, 3, size, size)`, the first the same whatever the count."""
    import torch

    images = torch.cat(
        [torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in range(count)]
    )
    return images.contiguous(memory_format=torch.channels_last)
