"""The networks of luma priors: a residual U-Net (the embedded prior's), and `UNet2DModel` behind a pixel-unshuffle.

Both have the properties `unshuffle` and `image_channels`; a plain `UNet2DModel` counts as 1 and in_channels.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from ddfm.prior.precision import cpu_has

PredictionType = Literal["sample", "epsilon", "v_prediction"]


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), both 3 x 3; initialised near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.conv2.weight, 0, 0.1 * (2 / (9 * channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if _fuses(x):
            return _convolution(_convolution(x, self.conv1), self.conv2, add=x)
        out: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return out.add_(x)


def _fuses(x: Tensor) -> bool:
    """Whether ReLU and addition can be fused into the convolutions: on a CPU in bfloat16, where that saves a third.

    This uses oneDNN operators that torch.compile emits. They support neither gradients nor autocast; float32, in which
    networks are exported, gains nothing.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    return cpu_has("avx512_bf16") and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _convolution(x: Tensor, conv: nn.Conv2d, add: Tensor | None = None) -> Tensor:
    """relu(conv(x)), or add + conv(x), for a 3 x 3 convolution."""
    weight, bias = conv.weight.to(x.dtype), None if conv.bias is None else conv.bias.to(x.dtype)
    where = [1, 1], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
    operator = torch.ops.mkldnn._convolution_pointwise
    out: Tensor
    if add is None:
        out = operator(x, weight, bias, *where, "relu", [], "")
    else:
        out = operator.binary(x, add, weight, bias, *where, "add", None, None, [], None)
    return out


class ResidualUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # config_name, in diffusers' own two bases
    """E[x_0 | x_t] by a residual U-Net without normalisation or attention: linear cost, and tiling changes nothing.

    Layers as in DRUNet (Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", 2021): residual
    blocks, 2 x 2 convolutions of stride 2 down, transposed ones up, additive skips; the noise level is a constant input
    plane. They work on the pixel-unshuffled image, as in FFDNet (Zhang et al., 2018), and are preconditioned as in EDM
    (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1): with
    y = x_0 + sigma n,

        D(y, sigma) = c_skip y + c_out F(c_in y, log(sigma) / 4),
        c_in = 1 / sqrt(sigma^2 + s^2), c_skip = s^2 c_in^2, c_out = sigma s c_in, s = data_std.

    The preconditioning is computed in float32 whatever the dtype of the weights, so pass x_t in float32.

    Args:
        in_channels: Image channels: 1 for luma, 3 for RGB.
        block_out_channels: Channels of each level after the pixel-unshuffle; each further level halves the size.
        layers_per_block: Residual blocks of each level, used both on the way down and up; once in the last level.
        unshuffle: Factor r of the pixel-unshuffle.
        data_std: Standard deviation of the data, which are in [-1, 1].
        prediction_type: What `forward` returns, named as in diffusers' schedulers.
        num_train_timesteps, beta_start, beta_end: The schedule, linear in beta, that gives sigma at each time step.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        layers_per_block: tuple[int, ...] = (4, 2, 2),
        unshuffle: int = 2,
        data_std: float = 0.5,
        prediction_type: PredictionType = "sample",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        planes, widths = in_channels * unshuffle**2, block_out_channels
        levels = list(zip(widths[:-1], widths[1:], layers_per_block[:-1], strict=True))
        self.head = nn.Conv2d(planes + 1, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([_blocks(width, n) for width, _, n in levels])
        self.downsamplers = nn.ModuleList([nn.Conv2d(width, wider, 2, stride=2) for width, wider, _ in levels])
        self.mid_block = _blocks(widths[-1], layers_per_block[-1])
        self.upsamplers = nn.ModuleList([nn.ConvTranspose2d(wider, width, 2, stride=2) for width, wider, _ in levels])
        self.up_blocks = nn.ModuleList([_blocks(width, n) for width, _, n in levels])
        self.tail = nn.Conv2d(widths[0], planes, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)  # initially the Wiener estimate
        self.schedule = DDPMScheduler(
            num_train_timesteps, beta_start, beta_end, prediction_type=prediction_type, clip_sample=False
        )

    @property
    def unshuffle(self) -> int:
        """Factor r of the pixel-unshuffle."""
        return int(self.config["unshuffle"])

    @property
    def image_channels(self) -> int:
        """1 for luma, 3 for RGB."""
        return int(self.config["in_channels"])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """As `UNet2DModel.forward`.

        Args:
            sample: x_t, (B, C, H, W), preferably float32; H and W multiples of r x 2^(levels - 1).
            timestep: t, a number or (B,), 0 .. num_train_timesteps - 1.
            class_labels: Ignored; accepted for compatibility with diffusers.
            return_dict: False to return a tuple.

        Returns:
            x_0, the noise or v, according to the configured prediction_type, with the shape and dtype of `sample`.
        """
        x_t = sample.float()
        t = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
        t = t.to(x_t.device).long().expand(x_t.shape[0])
        a = self.schedule.alphas_cumprod.to(x_t.device)[t].view(-1, 1, 1, 1)
        out = self.denoise(x_t / a.sqrt(), ((1 - a) / a).sqrt())
        if (kind := self.config["prediction_type"]) != "sample":
            x_0, noise = out, (x_t - a.sqrt() * out) / (1 - a).sqrt()
            out = noise if kind == "epsilon" else self.schedule.get_velocity(x_0, noise, t)
        out = out.to(sample.dtype)
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def denoise(self, y: Tensor, sigma: Tensor) -> Tensor:
        """D(y, sigma) = E[x_0 | y = x_0 + sigma n], float32.

        Args:
            y: (B, C, H, W) float32, x_0 in [-1, 1].
            sigma: Noise std on the same scale, (B,) or any tensor with B elements.
        """
        sigma = sigma.float().view(-1, 1, 1, 1)
        s = self.config["data_std"]
        c_in = (sigma**2 + s**2).rsqrt()
        x_0: Tensor = s**2 * c_in**2 * y + sigma * s * c_in * self._body(c_in * y, sigma.log() / 4).float()
        return x_0

    def _body(self, x: Tensor, noise: Tensor) -> Tensor:
        """F, in the dtype of the weights."""
        x = F.pixel_unshuffle(x.to(self.dtype), self.unshuffle)
        x = torch.cat([x, noise.to(x.dtype).expand(x.shape[0], 1, *x.shape[-2:])], dim=1)
        x = self.head(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, down in zip(self.down_blocks, self.downsamplers, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.mid_block(x)
        for blocks, up in zip(reversed(self.up_blocks), reversed(self.upsamplers), strict=True):
            x = blocks(up(x).add_(skips.pop()))
        return F.pixel_shuffle(self.tail(x), self.unshuffle)


def _blocks(channels: int, n: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(n)])


class UnshuffleUNet2DModel(UNet2DModel):
    """`UNet2DModel` on the r x r pixel-unshuffled image: (B, C, H, W) -> (B, r^2 C, H/r, W/r) -> (B, C, H, W).

    Weights file, configuration and call are its parent's; `in_channels` in the configuration counts the unshuffled
    channels: r^2 for luma (4 for r = 2), 3 r^2 for RGB.
    """

    @property
    def unshuffle(self) -> int:
        """Factor r of the pixel-unshuffle."""
        n = self.config["in_channels"]
        return math.isqrt(n if math.isqrt(n) ** 2 == n else n // 3)

    @property
    def image_channels(self) -> int:
        """1 for luma, 3 for RGB."""
        return int(self.config["in_channels"]) // self.unshuffle**2

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """As `UNet2DModel.forward`; H and W must be multiples of r x 2^(levels - 1)."""
        x = F.pixel_unshuffle(sample, self.unshuffle)
        x = super().forward(x, timestep, class_labels, return_dict=False)[0]
        x = F.pixel_shuffle(x, self.unshuffle)
        return UNet2DOutput(sample=x) if return_dict else (x,)
