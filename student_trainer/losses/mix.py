"""How a step's images are mixed, each with a partner of the batch: what `DistillLoss.mix` answers.

Shape key: B batch, H height, W width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mix:
    """Partners and shares of a batch's images."""

    partner: Tensor
    """int64 [B]: position of the other image in the batch."""
    weight: Tensor
    """float32 [B]: share of the own image, 0 to 1; with a box exactly the share of pixels outside of it."""
    box: tuple[int, int, int, int] | None = None
    """(top, bottom, left, right) in pixels, bottom and right out: where the partner is seen; None: they are blended."""

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """(partner, weight): what `DistillBatch.mix` holds."""
        return self.partner, self.weight

    def to(self, device: torch.device) -> "Mix":
        """The same on a device."""
        return replace(self, partner=self.partner.to(device), weight=self.weight.to(device))

    def images(self, images_B3HW: Tensor) -> Tensor:
        """The mixed images, [B, 3, H, W] of the dtype (floating) and on the device of those given."""
        partner_B = self.partner.to(images_B3HW.device)
        if self.box is not None:
            top, bottom, left, right = self.box
            cut_B3HW = images_B3HW.clone()
            cut_B3HW[:, :, top:bottom, left:right] = images_B3HW[:, :, top:bottom, left:right][partner_B]
            return cut_B3HW
        weight_B111 = self.weight.to(images_B3HW)[:, None, None, None]
        return weight_B111 * images_B3HW + (1 - weight_B111) * images_B3HW[partner_B]
