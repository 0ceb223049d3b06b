"""Random flips, rotations, scales, shifts and colours of a batch, on its device."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from posepipe.tasks import Task

MAX_ROTATION = math.radians(30)
SCALES = (0.75, 1.25)
MAX_SHIFT = 0.05  # of the side
MAX_CONTRAST = 0.3
MAX_TINT = 0.1  # of each channel


def augment(
    pixels: Tensor, points: Tensor, task: Task, generator: torch.Generator, place: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """One batched affine warp and a change of contrast and colour.

    Args:
        pixels: (N, 3, S, S) in [0, 255].
        points: (N, num_points, 2) crop px, NaN where there is no label.
        task: says which point of a mirrored picture is which; the box of a turned head keeps its sides.
        generator: on the CPU, so that every device draws the same.
        place: (rank, world): these are the rows rank, rank + world, … of a global batch; each row is drawn the same whatever the world.

    Returns:
        Float pixels in [0, 255], black where the crop is left, and the points that lie under them.
    """
    size, device = pixels.shape[-1], pixels.device
    rank, world = place
    # One row of numbers per row of the global batch, drawn in one go: the first rows do not depend on how many follow.
    drawn = torch.rand((rank + world * (len(pixels) - 1) + 1, 10), generator=generator)[rank::world].to(device)
    columns = iter(drawn.unbind(dim=1))

    def draw(low: float, high: float, *shape: int) -> Tensor:
        """(N, *shape) uniform numbers."""
        values = torch.stack([next(columns) for _ in range(math.prod(shape))], dim=-1)
        return (low + (high - low) * values).view(-1, *shape)

    angle, scale, shift = draw(-MAX_ROTATION, MAX_ROTATION).view(-1), draw(*SCALES).view(-1), draw(-MAX_SHIFT, MAX_SHIFT, 2) * size
    is_flipped = draw(0, 1).view(-1) < 0.5
    mirror = torch.where(is_flipped, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    forward = torch.stack([torch.stack([cos * mirror, -sin], -1), torch.stack([sin * mirror, cos], -1)], -2)
    inverse = torch.linalg.inv(forward)
    # grid_sample asks where each output pixel comes from, in units of half a side from the middle.
    offset = -(inverse @ shift[..., None]) * 2 / size
    grid = F.affine_grid(torch.cat([inverse, offset], dim=-1), list(pixels.shape), align_corners=False)
    warped = F.grid_sample(pixels.float(), grid, align_corners=False)
    gain = draw(1 - MAX_CONTRAST, 1 + MAX_CONTRAST, 1, 1, 1) * draw(1 - MAX_TINT, 1 + MAX_TINT, 3, 1, 1)
    warped = (warped * gain).clamp_(0, 255)

    middle = (size - 1) / 2
    ordered = torch.where(is_flipped[:, None, None], points[:, list(task.flip_order)], points)
    if task.is_box:
        centre = ordered.mean(dim=1, keepdim=True)
        half = (ordered[:, 1:] - centre).abs() * scale[:, None, None]
        centre = (centre - middle) @ forward.mT + shift[:, None] + middle
        return warped, torch.cat([centre - half, centre + half], dim=1)
    return warped, (ordered - middle) @ forward.mT + shift[:, None] + middle
