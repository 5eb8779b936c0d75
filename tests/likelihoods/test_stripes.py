import numpy as np
import pytest
import torch

from ddfm.likelihoods.stripes import column_offsets, stripes_of, without_columns, without_rows


def scene(kind: str) -> np.ndarray:
    y, x = np.mgrid[:160, :200] / 100
    return {
        "waves": 0.5 + 0.2 * np.sin(5 * x + 2 * y) * np.cos(4 * y),
        "posts": np.where((x * 5 % 1 < 0.3) & (y > 0.5), 0.7, 0.3 + 0.1 * y),  # upright, but not from top to bottom
        "ramp": 0.2 + 0.3 * x,
    }[kind]


def eight_bit(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.rint(255 * image.clip(0, 1)) / 255, dtype=torch.float32)


def measured(image: torch.Tensor) -> torch.Tensor:
    return column_offsets(image, stripes_of(image[None]))


@pytest.mark.parametrize("kind", ["waves", "posts", "ramp"])
def test_a_clean_scene_keeps_its_columns(kind):
    clean = eight_bit(scene(kind))
    columns, rows = stripes_of(clean[None]), stripes_of(clean.T[None])
    assert columns.v == 0 and rows.v == 0
    assert torch.equal(without_rows(without_columns(clean[None], columns), rows)[0], clean)


@pytest.mark.parametrize("kind", ["waves", "ramp"])
@pytest.mark.parametrize("level", [8, 15])
@pytest.mark.parametrize("noise", [0, 5])
def test_stripes_are_removed_to_two_fifths(kind, level, noise):
    rng = np.random.default_rng(level)
    clean = scene(kind)
    offsets = rng.normal(0, level / 255, (1, clean.shape[1]))
    striped = eight_bit(clean + offsets + rng.normal(0, 1, clean.shape) * noise / 255)
    left = measured(striped).numpy() - offsets[0]
    assert (left - left.mean()).std() < 0.4 * level / 255


@pytest.mark.parametrize("kind", ["waves", "posts", "ramp"])
@pytest.mark.parametrize("level", [1, 3, 8])
def test_what_is_taken_for_stripes_never_adds_any(kind, level):
    """Faint ones, and those that a scene of posts hides, may stay."""
    offsets = np.random.default_rng(level).normal(0, level / 255, (1, scene(kind).shape[1]))
    left = measured(eight_bit(scene(kind) + offsets)).numpy() - offsets[0]
    assert (left - left.mean()).std() < 1.05 * offsets.std()


def test_rows_too():
    rng = np.random.default_rng(1)
    clean = scene("waves")
    striped = eight_bit(clean + rng.normal(0, 8 / 255, (160, 1)))[None]
    assert stripes_of(striped).v == 0
    out = without_rows(striped, stripes_of(striped.mT))
    assert out.shape == striped.shape and (out[0] - eight_bit(clean)).std() < 0.4 * 8 / 255


def test_slices_share_the_law_of_their_stripes_but_not_the_stripes():
    rng = np.random.default_rng(1)
    clean = scene("waves")
    volume = torch.stack([eight_bit(clean + rng.normal(0, 6 / 255, (1, 200))) for _ in range(5)])
    out = without_columns(volume, stripes_of(volume))
    assert all((image - eight_bit(clean)).std() < 0.5 * 6 / 255 for image in out)
    volume[1:] = eight_bit(clean)  # one slice alone is none of the volume's
    assert stripes_of(volume[:1]).v > 0 and stripes_of(volume).v == 0
