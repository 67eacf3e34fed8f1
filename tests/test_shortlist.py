"""Which backbones are searched, and at which size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts.notes import Notes

from autoft.builtin.searchers import Halving
from autoft.errors import BackboneUnavailable, StudyError
from autoft.parts.base import FreezeStrategy, Problem
from autoft.parts.host import Host
from autoft.study.record import Machine
from autoft.study.shortlist import (
    FEWEST_SCORED,
    Workload,
    candidates,
    choose_size,
    forward_seconds,
    forward_work,
    freeze_strategies,
    scored_images,
    shortlist,
    sized,
)
from autoft.study.study import Study
from autoft.tasks.single_label import SingleLabel
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.ledger import Ledger
from autoft.values.plan import GradientHead, Plan
from autoft.values.space import Choice, Circumstances, Space
from autoft.values.trial import Candidate, Clock, Costs, Queued, Report, Slice


class FakeHost:
    """A host with these backbones; those in `unreachable` cannot be downloaded."""

    def __init__(self, *backbones, unreachable=(), by_hand=()):
        self.zoos_by_hand = frozenset(by_hand)
        self._backbones, self._unreachable, self.built = list(backbones), unreachable, []

    def backbones(self):
        return self._backbones

    def suspects(self):
        return ""

    def build(self, backbone):
        self.built.append(backbone.name)
        if backbone.name in self._unreachable:
            raise BackboneUnavailable(f"{backbone.name}: no network; get its weights elsewhere")


def backbone(name, **facts):
    return Backbone(name, **{"parameters": 4_000_000, "input": InputSpec(224), "license": "mit", "prior": 0.7, **facts})


PHOTOS = Workload(images=1000, side=500)


def searched(host, notes=None, workload=PHOTOS, **study):
    return shortlist(Study("data", **study), host, Machine("ray", 2, 1, "cpu"), workload, notes or Notes())


def chosen(host, notes=None, workload=PHOTOS, **study):
    return [backbone.name for backbone in searched(host, notes, workload, **study)]


@given(st.integers(1, 5000), st.integers(32, 600), st.booleans())
def test_size_is_usable_and_never_beyond_the_backbones_own(side, own, fixed):
    size = choose_size(Study("data"), InputSpec(own, fixed_size=fixed), side)
    assert 32 <= size <= own
    assert size == own or size % 32 == 0
    if fixed:
        assert size == own


@given(st.integers(1, 5000), st.integers(32, 600), st.integers(7, 64), st.integers(0, 20))
def test_what_has_to_be_built_for_its_size_is_of_whole_patches(side, own, step, asked):
    spec, study = InputSpec(own, fixed_size=True, size_step=step), Study("data", image_size=16 * asked)
    size = choose_size(study, spec, side)
    assert spec.takes(size)
    assert size == 16 * asked or size <= own
    assert choose_size(study, replace(spec, size=size), side) == size  # of the backbone as it is then built, too


def test_a_backbone_is_built_for_the_size_that_is_chosen():
    spec = InputSpec(224, fixed_size=True, size_step=14)
    asked, found = Study("data", image_size=98), searched(FakeHost(backbone("z/a", input=spec), backbone("z/b")))
    assert [sized(asked, one, 28).input.size for one in found] == [98, 224]  # the other takes images as they come
    notes = Notes()
    (small,) = searched(FakeHost(backbone("z/a", input=spec)), notes, Workload(1000, 28), image_size=0)
    assert [sized(Study("data"), small, side).input.size for side in (28, 40, 200)] == [70, 84, 224]
    with pytest.raises(StudyError, match=r"--image-size 96: z/a takes multiples of 14 px only; leave it out"):
        searched(FakeHost(backbone("z/a", input=spec)), notes, image_size=96)


@pytest.mark.parametrize(("side", "own", "size"), [(28, 260, 64), (100, 260, 224), (2000, 260, 256), (28, 48, 48)])
def test_small_images_are_enlarged_and_large_ones_get_what_the_backbone_knows(side, own, size):
    assert choose_size(Study("data"), InputSpec(own), side) == size


def test_asked_for_size_is_obeyed_but_for_fixed_ones():
    assert choose_size(Study("data", image_size=96), InputSpec(224), 28) == 96
    assert choose_size(Study("data", image_size=96), InputSpec(224, fixed_size=True), 28) == 224


def test_a_size_of_no_whole_patches_is_as_if_it_had_not_been_asked_for_and_is_said():
    spec, notes = InputSpec(224, fixed_size=True, size_step=16), Notes()
    chosen(FakeHost(backbone("z/a", input=spec), backbone("z/b")), notes, image_size=100)
    assert notes.lines == ["z/a takes multiples of 16 px only; --image-size 100 is not used for it"]
    for side in (28, 40, 2000):
        assert choose_size(Study("data", image_size=100), spec, side) == choose_size(Study("data"), spec, side)


def test_only_backbones_with_a_prior_unless_named():
    host = FakeHost(backbone("z/a"), backbone("z/b", prior=None))
    assert chosen(host) == ["z/a"]
    assert chosen(host, backbones=("z/b",)) == ["z/b"]
    assert chosen(host, backbones=("z/*",)) == ["z/a", "z/b"]


def test_what_its_zoo_keeps_for_who_names_it_is_not_searched_unasked():
    """Whatever its prior, and where the zoo was given by hand."""
    named = backbone("z/b", prior=0.9, by_default=False), backbone("mine/b", by_default=False)
    host = FakeHost(backbone("z/a"), *named, by_hand=["mine"])
    assert chosen(host) == ["z/a"]
    assert chosen(host, backbones=("*/b",)) == ["z/b", "mine/b"]


def test_a_zoo_that_was_given_by_hand_is_searched_first_prior_or_not():
    notes = Notes()
    host = FakeHost(backbone("z/a", prior=0.9), backbone("mine/b", prior=None), by_hand=["mine"])
    assert chosen(host, notes) == ["mine/b", "z/a"]
    assert notes.lines == ["searched without a prior, as you named their plugin: mine/b"]


def test_what_is_not_searched_of_a_zoo_given_by_hand_is_said():
    notes = Notes()
    own = [
        backbone("mine/unlicensed", license="unknown"),
        backbone("mine/away", weights="download"),
        backbone("mine/large", parameters=3_000_000_000),
    ]
    assert chosen(FakeHost(backbone("z/a"), *own, by_hand=["mine"]), notes, offline=True, time=60.0) == ["z/a"]
    licence, offline, time = notes.lines
    assert "mine/unlicensed (unknown)" in licence and "--licenses" in licence
    assert "mine/away" in offline and "drop --offline" in offline
    assert "mine/large" in time and "--backbones" in time


def test_the_only_size_of_a_backbone_wins_over_the_flag_and_is_said():
    notes = Notes()
    host = FakeHost(backbone("z/a", input=InputSpec(224, fixed_size=True)), backbone("z/b"))
    chosen(host, notes, image_size=96)
    assert notes.lines == ["z/a takes 224 px only; --image-size 96 is not used for it"]
    chosen(host, notes, image_size=224)
    assert len(notes.lines) == 1


def test_a_size_that_no_backbone_can_have_is_refused():
    fixed, far = backbone("z/a", input=InputSpec(224, fixed_size=True)), backbone("far/b", weights="download")
    with pytest.raises(StudyError, match=r"--image-size 96: z/a takes 224 px only; leave it out, or name other"):
        chosen(FakeHost(fixed), image_size=96)
    with pytest.raises(StudyError, match="z/a takes 224 px only"):  # the other one was not to be had
        chosen(FakeHost(fixed, far, unreachable=["far/b"]), image_size=96)
    assert chosen(FakeHost(fixed), image_size=224) == ["z/a"]


def test_licences_filter_and_say_so():
    notes = Notes()
    host = FakeHost(backbone("z/a"), backbone("z/b", license="cc-by-nc-4.0"))
    assert chosen(host, notes, backbones=("z/*",)) == ["z/a"]
    assert "z/b (cc-by-nc-4.0)" in notes.lines[0]
    assert chosen(host, licenses=("any",), backbones=("z/*",)) == ["z/a", "z/b"]


def test_a_licence_is_the_same_in_any_case():
    host = FakeHost(backbone("z/a", license="CC-BY-NC-4.0"), backbone("z/b", license="MIT"))
    notes = Notes()
    assert chosen(host, notes, backbones=("z/*",)) == ["z/b"]
    assert "--licenses permissive,cc-by-nc-4.0 " in notes.lines[0]
    assert set(chosen(host, licenses=("permissive", "cc-by-nc-4.0"), backbones=("z/*",))) == {"z/a", "z/b"}


def test_offline_waits_for_no_network_and_names_what_it_skips():
    notes = Notes()
    host = FakeHost(backbone("z/a"), backbone("z/b", weights="download"))
    assert chosen(host, notes, offline=True, backbones=("z/*",)) == ["z/a"]
    assert not host.built
    assert "z/b" in notes.lines[0]
    gone = "--backbones z/b leaves nothing that can be used here: --offline, and the weights of z/b are not on"
    with pytest.raises(StudyError, match=gone):
        chosen(host, offline=True, backbones=("z/b",))
    with pytest.raises(StudyError, match=r"what the zoos recommend leaves nothing .*: --offline.* autoft-lite"):
        chosen(FakeHost(backbone("z/b", weights="download")), offline=True)
    with pytest.raises(StudyError, match="no weights could be had, see the lines above"):
        chosen(FakeHost(backbone("z/b", weights="download"), unreachable=["z/b"]))


@pytest.mark.parametrize("asked", [(), ("z/*",)])
def test_licences_that_leave_nothing_are_named_as_the_cause(asked):
    host = FakeHost(backbone("z/a"), backbone("z/b", license="apache-2.0"))
    with pytest.raises(StudyError, match=r"--licenses isc allows none of z/a, z/b; allow apache-2.0, mit, or any"):
        chosen(host, backbones=asked, offline=True, licenses=("isc",))


def test_larger_backbones_are_left_out_and_counted():
    host = FakeHost(backbone("z/a"), backbone("z/b", parameters=4_000_001), backbone("z/c", parameters=90_000_000))
    for asked in ((), ("z/*",)):
        notes = Notes()
        assert chosen(host, notes, max_params=4_000_000, backbones=asked, time=36000.0) == ["z/a"]
        assert notes.lines == ["2 of 3 backbones are above --max-params 4,000,000: z/b, z/c"]
    notes = Notes()
    assert chosen(host, notes, max_params=90_000_000, backbones=("z/*",)) == ["z/a", "z/b", "z/c"]
    assert not notes.lines


def test_where_all_backbones_are_larger_the_smallest_is_named():
    small, far = backbone("z/a", parameters=3_000_000), backbone("z/b", parameters=2, weights="download")
    says = "--max-params 1,000 leaves none of the backbones .*; the smallest is z/a with 3,000,000 parameters"
    with pytest.raises(StudyError, match=says):
        chosen(FakeHost(small, far), max_params=1000, offline=True)  # what is not here is no way out
    assert chosen(FakeHost(small, far), max_params=1000) == ["z/b"]


def test_an_unknown_licence_gets_the_one_like_it():
    with pytest.raises(StudyError, match=r"no licence is called 'apache'; did you mean 'apache-2.0'"):
        chosen(FakeHost(backbone("z/a")), licenses=("apache",))
    with pytest.raises(StudyError, match=r"no licence is called 'foo'; there are: any, apache-2.0"):
        chosen(FakeHost(backbone("z/a")), licenses=("mit", "foo"))


def test_one_failed_download_is_enough_for_a_zoo():
    notes = Notes()
    away = [backbone(f"far/{name}", weights="download") for name in "abc"]
    host = FakeHost(backbone("z/a"), *away, unreachable=[b.name for b in away])
    assert chosen(host, notes) == ["z/a"]
    assert len(host.built) == 1
    assert any("far/b" in line and "far/c" in line for line in notes.lines)


def test_what_does_not_fit_the_time_is_left_out_but_never_everything():
    small, large = backbone("z/small"), backbone("z/large", parameters=300_000_000, prior=0.9)
    assert chosen(FakeHost(small, large), time=120.0) == ["z/small"]
    assert chosen(FakeHost(small, large), time=36000.0) == ["z/large", "z/small"]
    assert chosen(FakeHost(large), time=10.0) == ["z/large"]


def test_small_images_cost_less():
    large = backbone("z/large", parameters=60_000_000, prior=0.9)
    both = FakeHost(backbone("z/small"), large)
    assert chosen(both, workload=Workload(1000, 500), time=120.0) == ["z/small"]
    assert chosen(both, workload=Workload(1000, 28), time=120.0) == ["z/large", "z/small"]


def test_the_price_goes_by_multiply_adds_where_they_are_known():
    """A ViT with patches of 32 px has many parameters and uses each for few positions."""
    usual = backbone("z/usual", parameters=88_000_000)
    light = backbone("z/light", parameters=88_000_000, gmacs=4.4)
    guessed, counted = candidates(Study("data"), [Plain()], [usual, light], 500, Circumstances("cpu", 500))
    assert forward_work(guessed.cost) == pytest.approx(88e6 * 130)
    assert forward_work(counted.cost) == pytest.approx(4.4e9)
    assert forward_seconds(light, 448, "cpu") == pytest.approx(4 * forward_seconds(light, 224, "cpu"))
    assert chosen(FakeHost(usual, light), time=480.0) == ["z/light"]


def test_a_backbone_that_is_built_for_another_size_costs_what_it_costs_at_that_size():
    spec = InputSpec(224, fixed_size=True, size_step=16)
    offered = backbone("z/a", input=spec, gmacs=17.0)
    built = sized(Study("data", image_size=112), offered, 500)
    assert built.gmacs == pytest.approx(17.0 / 4)
    assert forward_seconds(built, 112, "cpu") == pytest.approx(forward_seconds(offered, 112, "cpu"))


def test_readme_default_is_found_without_naming_it():
    """The two packages of the README's first command give three backbones."""
    pytest.importorskip("autoft_lite")
    from autoft.parts.host import Host

    lite = [b for b in Host.discover(("no:timm",)).backbones() if Path(b.name).parts[0] == "lite"]
    assert {"lite/efficientnet_lite0", "lite/efficientnet_lite1", "lite/efficientnet_lite2"} <= {b.name for b in lite}
    assert all(b.weights == "local" and b.prior for b in lite if "lite/efficientnet" in b.name)


@given(st.floats(1, 1e5), st.integers(1, 100_000), st.floats(1e-3, 10))
def test_scoring_has_its_share_of_the_time(seconds, images, cost):
    candidate = Candidate("z/a", "full", 64, Space({}), cost=cost)
    scored = scored_images(Study("data", time=seconds), Machine("inline", 1, 1, "cpu"), [candidate], images)
    if scored is None:
        return
    assert FEWEST_SCORED <= scored < images
    longer = scored_images(Study("data", time=2 * seconds), Machine("inline", 1, 1, "cpu"), [candidate], images)
    assert longer is None or longer >= scored


class Plain(FreezeStrategy):
    """Says one space, and knows of no circumstances."""

    name = "plain"

    def space(self):
        return Space({"batch_size": Choice((4, 8))})

    def plan(self, stages, params):
        return Plan((), GradientHead(1e-3))


class Named(Plain):
    """Is not tried unasked."""

    name = "named"
    by_default = False


@pytest.mark.parametrize(
    ("freeze", "searched"),
    [((), ["plain"]), (("named",), ["named"]), (("named", "plain"), ["plain", "named"])],
)
def test_a_strategy_may_wait_to_be_named(freeze, searched):
    known = {one.name: one for one in (Plain(), Named())}
    found = freeze_strategies(Study("data", freeze=freeze), known, SingleLabel())
    assert [one.name for one in found] == searched


@pytest.mark.parametrize(("known", "says"), [({"named": Named()}, "--freeze: named"), ({}, "leave 'freeze' on")])
def test_where_nothing_is_tried_unasked_it_says_what_can_be_named(known, says):
    with pytest.raises(StudyError, match=says):
        freeze_strategies(Study("data"), known, SingleLabel())


def test_what_is_tried_unasked_is_a_short_list():
    host = Host.discover()
    found = freeze_strategies(Study("data"), host.parts(FreezeStrategy), SingleLabel())
    assert [one.name for one in found] == ["probe", "full", "last_stages", "bias_norm"]


class Asking(Plain):
    """Asks how many images there are."""

    name = "asking"

    def space_for(self, circumstances):
        return Space({"batch_size": Choice((circumstances.images // 10, circumstances.images))})


def test_a_strategy_may_go_by_device_and_images_and_need_not():
    found = candidates(Study("data"), [Plain(), Asking()], [backbone("z/a")], 64, Circumstances("cuda", 500))
    options = {one.freeze: one.space.dimensions["batch_size"].options for one in found}
    assert options == {"plain": (4, 8), "asking": (50, 500)}


class Probing(Plain):
    """In closed form."""

    name, fit = "probing", "closed_form"


def test_a_backbone_without_parameters_has_a_price_and_is_searched():
    """What others take goes by their prices, and how many images are scored by the dearest."""
    offered = [backbone("z/a", parameters=0), backbone("z/b", parameters=0)]
    probes = candidates(Study("data"), [Probing()], offered, 64, Circumstances("cpu", 500))
    assert scored_images(Study("data", time=600.0), Machine("inline", 1, 1, "cpu"), probes, 1000) is None
    problem, ledger = Problem(probes, seed=0, workers=1), Ledger()
    first = Halving().ask(problem, ledger, Clock(0.0, 100.0))
    assert isinstance(first, Slice)
    ledger.record(Queued(0, first, Clock(0.0, 100.0)))
    ledger.record(Report(0, "finished", 1.0, 0.5, 1.0, elapsed=1.0, costs=Costs(scoring=0.5)))
    second = Halving().ask(problem, ledger, Clock(1.0, 100.0))
    assert isinstance(second, Slice)
    assert {first.trial.backbone, second.trial.backbone} == {"z/a", "z/b"}
