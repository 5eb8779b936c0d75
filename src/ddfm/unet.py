"""The embedded prior's network: diffusers' `UNet2DModel` behind a pixel-unshuffle."""

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a saved pipeline is loaded by this name, here)
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput


class UnshuffleUNet2DModel(UNet2DModel):
    """`UNet2DModel` on the 2x2 pixel-unshuffled picture: (B, C, H, W) -> (B, 4C, H/2, W/2) -> (B, C, H, W).

    Same weights file, configuration and call as its parent; `in_channels` in the configuration counts the unshuffled
    channels (4 for luma). A quarter of the positions makes it about four times cheaper, as in FFDNet
    (Zhang et al., 2018).
    """

    unshuffle = 2

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """As `UNet2DModel.forward`; H and W must be multiples of 2 x 2^(levels - 1)."""
        quarter = F.pixel_unshuffle(sample, self.unshuffle)
        out = super().forward(quarter, timestep, class_labels, return_dict=False)[0]
        out = F.pixel_shuffle(out, self.unshuffle)
        return UNet2DOutput(sample=out) if return_dict else (out,)
