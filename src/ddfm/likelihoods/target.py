"""What the fusion aims at, from sources in [0, 1]: intensities b, gradients g, bounds (docs/likelihood.md)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ddfm.likelihoods.operators import Gradient, gradient, guided_filter, smooth

FLAT = 1e-5  # local variance below which an image shows nothing: a grey level
DIM = 0.1  # light that a sensor has anyway: how far the density of a white pixel reaches
BRIGHT, WHITE, KEPT = 0.6, 0.97, 0.08  # where brightness begins to be kept; what only a source's own white passes
FULLY = 1.5  # power by which the background level of who shows more, and is brighter, counts more
EDGE = 0.02  # gradient (root mean square, a pixel) where half of it is the strongest source's, half b's


def density(s: Tensor) -> Tensor:
    """[0, 1] to the scale on which lights superpose: the probability that *no* sensor lights a pixel is a product."""
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
    """b: the intensity that the sources show together, (B, 1, H, W) in [0, 1].

        y(b) = c + P - N (1 - (P / (P + N))^2),      P - N = gain * sum_k w_k (y(s_k) - c_k) / n_k,

    y(s) = -log(1 + DIM - s), P the sum of what is brighter than its background, N of what is darker: darkness counts
    less where another source contradicts it. c_k is the source's background level (the median of y, or y of its
    intensity in `levels`), c their mean, see `background`; w_k in (0, 1] its local amplitude over the strongest
    source's, with edges where the source has them; n_k = 1 + sum_{j != k} corr+(s_j, s_k) min(1, E_j / E_k) counts how
    many sources see the same thing there, each by the part of k's local variance E_k that it reaches, so that what all
    see enters at about the contrast of who sees it best. So what only one source sees enters whole, what all see enters
    once (equal sources give b = s), and a source with nothing to show enters not at all. Summed as densities, lights
    saturate as lights do: a cold source hardly darkens a bright sky, two bright roads do not burn out. With roles, the
    visible sources set the background and enter whole; the thermal ones add what is warmer than their background.

    `unsure`: the error variance of each source, (B, 1, H, W) or (B, 1, 1, 1), where it was denoised: half of it counts
    for texture that went with the noise. b keeps the `bounds`, or the `limits` where they are known already.
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

    Weighted by what each source `shows` (its amplitude, shaped like the levels) times its light, to the power of FULLY:
    a source that is dark all over is cold or underexposed, which is no reason to darken what the other one shows.
    """
    lights = (levels - density(torch.zeros_like(levels))).clamp_min_(1e-4)
    weights = (shows * lights).pow_(FULLY)
    return (weights * levels).sum(dim=0) / weights.sum(dim=0)


def disagreement(sources: list[Tensor], b: Tensor, scale: float = 10.0) -> Tensor:
    """How far the sources' structures lie from that of b, root mean square over sources and a neighbourhood of 5 px."""
    structure = b - smooth(b, scale)
    squares = torch.zeros_like(b)
    for s in sources:
        squares += (s - smooth(s, scale)).sub_(structure).square_()
    return smooth(squares.div_(len(sources)), 5.0).sqrt_()


def bounds(sources: list[Tensor], roles: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """What the sources' brightness leaves open at each pixel: the least and the most intensity, (B, 1, H, W) each.

    From below: what a source shows bright (a lamp, a noon sky) stays so, f >= s_k - KEPT where s_k >= 0.8, fading to
    no bound at BRIGHT, and from 0.9 on to s_k itself, as white next to nearly white is seen; with roles, of the visible
    sources alone. From above: the lights together, W (1 - prod (1 - s_k / W)) with W = WHITE, as if each lit the pixel
    on its own; only what a source itself shows beyond passes W, see `beyond_white`. So black stays black where all are
    black, and white where all are white.
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
    """f, pixel by pixel, within the `bounds`."""
    return torch.clamp(f, *bounds(sources, roles))


def beyond_white(sources: list[Tensor]) -> Tensor:
    """How far the fused image may pass WHITE, (B, 1, H, W): as the sources do, but no more often than one of them.

    Bone in the CT and an oedema in the MRI would both be white, and the fused image whiter than either. The excess
    e = max_k (s_k - W)+ passes by (2 q - 1)+, where q is the share that the sources which show it there have in the
    excess of all: whole where all show it, or where no other source has any; in two places, that of one source at most.
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
    """How much of its contrast a source keeps in the light of b, in (0, 1], smoothed over `scale` pixels.

    Lights saturate: the same change of density is a smaller change of intensity in brighter light. Contrast is kept
    whole until less than half of the room that the source has below white is left, and fades as the rest does: what an
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
    """g: the gradient of the locally strongest source, towards that of b where none is above EDGE, (B, 1, H, W) each.

    Chosen by region rather than by pixel, nearly hard: weights (E_k / max_j E_j)^4 of the energies E_k smoothed over
    `scale` pixels. The mean of two unlike gradients has less contrast than either of them, so little is mixed. The
    energy of what the others show there and g does not, R = sum_k E_k - (grad s_k . g)^2 / |g|^2, is given back by half
    as contrast, sqrt(1 + R / (2 |g|^2)): nothing where one source alone shows something, or all the same, and sqrt(N)
    at most.
    Each source's gradient is its own times the `room` that the light of b leaves. `unsure`: the error variance of each
    source, (B, 1, H, W) or (B, 1, 1, 1), where it was denoised. A gradient is two differences of two pixels and errs by
    four times that; its E_k counts in the choice as far as it is known, by E_k / (E_k + 4 error).
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
