"""Batched augmentation: what torchvision makes of one image at a time, from parameters of each image's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from autoft.media.image.augment import CROP_AREA, CROP_RATIO, MAPS, crops, crops_and_mirrors, warped

SIDE = 32


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int) -> torch.Tensor:
    """Images without edges, so that half a pixel is a small difference."""
    few = torch.rand(count, 3, 4, 4, generator=seeded(1))
    return torch.nn.functional.interpolate(few, size=SIDE, mode="bicubic", align_corners=False)


@given(st.integers(0, 2**63 - 1), st.integers(1, 40))
def test_crops_stay_in_the_image_and_have_area_and_ratio_of_the_recipe(seed: int, count: int) -> None:
    maps = crops(count, seeded(seed))
    sides, centres = maps[:, (0, 1), (0, 1)], maps[:, :, 2]
    assert bool((sides + centres.abs() <= 1 + 1e-6).all())
    assert bool((maps[:, (0, 1), (1, 0)] == 0).all())
    inside = (sides < 1).all(dim=1)  # others were cut to the image
    area, ratio = sides.prod(dim=1)[inside], (sides[:, 0] / sides[:, 1])[inside]
    assert bool(((area >= CROP_AREA[0] - 1e-5) & (area <= CROP_AREA[1] + 1e-5)).all())
    assert bool(((ratio >= CROP_RATIO[0] - 1e-5) & (ratio <= CROP_RATIO[1] + 1e-5)).all())


@pytest.mark.parametrize("name", sorted(MAPS))
def test_they_are_a_function_of_the_seed_and_differ_between_images(name: str) -> None:
    one, same, other = (MAPS[name](16, seeded(seed)) for seed in (3, 3, 4))
    if one is None or same is None or other is None:
        assert name == "none"
        return
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 16


def test_about_half_are_mirrored_and_cropped_all_the_same() -> None:
    maps = crops_and_mirrors(1000, seeded(0))
    assert 400 < int((maps[:, 0, 0] < 0).sum()) < 600
    assert torch.equal(maps[:, 0, 0].abs(), crops(1000, seeded(0))[:, 0, 0])


def test_a_crop_is_what_torchvision_cuts_out_and_enlarges() -> None:
    images = smooth(1)
    top, left, height, width = 4, 8, 16, 20
    centre = ((left + width / 2) / SIDE * 2 - 1, (top + height / 2) / SIDE * 2 - 1)
    maps = torch.tensor([[[width / SIDE, 0.0, centre[0]], [0.0, height / SIDE, centre[1]]]])
    wanted = functional.resized_crop(images, top, left, height, width, [SIDE, SIDE], antialias=False)
    inner = (..., slice(2, -2), slice(2, -2))  # at the edge torchvision repeats the last pixel of the crop
    torch.testing.assert_close(warped(images, maps)[inner], wanted[inner], atol=1e-4, rtol=0)
    mirrored = maps * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(warped(images, mirrored)[inner], wanted.flip(-1)[inner], atol=1e-4, rtol=0)


def test_each_image_is_seen_through_its_own_map() -> None:
    images, maps = smooth(5), crops_and_mirrors(5, seeded(2))
    alone = torch.cat([warped(images[[number]], maps[[number]]) for number in range(5)])
    torch.testing.assert_close(warped(images, maps), alone)
    upright = torch.eye(2, 3).expand(5, 2, 3)
    torch.testing.assert_close(warped(images, upright), images, atol=1e-5, rtol=0)
