"""The subset rule, the digits' fixed parts, and what a data set is refused for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from upweight import UsageError
from upweight.models.data import choose_subset, load_data, paper_seed
from upweight.models.errors import DataError
from upweight.models.settings import DataSettings

GREY = (1, 8, 8)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), seed=st.integers(0, 3), data=st.data())
def test_subset_covers_the_classes_without_repeats(labels, seed, data):
    y = torch.tensor(labels)
    n = data.draw(st.integers(len(set(labels)), len(labels)))
    rows = choose_subset(y, n, seed)
    assert len(rows) == n
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(y[rows].tolist()) == set(labels)
    assert torch.equal(rows, choose_subset(y, n, seed))


def test_subset_takes_the_shuffled_images_in_turn_while_places_are_left():
    y = torch.tensor([0] * 50 + [1])
    order = torch.randperm(51, generator=torch.Generator().manual_seed(9)).tolist()
    firsts = [i for i in order if i != 50][:4]
    assert choose_subset(y, 5, 9).tolist() == sorted([*firsts, 50])


def test_subset_depends_on_the_seed():
    y = torch.arange(200) % 10
    assert choose_subset(y, 50, 1).tolist() != choose_subset(y, 50, 2).tolist()


@pytest.mark.parametrize(
    ("n", "words"), [(2, "2 images cannot hold all 3 classes"), (10, "10 images are asked for and 9")]
)
def test_subset_refuses_too_few_and_too_many(n, words):
    with pytest.raises(UsageError, match=words):
        choose_subset(torch.arange(9) % 3, n, 0)


def test_paper_seeds():
    assert [paper_seed(i) for i in range(3)] == [20_000_000, 20_100_000, 20_200_000]


def test_digits_have_fixed_parts_in_one_numbering():
    from sklearn.datasets import load_digits

    data = load_data(DataSettings(), GREY)
    assert (data.name, data.class_names) == ("digits", tuple("0123456789"))
    assert data.train.index.tolist() == list(range(1000))
    assert data.test.index.tolist() == list(range(1000, 1797))
    reference = load_digits()
    assert data.test.labels.tolist() == reference.target[1000:].tolist()
    expected = torch.tensor(reference.images[1000:1003] / 16, dtype=torch.float32)[:, None]
    assert torch.equal(data.test.images(slice(0, 3)), expected)
    assert data.fingerprint == load_data(DataSettings(), (3, 32, 32)).fingerprint


def arrays(**changes):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 8, 8), np.uint8)
    return {"x": x, "y": np.arange(6) % 2, "x_test": x[:2], "y_test": np.array([0, 1])} | changes


def npz(tmp_path, **changes):
    path = tmp_path / "own.npz"
    np.savez(path, **{name: value for name, value in arrays(**changes).items() if value is not None})
    return DataSettings(data=str(path))


def test_npz_in_every_arrangement(tmp_path):
    plain = load_data(npz(tmp_path), GREY)
    assert (plain.name, len(plain.train), len(plain.test), plain.class_names) == ("own.npz", 6, 2, ("0", "1"))
    x = arrays()["x"]
    fraction = load_data(npz(tmp_path, x=(x / 255).astype(np.float64)), GREY)
    torch.testing.assert_close(plain.train.images(slice(0, 6)), fraction.train.images(slice(0, 6)))
    colour_first = load_data(npz(tmp_path, x=np.stack([x] * 3, 1)), (3, 8, 8))
    colour_last = load_data(npz(tmp_path, x=np.stack([x] * 3, 3)), (3, 8, 8))
    assert torch.equal(colour_first.train.images(slice(0, 6)), colour_last.train.images(slice(0, 6)))


def spectrum(x):
    """Power beyond half of the highest frequency that the images can hold, and in all but their mean."""
    power = np.abs(np.fft.fft2(x.numpy())) ** 2
    far = np.maximum(*np.meshgrid(*[np.abs(np.fft.fftfreq(n)) for n in x.shape[2:]], indexing="ij"))
    return power[..., far > 0.25].sum(), power[..., far > 0].sum()


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16)])
def test_resolution_takes_high_frequencies_away_and_keeps_the_size(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, (6, 16, 16), np.uint8)
    how = npz(tmp_path, x=x, x_test=x[:2])
    plain = load_data(how, shape)
    low = load_data(replace(how, resolution=4), shape)
    for part, other in ((low.train, plain.train), (low.test, plain.test)):
        found, before = (one.images(slice(0, len(one))) for one in (part, other))
        assert found.shape == before.shape and found.dtype == torch.float32
        high, everything = spectrum(found)
        # bilinear enlargement leaves a little; of the noise itself three quarters are so high
        assert high < 0.1 * everything
        assert high < 0.02 * spectrum(before)[0] and spectrum(before)[0] > 0.6 * spectrum(before)[1]
        torch.testing.assert_close(found.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=0, atol=0.03)
        assert part.raw_images([0]).shape == (1, 1, 4, 4)
        picture = Image.fromarray(x[0]).convert("F").resize((4, 4), Image.Resampling.BILINEAR)  # filtered as it shrinks
        torch.testing.assert_close(part.raw_images([0])[0, 0], torch.tensor(np.array(picture)) / 255, rtol=0, atol=1e-5)
    subset = low.train.subset([3, 1])
    assert torch.equal(subset.images([0]), low.train.images([3]))
    assert len({one.fingerprint for one in (plain, low, load_data(replace(how, resolution=5), shape))}) == 3
    assert (low.name, low.settings.resolution) == (plain.name, 4)
    larger = load_data(replace(how, resolution=20), shape)
    assert torch.equal(
        larger.train.images([0, 5]), plain.train.images([0, 5])
    )  # nothing is enlarged that was not reduced


def test_resolution_is_written_down_only_where_it_is_asked_for():
    assert DataSettings().record() == {"data": "digits", "root": None, "download": False}
    assert DataSettings(resolution=4).record()["resolution"] == 4
    with pytest.raises(UsageError, match="resolution is 0"):
        DataSettings(resolution=0)


def test_npz_without_a_test_part_tests_on_its_train_images(tmp_path):
    data = load_data(npz(tmp_path, x_test=None, y_test=None), GREY)
    assert torch.equal(data.test.labels, data.train.labels)


def test_fingerprint_notices_a_label(tmp_path):
    first = load_data(npz(tmp_path), GREY).fingerprint
    assert load_data(npz(tmp_path, y=np.array([0, 1, 0, 1, 1, 1])), GREY).fingerprint != first
    assert load_data(npz(tmp_path), GREY).fingerprint == first


def with_nan():
    x = np.full((6, 8, 8), 0.5)
    x[3, 2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": with_nan()}, "x holds NaN or infinite pixels"),
        ({"x_test": np.full((2, 8, 8), np.inf)}, "x_test holds NaN or infinite pixels"),
        ({"x": np.full((6, 8, 8), 200.0)}, r"x runs from 200 to 200; scale floating point pixels to \[0, 1\]"),
        ({"x": np.full((6, 8, 8), -0.1)}, r"x runs from -0.1 to -0.1"),
        ({"x": np.zeros((6, 8, 8), np.int64)}, "x is of type int64"),
        ({"x": np.zeros((6, 64), np.uint8)}, r"x has shape \(6, 64\)"),
        ({"x": np.zeros((6, 5, 8, 8), np.uint8)}, r"x has shape \(6, 5, 8, 8\)"),
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.zeros(0, int)}, r"x has shape \(0, 1, 8, 8\)"),
        ({"y": np.array([0, 1, 0, 1, 0, -1])}, "y holds the label -1; labels count from 0"),
        ({"y": np.array([0.0, 1, 0, 1, 0, 1])}, "y is float64"),
        ({"y": np.array([0, 1])}, "give 6 whole numbers"),
        ({"y_test": np.array([0, 2])}, "test part of .* holds the label 2, outside 0 to 1"),
        ({"y": np.zeros(6, int), "y_test": np.zeros(2, int)}, "single class"),
        ({"x": None}, "it needs the arrays x and y"),
        ({"y_test": None}, "only one of x_test and y_test"),
    ],
)
def test_npz_is_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(DataError, match=words) as caught:
        load_data(npz(tmp_path, **changes), GREY)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut"])
def test_damaged_npz_is_named(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz cannot be read"):
        load_data(DataSettings(data=str(path)), GREY)


def test_npz_with_objects_is_not_unpickled(tmp_path):
    with pytest.raises(DataError, match="plain arrays"):
        load_data(npz(tmp_path, x=np.array([{"a": 1}, None], dtype=object)), GREY)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("fashion", UsageError, "choose digits, fashion-mnist"),
        ("nowhere/at.npz", DataError, "no file nowhere/at.npz"),
        ("nowhere/folder", DataError, "neither a folder of images nor an .npz"),
        ("own.zip", DataError, "neither a folder of images nor an .npz"),
    ],
)
def test_unknown_names_and_paths(name, error, words):
    with pytest.raises(error, match=words):
        load_data(DataSettings(data=name), GREY)
