"""Images reach a network in the size, colours and range it takes, and only when asked for."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from upweight.models.errors import DataError
from upweight.models.images import ArrayPixels, FilePixels, ImageSet, adapt


def image_set(values, shape, labels=None):
    n = len(values)
    labels = torch.arange(n) % 3 if labels is None else labels
    return ImageSet(pixels=ArrayPixels(values), labels=labels, index=torch.arange(n), input_shape=shape)


def test_bytes_and_fractions_become_the_same_pixels():
    raw = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, other = image_set(raw, (1, 5, 5)), image_set(raw.double() / 255, (1, 5, 5))
    assert one.images(slice(0, 4)).dtype == other.images(slice(0, 4)).dtype == torch.float32
    torch.testing.assert_close(one.images(slice(0, 4)), other.images(slice(0, 4)))
    assert one.images([0]).max() <= 1


def test_grey_becomes_three_equal_channels():
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(adapt(x, (3, 4, 4)), x.repeat(1, 3, 1, 1))


def test_colour_becomes_luma():
    x = torch.zeros(1, 3, 1, 3)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = x[0, 2, 0, 2] = 1
    torch.testing.assert_close(adapt(x, (1, 1, 3)).flatten(), torch.tensor([0.299, 0.587, 0.114]))


def test_growing_is_bilinear_between_centres_of_pixels():
    grown = adapt(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), (1, 1, 4))
    torch.testing.assert_close(grown.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_shrinking_averages_instead_of_skipping():
    stripes = (torch.arange(64) % 2).float().view(1, 1, 1, 64).expand(1, 1, 64, 64)
    shrunk = adapt(stripes, (1, 8, 8))
    assert (shrunk[..., 1:-1] - 0.5).abs().max() < 0.07


def test_odd_numbers_of_channels_are_refused():
    with pytest.raises(DataError, match="have 4 channels and the network takes 3"):
        adapt(torch.rand(1, 4, 2, 2), (3, 2, 2))


def test_rows_items_and_subsets_agree():
    data = image_set(torch.rand(7, 1, 3, 3), (3, 6, 6))
    picked = data.subset([5, 1, 3])
    assert picked.index.tolist() == [5, 1, 3]
    assert picked.labels.tolist() == data.labels[[5, 1, 3]].tolist()
    assert torch.equal(picked.images(slice(0, 3)), data.images(torch.tensor([5, 1, 3])))
    assert picked.subset([2]).index.tolist() == [3]
    x, y = data[4]
    assert torch.equal(x, data.images([4])[0])
    assert isinstance(y, int)
    assert torch.equal(data[-1][0], data[6][0])
    together = data.__getitems__([6, 0])
    assert [y for _, y in together] == [data[6][1], data[0][1]]
    assert torch.equal(together[0][0], data[6][0])


def test_works_with_torchs_loader_and_ends():
    data = image_set(torch.rand(5, 1, 3, 3), (1, 3, 3))
    assert [len(y) for _, y in DataLoader(data, batch_size=2)] == [2, 2, 1]
    assert len(list(data)) == 5
    with pytest.raises(IndexError):
        data[5]


def test_raw_images_keep_their_own_size():
    data = image_set(torch.rand(2, 1, 3, 3), (3, 6, 6))
    assert data.raw_images([0, 1]).shape == (2, 1, 3, 3)


def test_nothing_is_converted_before_it_is_asked_for():
    raw = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    data = image_set(raw, (3, 224, 224), torch.zeros(50_000, dtype=torch.int64))  # 30 GB if it were made at once
    assert data.images([49_999]).shape == (1, 3, 224, 224)
    assert data.pixels.values is raw


def test_fingerprint_changes_with_one_pixel_and_with_the_shape():
    values = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    first = ArrayPixels(values.clone()).fingerprint()
    assert first == ArrayPixels(values.clone()).fingerprint()
    assert first != ArrayPixels(values.view(4, 1, 2, 4)).fingerprint()
    values[1, 0, 3, 3] = 1
    assert first != ArrayPixels(values).fingerprint()


def test_files_are_scaled_by_the_shorter_side_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25, 0] = 255  # the middle square is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = FilePixels(tmp_path, [tmp_path / "wide.png"])
    colour = pixels.read(torch.tensor([0]), (3, 10, 10))
    assert torch.equal(colour[0, 0], torch.ones(10, 10))
    assert colour[0, 1:].max() == 0
    assert pixels.read(torch.tensor([0, 0]), (1, 5, 5)).shape == (2, 1, 5, 5)


def test_damaged_image_file_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png cannot be read as an image"):
        FilePixels(tmp_path, [tmp_path / "bad.png"]).read(torch.tensor([0]), (1, 4, 4))


def test_truncated_image_file_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
        FilePixels(tmp_path, [tmp_path / "cut.png"]).read(torch.tensor([0]), (3, 4, 4))
