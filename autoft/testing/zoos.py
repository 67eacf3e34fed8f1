"""Checks of a zoo."""

from __future__ import annotations

from itertools import islice

from autoft.codec import decode, encode
from autoft.errors import BackboneUnavailable
from autoft.parts import Zoo
from autoft.testing.base import Conformance
from autoft.types import Backbone, InputSpec


class ZooConformance(Conformance[Zoo]):
    """Checks of a `Zoo`: its list, and at most two of its backbones whose weights lie on this machine."""

    def sample(self) -> list[Backbone]:
        """The backbones that are built: two small local ones; override it to choose others."""
        local = [backbone for backbone in self.part().backbones() if backbone.weights == "local"]
        return sorted(local, key=lambda backbone: backbone.parameters)[:2]

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
        """Sizes, statistics and the prior lie where they can be used."""
        for backbone in self.part().backbones():
            spec = backbone.input
            assert spec.size > 0, f"{backbone.name}: `input.size` is in pixels"
            assert all(0 <= mean <= 1 for mean in spec.mean), f"{backbone.name}: `mean` is of values in [0, 1]"
            assert all(0 < std <= 1 for std in spec.std), f"{backbone.name}: `std` is of values in [0, 1]"
            assert backbone.parameters > 0, f"{backbone.name}: count its `parameters`"
            assert backbone.prior is None or 0 <= backbone.prior <= 1, f"{backbone.name}: `prior` lies in [0, 1]"
            assert backbone.license == backbone.license.lower(), f"{backbone.name}: write `license` in lower case"

    def test_an_unknown_backbone_is_unavailable_with_advice(self) -> None:
        """Not a KeyError: the search goes on without it."""
        lost = Backbone(f"{self.part().name}/no_such_model_anywhere", 1, InputSpec(32))
        try:
            self.part().build(lost)
        except BackboneUnavailable as error:
            assert lost.name.partition("/")[2] in str(error), "name the backbone in BackboneUnavailable"
            assert "\n" not in str(error), "say what to do in one line"
        else:
            raise AssertionError("build() of a backbone that is not there must raise BackboneUnavailable")

    def test_features_are_finite_and_of_the_promised_width(self) -> None:
        """`(2, dim)` for two images, at the size the network asks for."""
        import torch

        for backbone in self.sample():
            network = self.part().build(backbone)
            images = torch.randn(2, 3, network.input.size, network.input.size, generator=torch.manual_seed(0))
            with torch.inference_mode():
                features = network.features(images)
            assert tuple(features.shape) == (2, network.dim), f"{backbone.name}: features must be (2, {network.dim})"
            assert bool(features.isfinite().all()), f"{backbone.name}: features must be finite"

    def test_stages_hold_every_parameter_once(self) -> None:
        """Freezing works by stages, so none may be missing."""
        for backbone in self.sample():
            network = self.part().build(backbone)
            staged = [parameter.name for stage in network.stages for parameter in stage.parameters]
            held = [name for name, _ in network.module.named_parameters()]
            assert sorted(staged) == sorted(held), f"{backbone.name}: `stages` must hold every parameter exactly once"

    def test_building_twice_gives_the_same_weights(self) -> None:
        """Every worker builds its own copy."""
        for backbone in self.sample()[:1]:
            one, two = (self.part().build(backbone).module.state_dict() for _ in range(2))
            differ = [name for name, tensor in one.items() if not tensor.equal(two[name])]
            assert not differ, f"{backbone.name}: building must be deterministic; look at {differ[:3]}"

    def test_the_network_is_what_the_list_said(self) -> None:
        """The list decides the plan before anything is built."""
        for backbone in self.sample():
            network = self.part().build(backbone)
            count = sum(parameter.numel() for parameter in network.module.parameters())
            assert network.input == backbone.input, f"{backbone.name}: the list and the network differ in `input`"
            assert 0.5 <= count / backbone.parameters <= 2, f"{backbone.name}: it has {count} parameters"
