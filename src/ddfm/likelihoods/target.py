"""What the fusion aims at: intensities b and gradients g from sources in [0, 1] (docs/likelihood.md)."""

import functools

import torch
from torch import Tensor

from ddfm.likelihoods.operators import gradient, guided_filter, smooth


def fusion_target(sources: list[Tensor], scale: float = 10.0, edge_scale: float = 30.0, flat: float = 1e-5) -> Tensor:
    """b: the intensity that the sources show together, (B, 1, H, W) in [0, 1].

        b = c + sum_k w_k (s_k - c_k) / n_k

    c_k is the source's background level (its median), c their mean weighted by how much each source shows; w_k in
    (0, 1] its local amplitude over the strongest source's, with edges where the source has them; n_k = 1 +
    sum_{j != k} w_j corr+(s_j, s_k) counts how many sources see the same thing there. So what only one source sees
    enters whole, what all see enters once (equal sources give b = s), and a source with nothing to show enters not at
    all. The result is kept between max(0, 1 - sum (1 - s_k)) and min(1, sum s_k): black where all are black, white
    where all are white.
    """
    backgrounds = [torch.stack([image.median() for image in s]).view(-1, 1, 1, 1) for s in sources]
    details = [s - smooth(s, scale) for s in sources]
    energies = [smooth(detail.square(), scale).add_(flat) for detail in details]
    strongest = functools.reduce(torch.maximum, energies)
    weights = [guided_filter((e / strongest).sqrt_(), s, edge_scale) for e, s in zip(energies, sources, strict=True)]
    del strongest

    shows = torch.stack([e.mean(dim=(-3, -2, -1), keepdim=True).sqrt() for e in energies])
    b = ((shows * torch.stack(backgrounds)).sum(dim=0) / shows.sum(dim=0)).expand_as(sources[0]).clone()
    for k, source in enumerate(sources):
        seen_by = torch.ones_like(source)
        for j in range(len(sources)):
            if j != k:
                correlation = smooth(details[j] * details[k], scale).add_(flat)
                correlation /= (energies[j] * energies[k]).sqrt_()
                seen_by += correlation.clamp_(0, 1).mul_(weights[j])
        b += (source - backgrounds[k]).mul_(weights[k]).div_(seen_by)
    return within_bounds(b, sources)


def disagreement(sources: list[Tensor], b: Tensor, scale: float = 10.0) -> Tensor:
    """How far the sources' structures lie from that of b, root mean square over sources and a neighbourhood of 5 px."""
    structure = b - smooth(b, scale)
    squares = torch.zeros_like(b)
    for s in sources:
        squares += (s - smooth(s, scale)).sub_(structure).square_()
    return smooth(squares.div_(len(sources)), 5.0).sqrt_()


def within_bounds(f: Tensor, sources: list[Tensor]) -> Tensor:
    """f between max(0, 1 - sum (1 - s_k)) and min(1, sum s_k)."""
    total = functools.reduce(torch.add, sources)
    bounded = torch.maximum(f, (total - (len(sources) - 1)).clamp_min_(0))
    return torch.minimum(bounded, total.clamp_max_(1), out=bounded)


def strongest_gradient(sources: list[Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """g: the gradient of the locally strongest source, chosen softly on energies smoothed over `scale` pixels."""
    g = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
    energies = torch.zeros_like(sources[0])
    for s in sources:
        gradients = gradient(s)
        energy = smooth(gradients[0].square() + gradients[1].square(), scale).square_().add_(1e-16)
        energies += energy
        for total, component in zip(g, gradients, strict=True):
            total += energy * component
    return g[0] / energies, g[1] / energies
