"""From the patches of a vision transformer to a finer map, which the masks are read from.

Legend: B batch, D channels, h w cells before and after. Maps have their channels last, because each step but one works
on the channels of a cell.
"""

from collections.abc import Callable

from torch import Tensor, nn


class UpscaleBlock(nn.Module):
    """Each cell becomes two by two cells, which then see their neighbours, channel by channel."""

    def __init__(self, dim: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.activation = activation
        self.mix = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """[B, h, w, D] -> [B, 2h, 2w, D]"""
        x_BDhw = self.activation(self.enlarge(x_BhwD.permute(0, 3, 1, 2)))
        result: Tensor = self.norm(self.mix(x_BDhw).permute(0, 2, 3, 1))
        return result
