import socket
from dataclasses import replace
from itertools import pairwise

import pytest
import timm
import torch
from safetensors.torch import save
from timm.models import group_parameters

from autoft import Backbone, BackboneUnavailable, InputSpec, Network
from autoft.builtin import timm_zoo
from autoft.builtin.timm_zoo import HUB, TimmZoo, autoft_zoos
from autoft.study.study import licence_allowed
from autoft.testing import ZooConformance

TINY = timm.list_models("test_*")
FAMILIES = [
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "convnext_atto",
    "deit3_small_patch16_224",
    "densenet121",
    "dpn68",
    "edgenext_xx_small",
    "efficientnet_b0",
    "eva02_tiny_patch14_224",
    "hgnetv2_b0",
    "levit_128s",
    "mambaout_femto",
    "maxvit_tiny_rw_224",
    "mixer_s32_224",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "nextvit_small",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repvit_m1_1",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "tiny_vit_5m_224",
    "vgg11",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]
TAG = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def zoo():
    return TimmZoo()


@pytest.fixture(scope="module")
def listing(zoo):
    return {backbone.name: backbone for backbone in zoo.backbones()}


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch, tmp_path):
    """No weights on this machine, and the network must not be touched."""

    def no_network(*_args, **_kwargs):
        raise OSError("the test has no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)


def put_in_hub_cache(tmp_path, tag: str, content: bytes) -> None:
    folder = tmp_path / "hub" / f"models--timm--{tag}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "snapshots" / "0123" / "model.safetensors").write_bytes(content)


def offered(zoo, name: str) -> Backbone:
    return next(backbone for backbone in zoo.backbones() if backbone.name == name)


class TestTimmZoo(ZooConformance):
    def part(self):
        return TimmZoo()


# ---------------------------------------------------------------- the listing


def test_every_pretrained_tag_is_listed_once(listing):
    assert [name.removeprefix("timm/") for name in listing] == timm.list_pretrained()


def test_a_listing_says_what_the_tag_wants(listing):
    assert listing["timm/swin_tiny_patch4_window7_224.ms_in1k"] == Backbone(
        name="timm/swin_tiny_patch4_window7_224.ms_in1k",
        parameters=27_519_354,
        input=InputSpec(224, fixed_size=True, size_step=32),
        license="mit",
        weights="download",
        source="hf-hub:timm/swin_tiny_patch4_window7_224.ms_in1k",
        prior=0.8139,
        gmacs=4.51,
        by_default=False,
    )
    assert listing["timm/resnet18.tv_in1k"].input.interpolation == "bilinear"
    assert listing["timm/tf_efficientnet_lite0.in1k"].input.mean == (0.5, 0.5, 0.5)


def test_licences_are_lower_case_and_never_empty(listing):
    licenses = {backbone.license for backbone in listing.values()}
    assert licenses >= {"apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "unknown"}
    assert all(license and license == license.lower() for license in licenses)


def test_published_results_are_of_the_size_and_the_licence_that_are_listed(listing):
    """Of what has an ImageNet head or was timed; the rest has no prior, which is no accuracy of 0."""
    rows = {row["tag"]: row for row in timm_zoo._rows("timm_results.csv")}
    listed = {name.removeprefix("timm/"): backbone for name, backbone in listing.items()}
    for tag, row in rows.items():
        if tag in listed:  # another timm may lack some
            assert int(row["size"]) == listed[tag].input.size
            assert bool(row["top1"]) == (listed[tag].prior is not None)
    without = {tag for tag, backbone in listed.items() if backbone.prior is None}
    assert "vit_base_patch16_dinov3.lvd1689m" in without
    assert len(listed) - len(without) > 1200


def test_weights_of_one_architecture_differ_in_their_prior(listing):
    old, new = (listing[f"timm/resnet50.{tag}_in1k"] for tag in ("tv", "a1"))
    assert old.prior is not None and new.prior is not None and new.prior > old.prior + 0.02
    assert old.gmacs == new.gmacs == pytest.approx(4.1, abs=0.1)


def test_what_is_searched_by_default_is_permissive_and_covers_cost_and_families(listing):
    hub = [listing[f"timm/{tag}"] for tag in HUB]
    assert {backbone.name for backbone in listing.values() if backbone.by_default} == {one.name for one in hub}
    assert all(licence_allowed(backbone.license, ("permissive",)) for backbone in hub)
    costs = [backbone.gmacs for backbone in hub]
    assert costs == sorted(costs)
    assert costs[-1] > 1000 * costs[0]
    assert all(dearer < 6 * cheaper for cheaper, dearer in pairwise(costs))
    assert len({timm.models._registry._model_to_module[tag.split(".")[0]] for tag in HUB}) >= 10


def test_what_is_searched_by_default_is_near_the_front(listing):
    """Nothing permissive that is as fast and takes as few multiply-adds is more than two points better in the mean."""
    rows = {
        row["tag"]: (
            sum(float(row[test]) for test in ("top1", "real", "v2", "sketch")) / 4,
            float(row["gmacs"]),
            float(row["images_per_second"]),
        )
        for row in timm_zoo._rows("timm_results.csv")
        if row["top1"]
    }
    rivals = [row for tag, row in rows.items() if licence_allowed(listing[f"timm/{tag}"].license, ("permissive",))]
    for tag in HUB:
        mean, gmacs, speed = rows[tag]
        front = max(rival[0] for rival in rivals if rival[1] <= gmacs and rival[2] >= speed)
        assert front - mean <= 2, tag


@pytest.mark.parametrize("arch", TINY)
def test_the_table_counts_the_headless_model(listing, arch):
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert {b.parameters for n, b in listing.items() if n.startswith(f"timm/{arch}.")} <= {counted}


def test_an_architecture_newer_than_the_table_is_counted(monkeypatch, zoo, listing):
    known = {arch: facts for arch, facts in timm_zoo._table().items() if arch != "test_vit"}
    monkeypatch.setattr(timm_zoo, "_table", lambda: known)
    newer = offered(zoo, f"timm/{TAG}")
    assert newer.parameters == listing[f"timm/{TAG}"].parameters
    assert not newer.input.takes(96)  # nobody has tried


@pytest.mark.parametrize(
    ("arch", "sizes", "others"),
    [
        ("resnet18", (75, 224), ()),
        ("test_vit", (64, 96, 112, 160, 320), (100,)),
        ("vit_small_patch14_dinov2", (70, 98, 518), (96, 224 + 7)),
        ("swin_tiny_patch4_window7_224", (64, 224, 256), (80,)),
        ("mixer_b16_224", (224,), (192, 256)),  # its layers mix so many patches, and no others
    ],
)
def test_a_listing_says_which_sizes_can_be_had(listing, arch, sizes, others):
    spec = next(backbone.input for name, backbone in listing.items() if name.startswith(f"timm/{arch}."))
    assert all(spec.takes(size) for size in sizes)
    assert not any(spec.takes(size) for size in others)


# ---------------------------------------------------------------- networks of any architecture


def used_in_order(network: Network) -> bool:
    """Whether the stages are first used from input to head when the module runs."""
    module, size = network.module, network.input.size
    stage_of = {p.name: number for number, stage in enumerate(network.stages) for p in stage.parameters}
    seen: list[int] = []

    def note(prefix):
        own = [stage_of[f"{prefix}.{name}"] for name, _ in module.get_submodule(prefix).named_parameters(recurse=False)]
        return lambda *_: seen.extend(own)

    for prefix, child in module.named_modules():
        if prefix:
            child.register_forward_pre_hook(note(prefix))
    with torch.inference_mode():
        module(torch.zeros(2, 3, size, size))
    first = list(dict.fromkeys(seen))
    return first == sorted(first)


@pytest.mark.parametrize("arch", [*TINY, *FAMILIES])
def test_every_family_becomes_a_network(arch):
    with torch.device("meta"):  # shapes only: no weights are filled, nothing is computed
        module = timm.create_model(arch, num_classes=0).eval()
        network = Network.of(module, InputSpec(module.default_cfg["input_size"][-1]))
        assert used_in_order(network)
    names = [parameter.name for stage in network.stages for parameter in stage.parameters]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert len({stage.name for stage in network.stages}) == len(network.stages) >= 3
    groups = group_parameters(module, module.group_matcher(coarse=arch != "rdnet_tiny"))
    assert [{parameter.name for parameter in stage.parameters} for stage in network.stages] == [
        set(names) for names in groups.values()
    ]


def test_stages_have_the_names_of_their_modules():
    module = timm.create_model("test_vit", num_classes=0)
    stages = [stage.name for stage in Network.of(module, InputSpec(160)).stages]
    assert stages == ["stem", *(f"blocks.{number}" for number in range(len(module.blocks)))]


# ---------------------------------------------------------------- weights


def test_weights_in_the_hub_cache_are_loaded_without_a_network(zoo, tmp_path):
    teacher = timm.create_model("test_vit").eval()
    put_in_hub_cache(tmp_path, TAG, save(teacher.state_dict()))
    backbone = offered(zoo, f"timm/{TAG}")
    network = zoo.build(backbone)
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        expected = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
        assert torch.equal(network.features(images), expected)
    assert backbone.weights == "local"


@pytest.mark.parametrize("tag", [TAG, "test_vit2.r160_in1k"])
@pytest.mark.parametrize("size", [64, 208])
def test_a_network_is_built_for_another_size_with_its_positions_resampled(zoo, tmp_path, tag, size):
    torch.manual_seed(0)
    teacher = timm.create_model(tag.partition(".")[0]).eval()
    put_in_hub_cache(tmp_path, tag, save(teacher.state_dict()))
    backbone = offered(zoo, f"timm/{tag}")
    network = zoo.build(replace(backbone, input=replace(backbone.input, size=size)))
    teacher.set_input_size(img_size=size)  # timm's other way of doing it
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
        assert torch.allclose(network.features(images), expected, atol=1e-5)
    assert network.input.size == size


def test_weights_in_the_torch_hub_folder_are_loaded_without_a_network(zoo, tmp_path):
    teacher = timm.create_model("resnet18").eval()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(teacher.state_dict(), folder / timm.get_pretrained_cfg("resnet18.tv_in1k").url.rpartition("/")[2])
    backbone = offered(zoo, "timm/resnet18.tv_in1k")
    assert backbone.weights == "local"
    assert torch.equal(zoo.build(backbone).module.conv1.weight, teacher.conv1.weight)


@pytest.mark.parametrize("tag", [TAG, "gcvit_base.in1k"], ids=["hub", "url"])
def test_offline_says_what_to_do(zoo, listing, monkeypatch, tag):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneUnavailable, match=rf"timm/{tag}: .* not on this machine; run once without --offline"):
        zoo.build(listing[f"timm/{tag}"])


@pytest.mark.parametrize("tag", [TAG, "gcvit_base.in1k"], ids=["hub", "url"])
def test_a_failed_download_gives_its_cause_in_one_line(zoo, listing, monkeypatch, tag):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    with pytest.raises(BackboneUnavailable, match=rf"timm/{tag}: .* cannot be downloaded \(.+\)") as caught:
        zoo.build(listing[f"timm/{tag}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_damaged_file_is_named(zoo, tmp_path, content):
    put_in_hub_cache(tmp_path, TAG, content)
    with pytest.raises(BackboneUnavailable, match=rf"timm/{TAG}: cannot load .*model\.safetensors"):
        zoo.build(offered(zoo, f"timm/{TAG}"))


def test_a_tag_that_timm_does_not_know_is_unavailable(zoo, listing):
    with pytest.raises(BackboneUnavailable, match=r"timm/test_vit\.moon: timm .* has no such weights"):
        zoo.build(replace(listing[f"timm/{TAG}"], name="timm/test_vit.moon"))


def test_images_that_are_no_squares_are_unavailable(zoo, listing):
    with pytest.raises(BackboneUnavailable, match="no square images"):
        zoo.build(listing["timm/vit_base_patch16_sapiens2.fb"])


def test_the_module_is_a_plugin():
    assert [zoo.name for zoo in autoft_zoos()] == ["timm"]
