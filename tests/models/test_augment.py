"""Random changes of images: whole pixels, mirrors, and turns as torchvision makes them one by one."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate as turn
from upweight.models.augment import augment


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_shift_moves_whole_pixels_and_fills_with_zeros():
    x = torch.zeros(200, 1, 5, 5)
    x[:, :, 2, 2] = 1
    moved = augment(x, seeded(0), shift=2)
    assert moved.shape == x.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = moved.flatten(1).argmax(1)
    assert set(places.tolist()) == set(range(25))
    assert torch.equal(augment(x, seeded(0)), x)
    far = augment(torch.ones(50, 2, 4, 4), seeded(1), shift=1)
    assert set(far.sum((1, 2, 3)).tolist()) == {2.0 * 16, 2.0 * 12, 2.0 * 9}
    assert torch.equal(far[:, 0], far[:, 1])


def test_flip_mirrors_half_of_the_images():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(400, 1, 2, 4)
    flipped = augment(x, seeded(0), flip=True)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(flipped[~mirrored], x[~mirrored])


@pytest.mark.parametrize("size", [(9, 9), (8, 12), (11, 6)])
def test_turns_are_torchvisions(size):
    x = torch.rand(20, 2, *size, generator=seeded(3))
    moved = augment(x, seeded(4), rotate=30)
    angles = 30 * (2 * torch.rand(20, generator=seeded(4)) - 1)
    assert angles.min() < -20 and angles.max() > 20
    for image, found, angle in zip(x, moved, angles.tolist(), strict=True):
        expected = turn(image, angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # float32 positions


def test_what_a_turn_brings_in_is_zero():
    moved = augment(torch.ones(200, 1, 16, 16), seeded(1), rotate=45)
    angles = 45 * (2 * torch.rand(200, generator=seeded(1)) - 1)
    corners = moved[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners[angles.abs() > 15] == 0).all() and (corners[angles.abs() < 1] > 0.5).all()
    torch.testing.assert_close(moved[:, 0, 6:10, 6:10], torch.ones(200, 4, 4))
    assert moved.min() >= 0 and moved.max() <= 1 + 1e-6


def test_each_change_draws_after_the_one_before_it():
    x = torch.rand(10, 1, 7, 7, generator=seeded(0))
    draw = seeded(5)
    one = augment(augment(augment(x, draw, shift=2), draw, flip=True), draw, rotate=15)
    assert torch.equal(augment(x, seeded(5), shift=2, flip=True, rotate=15), one)
    assert not torch.equal(one, augment(x, seeded(6), shift=2, flip=True, rotate=15))
