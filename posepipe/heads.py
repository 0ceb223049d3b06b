"""What is regressed and how: targets, loss, decode, confidence (direct, paper, rle, simcc, heatmap, unet).

A regression head turns the backbone's feature maps into K points. All of them share one seam:

* `forward(features)`: feature maps, the coarsest last -> the raw output.
* `loss(output, target, is_valid)`: trains it on points (N, K, 2) in crop px; a sum over valid points, and their number.
* `decode(output)`: points (N, K, 2) in crop px and, where the head knows it, a confidence (N, K) in [0, 1].
* `mirror(output, flip_order)` and `average(outputs)`: the output of a mirrored crop as one of the crop itself, and the mean of several.
"""

import functools
from collections.abc import Callable

from torch import nn

from posepipe.coordinate_heads import DirectHead, LikelihoodHead, PaperHead
from posepipe.head_parts import HeadInput
from posepipe.map_heads import HeatmapHead, PlainDecoder, SimccHead, UnetDecoder

HEADS: dict[str, Callable[[HeadInput], nn.Module]] = {
    "direct": DirectHead,
    "paper": PaperHead,
    "rle": LikelihoodHead,
    "simcc": SimccHead,
    "heatmap": functools.partial(HeatmapHead, build_decoder=PlainDecoder),
    "unet": functools.partial(HeatmapHead, build_decoder=UnetDecoder),
}
"""name -> what builds it."""

NEED_MAPS = ("simcc", "heatmap", "unet")
"""Heads that need a backbone with a feature map."""
NEED_ALL_MAPS = ("unet",)
"""Heads that also look at the finer maps before the last one."""
