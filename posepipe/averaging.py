"""Predictions averaged over the mirrored crop, scaled views and several models.

The mirrored crop's raw output is mirrored back and averaged with the plain one before it is decoded. Scaled views and models give points,
which are averaged where each is known to be good: weighted by confidence where all of them have one, equally where not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from posepipe.models import PoseModel
from posepipe.tasks import TASKS, Task

Estimate = tuple[Tensor, Tensor | None]
"""Points (N, num_points, 2) and, where it is known, their confidence (N, num_points) in [0, 1]."""


def predict(model: PoseModel, pixels: Tensor, *, flip_test: bool = False, scales: Sequence[float] = (1.0,)) -> Estimate:
    """What a model says of a batch of crops: points in crop px.

    Args:
        model: in eval mode.
        pixels: (N, 3, H, W) in [0, 255], uint8 or float.
        flip_test: average with the mirrored crop; twice the forward passes.
        scales: average over the crop scaled about its centre by each of these, 1 being the crop as it is; so many times the forward passes.
    """
    task = TASKS[model.config.task]
    views = []
    for scale in sorted(scales):
        view = scale_crops(pixels, scale)
        points, confidence = _predict_both_sides(model, view, task) if flip_test else model.predict(view)
        if scale != 1:
            middle = torch.tensor([pixels.shape[-1] - 1, pixels.shape[-2] - 1], device=points.device) / 2
            points = middle + (points - middle) / scale
        views.append((points, confidence))
    return average(views, is_box=task.is_box)


def scale_crops(pixels: Tensor, scale: float) -> Tensor:
    """(N, 3, H, W) with all in it `scale` times as large, about the centre; black where the crop is left, floats unless scale is 1."""
    if scale == 1:
        return pixels
    # grid_sample asks where each output pixel comes from, in units of half a side from the middle; edges are -1 and 1, as in geometry.py.
    affine = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]], device=pixels.device).expand(len(pixels), 2, 3)
    return F.grid_sample(pixels.float(), F.affine_grid(affine, list(pixels.shape), align_corners=False), align_corners=False)


def _predict_both_sides(model: PoseModel, pixels: Tensor, task: Task) -> Estimate:
    """The flip test: two passes of N crops, so that no more memory is needed than for one."""
    mirrored = pixels.flip(-1)
    if task.is_box:
        points, confidence = model.predict(mirrored)
        points = torch.stack([pixels.shape[-1] - 1 - points[..., 0], points[..., 1]], dim=-1)
        return average([model.predict(pixels), (points, confidence)], is_box=True)
    head: Any = model.head
    return head.decode(head.average([model(pixels), head.mirror(model(mirrored), task.flip_order)]))


def average(estimates: Sequence[Estimate], *, is_box: bool) -> Estimate:
    """One estimate out of several of the same points; a single one stays as it is, bit for bit.

    Args:
        estimates: in one frame. Where all have a confidence, each point counts as much as its confidence, but equally where all are 0.
        is_box: the points are two corners. They are sorted first, so that x1 <= x2 and y1 <= y2 whatever has been mirrored.

    Returns:
        Points, and the mean of the confidences, None where not all have one.
    """
    if len(estimates) == 1:
        return estimates[0]
    if is_box:
        estimates = [_sort_corners(*estimate) for estimate in estimates]
    points = torch.stack([points for points, _ in estimates])
    known = [confidence for _, confidence in estimates if confidence is not None]
    if len(known) < len(estimates):
        return points.mean(dim=0), None
    confidence = torch.stack(known)
    total = confidence.sum(dim=0)
    weights = torch.where(total > 0, confidence / total, 1 / len(estimates))
    return (weights[..., None] * points).sum(dim=0), confidence.mean(dim=0)


def _sort_corners(points: Tensor, confidence: Tensor | None) -> Estimate:
    """Corners (N, 2, 2) as x1, y1, x2, y2, by the rule of geometry.points_to_box; one may be of both, so both have the mean confidence."""
    points = torch.stack([points.amin(dim=1), points.amax(dim=1)], dim=1)
    return points, None if confidence is None else confidence.mean(dim=1, keepdim=True).expand_as(confidence)
