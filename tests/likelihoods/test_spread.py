import numpy as np
import pytest
import torch

from ddfm import DDFMPipeline
from ddfm.likelihoods.operators import smooth
from ddfm.likelihoods.spread import error_variance, fused_variance
from ddfm.likelihoods.target import fusion_target


def texture(seed: int, scale: float = 2.0, size: int = 128) -> torch.Tensor:
    """(1, 1, H, W) around a half; the right half has a fifth of the contrast."""
    image = smooth(torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(seed)), scale)
    image = (image - image.mean()) / image.std() * 0.12
    image[..., size // 2 :] *= 0.2
    return (image + 0.5).clamp(0, 1)


def level(of_255: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), of_255 / 255)


def test_a_clean_source_has_no_error():
    assert not error_variance(texture(0), level(0)).any()


@pytest.mark.parametrize("sigma", [5, 25, 50])
def test_the_error_lies_below_the_noise_and_grows_with_structure_and_noise(sigma):
    error = error_variance(texture(0), level(sigma)).sqrt() * 255
    assert error[..., :56].median() > 1.3 * error[..., 72:].median() and error.max() < sigma
    assert (error_variance(texture(0), level(1.2 * sigma)).sqrt() * 255 > error).all()


def test_an_error_that_both_sources_could_make_is_that_of_the_sum():
    """Two sources that show different things in full: variances of the sum, as by drawing errors and fusing again."""
    sources = [texture(1), texture(2)]
    variances = [torch.full_like(s, 1e-6) for s in sources]
    b = fusion_target(sources)
    rng = torch.Generator().manual_seed(3)
    drawn = [fusion_target([s + 1e-3 * torch.randn(s.shape, generator=rng) for s in sources]) for _ in range(20)]
    actual = torch.stack(drawn).sub(b).square().mean().sqrt()
    assert fused_variance(sources, variances, b).mean().sqrt().item() == pytest.approx(actual.item(), rel=0.35)


def test_no_error_without_any_in_a_source():
    sources = [texture(1), texture(2)]
    assert not fused_variance(sources, [torch.zeros_like(s) for s in sources], fusion_target(sources)).any()


def test_the_std_of_samples_covers_two_thirds_of_the_errors():
    pipe = DDFMPipeline.from_prior("embedded")
    pipe.set_progress_bar_config(disable=True)
    clean = [texture(4)[0, 0].numpy(), texture(5, scale=3.0)[0, 0].numpy()]
    rng = np.random.default_rng(0)
    noisy = [np.clip(s + rng.normal(0, 20 / 255, s.shape), 0, 1).astype(np.float32) for s in clean]
    error = np.abs(pipe(noisy, num_samples=2).images[0] - pipe(clean).images[0])
    std = pipe(noisy, num_samples=2).std[0]
    assert 0.55 < (error <= std).mean() < 0.8
    assert pipe(clean, num_samples=2).std.mean() < 0.3 * std.mean()


def test_the_std_covers_the_errors_on_black_too():
    """Noise on black is cut off at 0, and its mean is no more 0: a shift that no spread of samples would show."""
    pipe = DDFMPipeline.from_prior("embedded")
    pipe.set_progress_bar_config(disable=True)
    clean = [texture(4)[0, 0].numpy(), texture(5, scale=3.0)[0, 0].numpy()]
    for image in clean:
        image[:, :72] = 0
    rng = np.random.default_rng(0)
    noisy = [np.clip(s + rng.normal(0, 20 / 255, s.shape), 0, 1).astype(np.float32) for s in clean]
    found = pipe(noisy, num_samples=2)
    error = np.abs(found.images[0] - pipe(clean).images[0])[:, :64]
    assert (error <= found.std[0][:, :64]).mean() > 0.6
