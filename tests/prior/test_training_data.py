"""The training images: which are held out, at which scales the others are cropped, and what crops look like."""

import cv2
import numpy as np
import pytest
import torch
from conftest import made_image

from ddfm.prior.training_data import HELD_OUT, Batches, blockiness, random_crops, scales, split, subject


def empty_files(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_held_out_share_is_two_fifteenths(tmp_path):
    trained_on, held = split(empty_files(tmp_path / "a", [f"{k:05d}.jpg" for k in range(300)]))
    assert len(held) == round(300 * HELD_OUT) == 40
    assert len(trained_on) == 260 and not set(trained_on) & set(held)


def test_split_does_not_depend_on_place_or_order(tmp_path):
    names = [f"{k:05d}.png" for k in range(60)]
    here, there = (empty_files(tmp_path / str(k), order) for k, order in enumerate((names, names[::-1])))
    assert [[p.name for p in part] for part in split(here)] == [[p.name for p in part] for part in split(there)]


def test_no_patient_is_on_both_sides(tmp_path):
    names = [
        f"{kind}_{patient}{k:03d}_{kind}.png" for kind in ("MRI", "CT") for patient in (4, 21, 305) for k in range(10)
    ]
    trained_on, held = split(empty_files(tmp_path / "medical", names))
    assert len(held) == 8 and trained_on
    assert not {subject(p) for p in trained_on} & {subject(p) for p in held}


def test_visible_and_infrared_of_one_scene_are_one_subject(tmp_path):
    assert subject(tmp_path / "FLIR_00018_visible.png") == subject(tmp_path / "FLIR_00018_ir.png")
    assert (
        subject(tmp_path / "MRI_4012_a.png")
        == subject(tmp_path / "PET_4099_b.png")
        != subject(tmp_path / "MRI_5012_a.png")
    )


def test_other_files_are_not_pictures(tmp_path):
    trained_on, held = split(empty_files(tmp_path / "a", ["1.png", "2.JPG", "README.md", "3.npy"]))
    assert sorted(p.name for p in trained_on + held) == ["1.png", "2.JPG"]


def test_crops_are_pictures_in_range_and_differ():
    rng = np.random.default_rng(0)
    pictures = [made_image(40, 50), made_image(16, 16, "random")]
    crops = random_crops(pictures, np.array([0.7, 0.3]), 8, 16, rng)
    assert crops.shape == (8, 1, 16, 16) and crops.dtype == torch.float32
    assert crops.min() >= -1 and crops.max() <= 1
    assert len({crop.numpy().tobytes() for crop in crops}) == 8


def test_crops_do_not_show_the_levels_of_eight_bits():
    """A flat image has one level; in crops its values spread over that level evenly."""
    flat = [np.full((16, 16), 100, np.uint8)]
    crops = random_crops(flat, np.ones(1), 64, 16, np.random.default_rng(0))
    plain = min(
        ((c + 1) / 2 * 256 for c in crops), key=lambda c: (c.mean() - 100.5).abs()
    )  # neither gamma nor inverted
    assert plain.min() >= 100 and plain.max() <= 101
    assert plain.std().item() == pytest.approx(12**-0.5, rel=0.1)


def test_scales_leave_out_what_is_smaller_than_a_crop():
    assert [s.shape for s in scales(made_image(40, 60), crop=28)] == [(40, 60), (28, 42)]


def jpeg(grey, quality):
    return cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def test_a_picture_with_the_blocks_of_jpeg_is_used_only_shrunk():
    ramp = np.linspace(30, 200, 128)
    noisy = ramp[:, None] / 2 + ramp[None] / 2 + np.random.default_rng(0).normal(0, 6, (128, 128))
    clean = cv2.GaussianBlur(noisy, (0, 0), 1.5).astype(np.uint8)
    blocks = jpeg(clean, 10)
    assert blockiness(clean) < 1.1 < 1.5 < blockiness(blocks)
    assert [s.shape for s in scales(clean, crop=16)] == [(128, 128), (90, 90), (64, 64)]
    assert [s.shape for s in scales(blocks, crop=16)] == [(90, 90), (64, 64)]


@pytest.mark.parametrize("shape", [(1, 1), (9, 9), (8, 300), (17, 23)])
def test_blockiness_of_any_size_is_finite_and_that_of_flat_pictures_is_low(shape):
    assert np.isfinite(blockiness(np.random.default_rng(0).integers(0, 255, shape, np.uint8)))
    assert blockiness(np.full(shape, 7, np.uint8)) < 1.1


def test_batches_depend_on_the_seed_and_the_step_alone():
    pictures = [made_image(40, 50)]
    one, same, other = (Batches(pictures, np.ones(1), 4, 16, seed) for seed in (0, 0, 1))
    one[3]
    assert torch.equal(one[5], same[5])
    assert not torch.equal(one[5], one[6]) and not torch.equal(one[5], other[5])
