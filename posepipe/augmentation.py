"""Random flips, rotations, scales, shifts, half bodies, colours, blur and holes of a batch, on its device.

What is drawn for a row depends on the generator and the row's place in the global batch alone, so any number of workers draws the same.
Points and what is drawn stay on the CPU, where a few numbers are computed sooner than a GPU is told to; pixels stay where they are.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from posepipe.batches import send
from posepipe.skeleton import LOWER_BODY, UPPER_BODY
from posepipe.tasks import Task

MAX_ROTATION = math.radians(30)
SCALES = (0.75, 1.25)
MAX_SHIFT = 0.05  # of the side
# HRNet and mmpose: people with so many annotated joints, and a box 1.5 times as wide and high as what the half spans.
HALF_BODY_SHARE = 0.3
HALF_BODY_JOINTS = 8
HALF_BODY_PADDING = 1.5
MAX_ZOOM = 2.5  # of half bodies: there is no more to see in the stored pixels
MAX_CONTRAST = 0.3
MAX_TINT = 0.1  # of each channel
MAX_SATURATION = 0.4
LUMA = (0.299, 0.587, 0.114)
BLUR_SHARE = 0.2
BLURS = (0.5, 1.5)  # sigma, px
BLUR_REACH = 4  # px
HOLES_SHARE = 0.3  # has a hole, half of these two
HOLES = (0.1, 0.3)  # of the side
# Columns of the numbers that are drawn for a row.
WARP, RECOLOUR, BLUR, HOLE = slice(0, 7), slice(7, 12), slice(12, 14), slice(14, 29)
NUM_DRAWN = 29


def augment(
    pixels: Tensor,
    points: Tensor,
    task: Task,
    generator: torch.Generator,
    place: tuple[int, int] = (0, 1),
    margin: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """One batched affine warp, a change of colours, blur of some rows, rectangles over some.

    Args:
        pixels: (N, 3, height + 2 y, width + 2 x) in [0, 255], the crop with its margin, on any device.
        points: (N, num_points, 2) px of the crop without its margin, NaN where there is no label; on the CPU.
        task: says which point of a mirrored picture is which; the box of a turned head keeps its sides.
        generator: on the CPU, so that every device draws the same.
        place: (rank, world): these are the rows rank, rank + world, … of a global batch; each row is drawn the same whatever the world.
        margin: x and y, px on each side.

    Returns:
        Float pixels (N, 3, height, width) in [0, 255] on their device, black where what is stored is left, and the points that lie under
        them, on the CPU.
    """
    rank, world = place
    # One row of numbers per row of the global batch, drawn in one go: the first rows do not depend on how many follow.
    drawn = torch.rand((rank + world * (len(pixels) - 1) + 1, NUM_DRAWN), generator=generator)[rank::world]
    warped, moved = warp(pixels, points, task, drawn[:, WARP], margin)
    changed = recolour(warped, drawn[:, RECOLOUR])
    blur(changed, drawn[:, BLUR])
    hide(changed, drawn[:, HOLE])
    return changed, moved


def warp(pixels: Tensor, points: Tensor, task: Task, drawn: Tensor, margin: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flips, turns, scales and shifts; the rest as in `augment`.

    Args:
        pixels: (N, 3, height + 2 y, width + 2 x).
        points: (N, num_points, 2).
        task: of the points.
        drawn: (N, 7) in [0, 1): angle, scale, shift in x and y, flip, half body or not, which half.
        margin: x and y.
    """
    width, height = pixels.shape[-1] - 2 * margin[0], pixels.shape[-2] - 2 * margin[1]
    stored, size = (torch.tensor(sides, dtype=points.dtype) for sides in (pixels.shape[:1:-1], (width, height)))
    middle = (size - 1) / 2
    angle, scale = _between(drawn[:, 0], -MAX_ROTATION, MAX_ROTATION), _between(drawn[:, 1], *SCALES)
    shift, is_flipped = _between(drawn[:, 2:4], -MAX_SHIFT, MAX_SHIFT) * size, drawn[:, 4] < 0.5
    centre = middle.expand(len(pixels), 2)
    if not task.is_box:
        centre, scale = _aim_at_half_bodies(points, centre, scale, drawn[:, 5:7], size, stored)
    mirror = torch.where(is_flipped, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    forward = torch.stack([torch.stack([cos * mirror, -sin], -1), torch.stack([sin * mirror, cos], -1)], -2)
    inverse = forward.mT / (scale * scale)[:, None, None]
    # grid_sample asks where each pixel comes from: units of half the crop -> units of half of what is stored, from the middles of both.
    offset = (centre - middle - (inverse @ shift[..., None])[..., 0]) * 2 / stored
    linear = inverse * size / stored[:, None]
    across, down = (send((2 * torch.arange(side) + 1) / side - 1, pixels.device) for side in (width, height))
    linear, offset = send(linear, pixels.device), send(offset, pixels.device)
    # As F.affine_grid, but each coordinate lies together, which is written and read in half the time.
    grid = torch.addcmul((linear[:, :, 1:] * down + offset[..., None])[..., None], linear[:, :, :1, None], across)
    warped = F.grid_sample(pixels.float(), grid.permute(0, 2, 3, 1), align_corners=False)

    ordered = torch.where(is_flipped[:, None, None], points[:, list(task.flip_order)], points)
    if task.is_box:
        box_middle = ordered.mean(dim=1, keepdim=True)
        half = (ordered[:, 1:] - box_middle).abs() * scale[:, None, None]
        box_middle = (box_middle - centre[:, None]) @ forward.mT + shift[:, None] + middle
        return warped, torch.cat([box_middle - half, box_middle + half], dim=1)
    return warped, (ordered - centre[:, None]) @ forward.mT + shift[:, None] + middle


def _aim_at_half_bodies(
    points: Tensor, centre: Tensor, scale: Tensor, drawn: Tensor, size: Tensor, stored: Tensor
) -> tuple[Tensor, Tensor]:
    """The (N, 2) point that comes to the middle and the (N,) scale: of some people the upper or the lower body fills the crop.

    As in HRNet and mmpose, but the frame stays in the stored picture and does not zoom in beyond `MAX_ZOOM`.
    """
    is_known = points.isfinite().all(dim=-1)
    halves = torch.zeros((2, points.shape[1]), dtype=torch.bool)
    halves[0, list(UPPER_BODY)], halves[1, list(LOWER_BODY)] = True, True
    in_half = halves[(drawn[:, 1] < 0.5).long()] & is_known
    # A half of one or two joints says nothing of its size; HRNet takes the other one then.
    in_half = torch.where((in_half.sum(dim=1) > 2)[:, None], in_half, is_known & ~in_half)
    count = in_half.sum(dim=1)
    is_aimed = (drawn[:, 0] < HALF_BODY_SHARE) & (is_known.sum(dim=1) >= HALF_BODY_JOINTS) & (count > 2)
    chosen = in_half[..., None]
    mean = torch.where(chosen, points, 0.0).sum(dim=1) / count.clamp_min(1)[:, None]
    low, high = (torch.where(chosen, points, sign * math.inf) for sign in (1, -1))
    span = (HALF_BODY_PADDING * (high.amax(dim=1) - low.amin(dim=1))).clamp_min(1)
    zoom = (size / span).amin(dim=1) * scale
    zoom = zoom.clamp_max(MAX_ZOOM).maximum((size / stored).amax())
    room = ((stored - size / zoom[:, None]) / 2).clamp_min(0)
    aimed = centre + (mean - centre).maximum(-room).minimum(room)
    return torch.where(is_aimed[:, None], aimed, centre), torch.where(is_aimed, zoom, scale)


def recolour(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Changes saturation, contrast and tint; (N, 3, H, W) pixels in [0, 255], drawn (N, 5) in [0, 1) on the CPU."""
    drawn = drawn[..., None, None]
    saturation = _between(drawn[:, :1], 1 - MAX_SATURATION, 1 + MAX_SATURATION)
    gain = _between(drawn[:, 1:2], 1 - MAX_CONTRAST, 1 + MAX_CONTRAST) * _between(drawn[:, 2:], 1 - MAX_TINT, 1 + MAX_TINT)
    grey = pixels[:, :1] * LUMA[0]
    for channel in (1, 2):
        grey.add_(pixels[:, channel : channel + 1], alpha=LUMA[channel])
    # gain * (grey + saturation * (pixels - grey)), with as few passes over the pixels as there can be.
    of_pixels, of_grey = (send(gain * part, pixels.device) for part in (saturation, 1 - saturation))
    return (pixels * of_pixels).addcmul_(grey, of_grey).clamp_(0, 255)


def blur(pixels: Tensor, drawn: Tensor) -> None:
    """Blurs some rows in place, each by a Gaussian of its own width; (N, 3, H, W), drawn (N, 2) on the CPU: whether, and how much."""
    rows = (drawn[:, 0] < BLUR_SHARE).nonzero()[:, 0]
    if not len(rows):
        return
    steps = torch.arange(BLUR_REACH + 1)
    weights = torch.exp(-((steps / _between(drawn[rows, 1:], *BLURS)) ** 2) / 2)
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    weights = send(weights, pixels.device)[..., None, None, None]
    rows = send(rows, pixels.device)
    blurred = pixels[rows]
    for dim, pad in ((-1, (BLUR_REACH, BLUR_REACH, 0, 0)), (-2, (0, 0, BLUR_REACH, BLUR_REACH))):
        padded, side = F.pad(blurred, pad, mode="replicate"), blurred.shape[dim]
        # Sums of shifted pictures, not a convolution, whose rounding would depend on how many rows it is of.
        torch.mul(padded.narrow(dim, BLUR_REACH, side), weights[:, 0], out=blurred)
        both = torch.empty_like(blurred)
        for step in range(1, BLUR_REACH + 1):
            torch.add(padded.narrow(dim, BLUR_REACH - step, side), padded.narrow(dim, BLUR_REACH + step, side), out=both)
            blurred.addcmul_(both, weights[:, step])
    pixels.index_copy_(0, rows, blurred.clamp_(0, 255))


def hide(pixels: Tensor, drawn: Tensor) -> None:
    """Covers parts of some rows in place, with one or two rectangles of a random colour; (N, 3, H, W), drawn (N, 15) on the CPU."""
    height, width = pixels.shape[-2:]
    for number, share in enumerate((HOLES_SHARE, HOLES_SHARE / 2)):
        # The same draw decides on both: who has a second rectangle has a first.
        rows = (drawn[:, 0] < share).nonzero()[:, 0]
        of_hole = drawn[rows, 1 + 7 * number : 8 + 7 * number]
        edges = []
        for axis, side in enumerate((width, height)):
            place = (torch.arange(side) + 0.5) / side
            is_within = (place - of_hole[:, axis, None]).abs() < _between(of_hole[:, 2 + axis, None], *HOLES) / 2
            edges.append(torch.stack([is_within.int().argmax(dim=1), is_within.sum(dim=1)], dim=1).tolist())
        colours = send(255 * of_hole[:, 4:, None, None], pixels.device)
        for row, colour, (x, across), (y, down) in zip(rows.tolist(), colours, *edges, strict=True):
            pixels[row, :, y : y + down, x : x + across] = colour


def _between(drawn: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) -> numbers in [low, high)."""
    return low + (high - low) * drawn
