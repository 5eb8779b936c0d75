"""The embedded prior's network: diffusers' `UNet2DModel` behind a pixel-unshuffle."""

import math

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a saved pipeline is loaded by this name, here)
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput


class UnshuffleUNet2DModel(UNet2DModel):
    """`UNet2DModel` on the r x r pixel-unshuffled image: (B, C, H, W) -> (B, r^2 C, H/r, W/r) -> (B, C, H, W).

    Same weights file, configuration and call as its parent; `in_channels` in the configuration counts the unshuffled
    channels: r^2 for luma (4 for r = 2), 3 r^2 for RGB. A quarter of the positions makes it about four times cheaper,
    as in FFDNet (Zhang et al., 2018).
    """

    @property
    def unshuffle(self) -> int:
        """r: pixels a side of what becomes one position."""
        n = self.config["in_channels"]
        return math.isqrt(n if math.isqrt(n) ** 2 == n else n // 3)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """As `UNet2DModel.forward`; H and W must be multiples of r x 2^(levels - 1)."""
        quarter = F.pixel_unshuffle(sample, self.unshuffle)
        out = super().forward(quarter, timestep, class_labels, return_dict=False)[0]
        out = F.pixel_shuffle(out, self.unshuffle)
        return UNet2DOutput(sample=out) if return_dict else (out,)
