"""The fusion target, from sources in [0, 1]: intensities b, gradients g, bounds (docs/likelihood.md)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ddfm.likelihoods.operators import Gradient, gradient, guided_filter, smooth

FLAT = 1e-5  # local variance below which an image is flat: about one grey level
DIM = 0.1  # keeps the density of a white pixel finite
BRIGHT, WHITE, KEPT = 0.6, 0.97, 0.08  # level from which brightness is kept; limit of superposed light; margin
FULLY = 1.5  # exponent of a source's weight in the common background level
EDGE = 0.02  # gradient (root mean square, per pixel) at which g is half the strongest source's and half b's


def density(s: Tensor) -> Tensor:
    """[0, 1] to the scale on which lights add: the probability that *no* sensor lights a pixel is a product."""
    return -(1 + DIM - s).log()


def light(y: Tensor) -> Tensor:
    """The inverse of `density`."""
    return 1 + DIM - (-y).exp()


def fusion_target(
    sources: list[Tensor],
    roles: Sequence[str] | None = None,
    gain: float = 1.0,
    scale: float = 10.0,
    edge_scale: float = 30.0,
    levels: Sequence[float] | None = None,
    unsure: Sequence[Tensor] | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """b: the combined intensity of the sources, (B, 1, H, W) in [0, 1].

        y(b) = c + P - N (1 - (P / (P + N))^2),      P - N = gain * sum_k w_k (y(s_k) - c_k) / n_k,

    y(s) = -log(1 + DIM - s); P sums the deviations brighter than the background, N the darker ones, and darkness
    counts less where another source contradicts it. c_k is the source's background level (the median of y, or y of its
    intensity in `levels`) and c their mean, see `background`; w_k in (0, 1] is its local amplitude over the strongest
    source's, following the source's edges; n_k = 1 + sum_{j != k} corr+(s_j, s_k) min(1, E_j / E_k) counts how many
    sources see the same structure, each weighted by the part of k's local variance E_k that it reaches, so that what
    all see enters at about the contrast of the source that sees it best. Thus what only one source sees enters in full,
    what all see enters once (equal sources give b = s), and a source with nothing to show does not enter. Densities
    saturate as light does: a cold source hardly darkens a bright sky, and two bright roads do not burn out. With roles,
    visible sources set the background and enter in full; thermal ones add what is warmer than their background.

    `unsure`: the error variance of each source, (B, 1, H, W) or (B, 1, 1, 1), where it was denoised: half of it is
    added for texture lost with the noise. b stays within `bounds`, or within `limits` if they are already known.
    """
    details = [s - smooth(s, scale) for s in sources]
    energies = [smooth(detail.square(), scale).add_(FLAT) for detail in details]
    if unsure is not None:
        for e, error in zip(energies, unsure, strict=True):
            if error.any():
                e.add_(smooth(error.expand_as(e), scale), alpha=0.5)
    strongest = functools.reduce(torch.maximum, energies)
    weights = [guided_filter((e / strongest).sqrt_(), s, edge_scale) for e, s in zip(energies, sources, strict=True)]
    del strongest

    shows = torch.stack([e.mean(dim=(-3, -2, -1), keepdim=True).sqrt() for e in energies])
    if roles is not None and "visible" in roles:
        seen = torch.tensor([role == "visible" for role in roles], device=shows.device).view(-1, 1, 1, 1, 1)
        shows = shows * seen
        weights = [torch.ones_like(w) if role == "visible" else w for w, role in zip(weights, roles, strict=True)]
    densities = [density(s) for s in sources]
    if levels is None:
        backgrounds = [torch.stack([image.median() for image in y]).view(-1, 1, 1, 1) for y in densities]
    else:
        backgrounds = [density(shows.new_full((len(sources[0]), 1, 1, 1), level)) for level in levels]
    brighter, darker = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
    for k, (y, level) in enumerate(zip(densities, backgrounds, strict=True)):
        deviation = y.sub_(level)
        if roles is not None and roles[k] == "thermal":
            deviation.clamp_min_(0)
        seen_by = torch.ones_like(y)
        for j in range(len(sources)):
            if j != k:
                correlation = smooth(details[j] * details[k], scale).add_(FLAT)
                correlation /= (energies[j] * energies[k]).sqrt_()
                contrast = (energies[j] / energies[k]).clamp_max_(1)
                seen_by += correlation.clamp_(0, 1).mul_(contrast)
        deviation.mul_(weights[k]).div_(seen_by).mul_(gain)
        brighter += deviation.clamp_min(0)
        darker -= deviation.clamp_max_(0)
    contradicted = (brighter / (brighter + darker).clamp_min_(1e-6)).square_()
    b = light(brighter.add_(background(shows, torch.stack(backgrounds))).sub_(darker.mul_(1 - contradicted)))
    return torch.clamp(b, *limits) if limits is not None else within_bounds(b, sources, roles)


def background(shows: Tensor, levels: Tensor) -> Tensor:
    """c: the mean of the sources' background levels, densities (N, B, 1, 1, 1), to (B, 1, 1, 1).

    Weighted by each source's amplitude (`shows`, shaped like the levels) times its light, to the power FULLY:
    a source that is dark all over is cold or underexposed, which is no reason to darken the others.
    """
    lights = (levels - density(torch.zeros_like(levels))).clamp_min_(1e-4)
    weights = (shows * lights).pow_(FULLY)
    return (weights * levels).sum(dim=0) / weights.sum(dim=0)


def disagreement(sources: list[Tensor], b: Tensor, scale: float = 10.0) -> Tensor:
    """How far the sources' structures are from that of b: root mean square over sources and a 5 px neighbourhood."""
    structure = b - smooth(b, scale)
    squares = torch.zeros_like(b)
    for s in sources:
        squares += (s - smooth(s, scale)).sub_(structure).square_()
    return smooth(squares.div_(len(sources)), 5.0).sqrt_()


def bounds(sources: list[Tensor], roles: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """The lowest and highest intensity that the sources' brightness allows at each pixel, (B, 1, H, W) each.

    Lower bound: what a source shows bright (a lamp, a noon sky) stays bright, f >= s_k - KEPT where s_k >= 0.8, fading
    to no bound at BRIGHT and rising to s_k itself from 0.9 on, because the eye sees small differences next to white;
    with roles, only visible sources count. Upper bound: the lights combined, W (1 - prod (1 - s_k / W)) with W = WHITE,
    as if each lit the pixel independently; only a source's own excess passes W, see `beyond_white`. So black stays
    black where all are black, and white stays white where all are white.
    """
    brightest = functools.reduce(torch.maximum, sources)
    dark = functools.reduce(torch.mul, [(1 - s / WHITE).clamp_min_(0) for s in sources])
    high = dark.neg_().add_(1).mul_(WHITE)
    high = torch.maximum(high, brightest.clamp_max(WHITE)).add_(beyond_white(sources))
    if roles is not None and "visible" in roles:
        brightest = functools.reduce(
            torch.maximum, [s for s, role in zip(sources, roles, strict=True) if role == "visible"]
        )
    rise = ((brightest - BRIGHT) / 0.2).clamp_(0, 1)
    rise = rise.square() * (3 - 2 * rise)
    darker = (1 - brightest).mul_(10).clamp_max_(1).mul_(KEPT)
    return torch.minimum(rise.mul_(brightest - darker), high), high


def within_bounds(f: Tensor, sources: list[Tensor], roles: Sequence[str] | None = None) -> Tensor:
    """f clamped to the `bounds`, pixel by pixel."""
    return torch.clamp(f, *bounds(sources, roles))


def beyond_white(sources: list[Tensor]) -> Tensor:
    """How far f may exceed WHITE, (B, 1, H, W): as the sources do, but in no more places than one of them.

    Otherwise bone in the CT and an oedema in the MRI would both be white, and the fused image whiter than either. The
    excess e = max_k (s_k - W)+ is multiplied by (2 q - 1)+, where q is the share of the total excess that belongs to
    the sources showing it at that pixel: it is kept whole where all show it, or where no other source has any; if
    different sources have it in different places, at most one source's is kept.
    """
    excess = [(s - WHITE).clamp_min_(0) for s in sources]
    most = functools.reduce(torch.maximum, excess)
    shares = torch.stack([e.mean(dim=tuple(range(1, e.ndim)), keepdim=True) for e in excess])
    shares /= shares.sum(dim=0).clamp_min(1e-12)
    agreeing = torch.zeros_like(most)
    for e, share in zip(excess, shares, strict=True):
        agreeing += e.div_(most.clamp_min(1e-12)).mul_(share)
    return most.mul_(agreeing.mul_(2).sub_(1).clamp_(0, 1))


def room(s: Tensor, b: Tensor, scale: float) -> Tensor:
    """The fraction of its contrast that a source keeps at the brightness of b, in (0, 1], smoothed over `scale` pixels.

    Light saturates: the same change of density is a smaller change of intensity in brighter light. Contrast is kept in
    full while at least half of the source's headroom below white is left, and then fades in proportion: what an
    MRI shows in bone, or the infrared in a burnt-out sky, is not drawn in grey on white.
    """
    left, had = (2 - WHITE - smooth(x, scale) for x in (b, s))
    return left.div_(had).mul_(2).clamp_(0, 1)


def strongest_gradient(
    sources: list[Tensor],
    b: Tensor,
    gain: float = 1.0,
    scale: float = 1.5,
    unsure: Sequence[Tensor] | None = None,
) -> Gradient:
    """g: the gradient of the locally strongest source, fading to that of b where none exceeds EDGE, (B, 1, H, W) each.

    The choice is made by region rather than by pixel and is nearly hard: weights (E_k / max_j E_j)^4 of the energies
    E_k smoothed over `scale` pixels. The mean of two unlike gradients has less contrast than either, so they are hardly
    mixed. The energy that the other sources show but g does not, R = sum_k E_k - (grad s_k . g)^2 / |g|^2, is half
    restored as contrast by the factor sqrt(1 + R / (2 |g|^2)): 1 where only one source shows something or all show the
    same, and at most sqrt(N).
    Each source's gradient is first multiplied by its `room` at the brightness of b. `unsure`: the error variance of
    each source, (B, 1, H, W) or (B, 1, 1, 1), where it was denoised. A gradient is two differences of two pixels, with
    four times that error variance; in the choice E_k is weighted by its reliability, E_k / (E_k + 4 error).
    """
    slopes = []
    for s in sources:
        dx, dy = gradient(s)
        kept = room(s, b, scale)
        slopes.append((dx.mul_(kept), dy.mul_(kept)))
    energies = [smooth(dx.square() + dy.square(), scale) for dx, dy in slopes]
    known = energies
    if unsure is not None:
        known = [e.square() / (e + 4 * error + 1e-20) for e, error in zip(energies, unsure, strict=True)]
    strongest = functools.reduce(torch.maximum, known).add_(1e-20)
    weights = [(e / strongest).square_().square_() for e in known]
    total = functools.reduce(torch.add, weights).add_(1e-20)  # not 0 where nothing has a gradient
    gx, gy = (
        functools.reduce(torch.add, [w * slope[axis] for w, slope in zip(weights, slopes, strict=True)]) / total
        for axis in (0, 1)
    )
    del weights, total
    strength = smooth(gx.square() + gy.square(), scale).add_(1e-12)
    left_out = torch.zeros_like(b)
    for e, (dx, dy) in zip(energies, slopes, strict=True):
        left_out += (e - smooth(dx * gx + dy * gy, scale).square_().div_(strength)).clamp_min_(0)
    back = left_out.div_(2 * strength).add_(1).sqrt_().clamp_max_(len(sources) ** 0.5).mul_(gain)
    energy = functools.reduce(torch.add, [e.square_() for e in energies]).sqrt_()
    share, (bx, by) = EDGE**2 / energy.add_(EDGE**2), gradient(b)
    back *= 1 - share
    return gx.mul_(back).add_(bx.mul_(share)), gy.mul_(back).add_(by.mul_(share))
