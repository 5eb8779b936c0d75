"""What the fusion aims at: superposition, bounds, roles, the strongest gradient."""

from itertools import permutations

import pytest
import torch
from likelihoods.made import scenes, uniform

from ddfm.errors import InputError
from ddfm.likelihoods.operators import (
    gradient,
    guided_filter,
    smooth,
)
from ddfm.likelihoods.salient import Salient
from ddfm.likelihoods.target import (
    background,
    density,
    fusion_target,
    light,
    room,
    strongest_gradient,
    within_bounds,
)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_sources_superpose_to_that_source(count):
    s = scenes(1)[0]
    torch.testing.assert_close(fusion_target([s] * count), s, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "statistic", [fusion_target, lambda s: torch.cat(strongest_gradient(s, s[0] * 0))], ids=["b", "g"]
)
def test_the_order_of_the_sources_does_not_matter(statistic, count):
    sources = scenes(count)
    expected = statistic(sources)
    for order in permutations(sources):
        torch.testing.assert_close(statistic(list(order)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", [0.2, 0.4, 0.7])
def test_what_only_one_source_shows_enters_whole(level):
    """With its contrast, its edges and its background; a second source is flat, at any level, and so shows nothing."""
    one = torch.full((1, 1, 64, 64), 0.4)
    one[..., 20:40, 24:44] = 0.6
    b = fusion_target([one, torch.full_like(one, level)])
    torch.testing.assert_close(b, one, atol=0.03, rtol=0)


def test_things_that_different_sources_show_in_different_places_all_enter():
    base = torch.full((1, 1, 64, 128), 0.4)
    left, right = base.clone(), base.clone()
    left[..., 24:40, 20:36] = 0.8
    right[..., 24:40, 92:108] = 0.1
    b = fusion_target([left, right])
    expected = base.clone()
    expected[..., 24:40, 20:36], expected[..., 24:40, 92:108] = 0.8, 0.1
    torch.testing.assert_close(b, expected, atol=0.01, rtol=0)


def test_what_is_warm_in_one_source_and_dark_in_the_other_does_not_cancel():
    """A warm person in a dark coat; what is dark in one source alone stays as dark as it is."""
    infrared, visible = torch.full((1, 1, 64, 128), 0.4), torch.full((1, 1, 64, 128), 0.4)
    infrared[..., 24:40, 20:36], visible[..., 24:40, 20:36] = 0.7, 0.2
    visible[..., 24:40, 92:108] = 0.2
    b = fusion_target([infrared, visible])
    assert 0.5 < b[..., 28:36, 24:32].mean() < 0.7
    assert b[..., 28:36, 96:104].mean().item() == pytest.approx(0.2, abs=0.02)


def level_of(levels, shows=(1.0, 1.0)):
    """The common background of sources with these levels, which show so much."""
    at = [torch.tensor(values).view(-1, 1, 1, 1, 1) for values in (shows, levels)]
    return light(background(at[0], density(at[1]))).item()


def test_a_source_dark_all_over_hardly_darkens_the_background():
    assert 0.55 < level_of([0.1, 0.6]) < 0.6
    assert level_of([0.4, 0.4]) == pytest.approx(0.4)
    assert level_of([0.0, 0.0]) == pytest.approx(0.0, abs=1e-6)
    assert level_of([0.3, 0.8], shows=[1.0, 0.05]) < 0.37  # bright, but there is nothing in it


def test_texture_that_went_with_the_noise_counts_in_the_weights():
    generator = torch.Generator().manual_seed(0)
    sources = [0.4 + a * torch.randn(1, 1, 64, 64, generator=generator) for a in (0.02, 0.05)]
    sources[0][..., 32:] += 0.2  # what it shows counts for more
    none, error = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.1**2)
    known, lost = (fusion_target(sources, unsure=[first, none]) for first in (none, error))
    torch.testing.assert_close(known, fusion_target(sources))
    steps = [b[..., 44:].mean() - b[..., :20].mean() for b in (known, lost)]
    assert steps[1] > 1.1 * steps[0]


def test_bounds_that_are_known_are_not_computed_again():
    sources = scenes(2)
    low, high = torch.full_like(sources[0], 0.3), torch.full_like(sources[0], 0.4)
    b = fusion_target(sources, limits=(low, high))
    assert b.min() == low.min() and b.max() == high.max()


def test_black_where_all_are_black_and_white_where_all_are_white():
    sources = scenes(3)
    for s in sources:
        s[..., :10, :], s[..., -10:, :] = 0, 1
    b = fusion_target(sources)
    assert (b[..., :10, :] == 0).all() and (b[..., -10:, :] == 1).all()


@pytest.mark.parametrize("size", [(16, 16), (16, 33), (1, 1), (2, 3)])
def test_tiny_pictures_superpose(size):
    b = fusion_target([uniform(1, 1, *size, seed=s) for s in range(2)])
    assert b.shape == (1, 1, *size) and (b >= 0).all() and (b <= 1).all()


def bounds(*levels):
    """Where within_bounds keeps f at one pixel of the given levels."""
    s = [torch.tensor([float(level)]) for level in levels]
    return tuple(within_bounds(torch.tensor([f]), s).item() for f in (0.0, 1.0))


def test_bounds_leave_what_is_between_alone():
    s = [torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.5])]
    assert within_bounds(torch.tensor([0.3, 0.6]), s).tolist() == pytest.approx([0.3, 0.6])


def test_black_stays_black_and_white_stays_white():
    assert bounds(0, 0) == (0, 0)
    assert bounds(0, 1) == pytest.approx((1, 1))


@pytest.mark.parametrize(("level", "least"), [(0.8, 0.72), (0.9, 0.82), (0.95, 0.91), (1.0, 1.0)])
def test_what_one_source_shows_bright_stays_bright_and_white_white(level, least):
    assert bounds(level, 0.1)[0] == pytest.approx(least)
    assert bounds(0.5, 0.6)[0] == 0


def test_lights_together_saturate_below_white():
    """Two bright roads do not burn out; two dim things add as independent lights do."""
    assert bounds(0.9, 0.9)[1] == pytest.approx(0.97 * (1 - (1 - 0.9 / 0.97) ** 2))
    assert bounds(0.95, 0.95)[1] < 250 / 255 < bounds(0.99, 0.2)[1]
    assert bounds(0.1, 0.2)[1] == pytest.approx(0.3, abs=0.03)


def two_whites(first, second):
    """White squares of these sides, apart, one a source; and where each source may be white in the fused image."""
    one, other = torch.full((1, 1, 64, 64), 0.2), torch.full((1, 1, 64, 64), 0.2)
    one[..., :first, :first], other[..., 40 : 40 + second, 40 : 40 + second] = 1, 1
    high = within_bounds(torch.ones_like(one), [one, other])
    return high[..., 0, 0].item(), high[..., 41, 41].item()


def test_two_sources_white_in_two_places_are_not_white_in_both():
    """No more of the fused image is burnt than of the source with the most white, whichever that is."""
    assert two_whites(20, 2) == pytest.approx((1, 0.97), abs=1e-3)
    assert two_whites(2, 20) == pytest.approx((0.97, 1), abs=1e-3)
    assert two_whites(20, 20) == pytest.approx((0.97, 0.97))
    assert min(two_whites(20, 18)) < 250 / 255 and min(two_whites(18, 20)) < 250 / 255


def test_there_is_room_for_contrast_until_the_light_of_others_takes_half_of_it():
    s, light = torch.full((1, 1, 8, 8), 0.4), torch.ones(1, 1, 8, 8)
    assert (room(s, 0.7 * light, 1.5) == 1).all() and (room(s, 0.1 * light, 1.5) == 1).all()
    assert 0.5 < room(s, 0.87 * light, 1.5)[0, 0, 0, 0] < 0.55
    assert room(s, light, 1.5)[0, 0, 0, 0] < 0.1
    assert (room(light, light, 1.5) == 1).all()  # a source's own light takes nothing from it


def test_what_one_source_shows_in_anothers_white_is_not_drawn_in_grey():
    """Marrow that only the MRI shows, in bone that is white in the CT; the bone's own edge is, and marrow elsewhere."""
    ct, mri = torch.full((1, 1, 64, 64), 0.3), torch.full((1, 1, 64, 64), 0.2)
    ct[..., 24:] = 1
    mri[..., 40:50], mri[..., 8:14] = 0.5, 0.5
    gx, _ = strongest_gradient([ct, mri], ct)
    assert gx[..., 39].abs().max() < 0.06 and gx[..., 23].min() > 0.65 and gx[..., 7].min() > 0.25


def test_a_cold_sky_leaves_a_bright_one_bright():
    """A noon sky in the visible, featureless and cold in the infrared, whose ground is warm."""
    visible, infrared = torch.full((1, 1, 64, 96), 0.35), torch.full((1, 1, 64, 96), 0.6)
    visible[..., :30, :], infrared[..., :30, :] = 0.9, 0.1
    infrared += 0.02 * uniform(1, 1, 64, 96, dtype=torch.float32)
    model = Salient()
    f = (model.initial_estimate(model.start([2 * infrared - 1, 2 * visible - 1])) + 1) / 2
    assert (f[..., :28, :] >= 0.8 - 1e-4).all()


def test_with_roles_the_visible_sets_the_brightness_and_the_thermal_adds_what_is_warm():
    visible, thermal = torch.full((1, 1, 64, 96), 0.5), torch.full((1, 1, 64, 96), 0.4)
    visible[..., ::7] = 0.4
    thermal[..., 20:40, 10:30], thermal[..., 20:40, 60:80] = 0.8, 0.1  # a warm and a cold thing
    b = fusion_target([thermal, visible], ("thermal", "visible"))
    assert (b - visible)[..., 26:34, 16:24].mean() > 0.1
    assert (b - visible)[..., 26:34, 66:74].abs().mean() < 0.03
    assert (b - visible)[..., :10, :].abs().mean() < 0.03
    swapped = fusion_target([visible, thermal], ("visible", "thermal"))
    torch.testing.assert_close(swapped, b, atol=1e-6, rtol=0)


def test_roles_are_one_a_source():
    with pytest.raises(InputError, match="There are 3 sources but 2 roles"):
        Salient(roles=("thermal", "visible")).start([s * 2 - 1 for s in scenes(3)])


def test_strong_contrast_is_stronger():
    sources = [2 * s - 1 for s in scenes(2)]
    natural, strong = (m.initial_estimate(m.start(sources)) for m in (Salient(), Salient(contrast="strong")))
    assert strong.std() > 1.03 * natural.std()


def test_a_weight_snaps_to_the_edges_of_its_guide():
    guide = torch.full((1, 1, 64, 64), 0.2)
    guide[..., 32:] = 0.8
    blurred = smooth((guide > 0.5).float(), 5.0)
    sharp = guided_filter(blurred, guide, 20.0)
    jump = (sharp[..., 33] - sharp[..., 30]).mean()
    assert jump > 0.8 > 2 * (blurred[..., 33] - blurred[..., 30]).mean()


@pytest.mark.parametrize(("sigma", "off"), [(4.0, 1e-6), (6.0, 1e-3)])  # on the full grid, and once on a coarser one
def test_a_weight_is_only_smoothed_where_its_guide_is_flat(sigma, off):
    weight = uniform(1, 1, 40, 40)
    twice = smooth(smooth(weight, sigma), sigma)
    filtered = guided_filter(weight, torch.full_like(weight, 0.5), sigma)
    torch.testing.assert_close(filtered, twice, atol=off, rtol=0)


def test_a_filtered_constant_stays():
    torch.testing.assert_close(guided_filter(torch.ones(1, 1, 48, 64), scenes(1)[0], 30.0), torch.ones(1, 1, 48, 64))


def test_the_strongest_gradient_of_equal_sources_is_theirs():
    s = scenes(1)[0]
    for g, own in zip(strongest_gradient([s, s, s], s), gradient(s), strict=True):
        torch.testing.assert_close(g, own)


def test_the_strongest_gradient_takes_each_structure_from_who_has_it():
    left, right = torch.full((1, 1, 40, 80), 0.5), torch.full((1, 1, 40, 80), 0.5)
    left[..., 20:], right[..., 60:] = 0.7, 0.1
    gx, gy = strongest_gradient([left, right], 0 * left)
    expected = torch.zeros_like(gx)
    expected[..., 19], expected[..., 59] = 0.2, -0.4
    torch.testing.assert_close(gx, expected, atol=0.01, rtol=0)  # a part is that of b, which has none
    assert (gy == 0).all()


def test_of_two_gradients_that_are_alike_the_surer_wins():
    one, other = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    one[..., 10:], other[..., 10:, :] = 0.3, 0.25
    sure, unsure = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.1**2)
    taken = strongest_gradient([one, other], 0 * one, unsure=[sure, sure])
    for got, expected in zip(strongest_gradient([one, other], 0 * one), taken, strict=True):
        torch.testing.assert_close(got, expected)
    gx, gy = strongest_gradient([one, other], 0 * one, unsure=[unsure, sure])
    assert gy[..., 9, 9] > taken[1][..., 9, 9] + 0.05 and gx[..., 9, 9] < taken[0][..., 9, 9] - 0.05


def test_of_two_edges_in_one_place_the_stronger_wins():
    weak, strong = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    weak[..., 10:], strong[..., 10:, :] = 0.1, 0.5
    gx, gy = strongest_gradient([weak, strong], 0 * weak)
    assert gy[..., 9, 10].item() == pytest.approx(0.5, abs=0.01) and gx[..., 9, 9].abs().item() < 0.01
