"""Paints one figure: limbs, torso, head and clothes."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from posepipe.figure import FOREARM, HEAD, SHIN, THIGH, TORSO, TORSO_CONTOUR, UPPER_ARM, Colour, Figure, FloatArray, Look, shade
from posepipe.skeleton import HEAD_TOP, JOINT, PELVIS, THORAX, UPPER_NECK


class Brush:
    """Paints a region of a picture at twice its resolution, and who owns each pixel in a map of the picture's size."""

    def __init__(self, picture: Image.Image, owners: Image.Image, box: ArrayLike) -> None:
        """
        Args:
            picture: RGB.
            owners: mode L, the same size.
            box: (4,) image px; what is painted outside of it is lost.
        """
        x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
        self._box = (max(int(x1) - 2, 0), max(int(y1) - 2, 0), min(int(x2) + 3, picture.width), min(int(y2) + 3, picture.height))
        self._picture = picture
        left, top, right, bottom = self._box
        self._is_empty = right <= left or bottom <= top
        size = (1, 1) if self._is_empty else (2 * (right - left), 2 * (bottom - top))
        # Doubling pixels and averaging four gives the same pixels back, so only what is painted changes.
        self._region = picture.resize(size, Image.Resampling.NEAREST, box=None if self._is_empty else self._box)
        self._draw, self._draw_owner = ImageDraw.Draw(self._region), ImageDraw.Draw(owners)

    def polygon(self, points: FloatArray, colour: Colour, owner: int | None = None) -> None:
        """Fills a polygon of (K, 2) image px."""
        doubled = 2 * (points - self._box[:2]) + 0.5
        self._draw.polygon(doubled.ravel().tolist(), fill=colour)
        if owner is not None:
            self._draw_owner.polygon(points.ravel().tolist(), fill=owner)

    def ellipse(self, center: FloatArray, first: FloatArray, second: FloatArray, colour: Colour, owner: int | None = None) -> None:
        """Fills the ellipse with the conjugate half axes `first` and `second`, image px."""
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)[:, None]
        self.polygon(center + np.cos(angles) * first + np.sin(angles) * second, colour, owner)

    def capsule(
        self, start: FloatArray, end: FloatArray, start_radius: float, end_radius: float, colour: Colour, owner: int | None = None
    ) -> None:
        """Fills what a circle sweeps that moves from `start` to `end` and changes its radius."""
        along = end - start
        heading = np.arctan2(along[1], along[0])
        arc = np.linspace(np.pi / 2, 3 * np.pi / 2, 12) + heading
        circle = np.stack([np.cos(arc), np.sin(arc)], axis=1)
        self.polygon(np.concatenate([start + start_radius * circle, end - end_radius * circle]), colour, owner)

    def limb(self, start: FloatArray, end: FloatArray, start_radius: float, end_radius: float, colour: Colour, owner: int) -> None:
        """A capsule with a darker rim and light from the upper left."""
        self.capsule(start, end, start_radius, end_radius, shade(colour, 0.7), owner)
        self.capsule(start, end, 0.84 * start_radius, 0.84 * end_radius, colour)
        light = np.array((-0.22, -0.22))
        self.capsule(start + light * start_radius, end + light * end_radius, 0.42 * start_radius, 0.42 * end_radius, shade(colour, 1.12))

    def disc(self, center: FloatArray, radius: float, colour: Colour, owner: int | None = None) -> None:
        self.ellipse(center, np.array((radius, 0.0)), np.array((0.0, radius)), colour, owner)

    def box(self, corners: ArrayLike, colour: Colour, owner: int | None = None) -> None:
        """Fills the upright rectangle x1, y1, x2, y2, image px."""
        x1, y1, x2, y2 = np.asarray(corners, dtype=np.float64)
        self.polygon(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]), colour, owner)

    def finish(self) -> None:
        """Puts the region back into the picture."""
        if not self._is_empty:
            self._picture.paste(self._region.reduce(2), self._box[:2])


def draw_figure(brush: Brush, figure: Figure, look: Look, origin: ArrayLike, height: float, first_owner: int) -> None:
    """Draws a person, the parts that are farther from the viewer first.

    Args:
        brush: covers the person's outline.
        figure: the pose.
        look: the clothes.
        origin: (2,) the pelvis in image px.
        height: image px per standing height.
        first_owner: part p is entered in the owner map as `first_owner + p`.
    """
    place = np.array((*np.asarray(origin, dtype=np.float64), 0.0))
    px = {name: height * points + place for name, points in vars(figure).items() if name in ("joints", "hands", "toes", "heels")}
    depth = figure.joints[:, 2]
    parts: list[tuple[float, int, int]] = [
        (depth[[PELVIS, THORAX]].mean(), TORSO, 0),
        (depth[[UPPER_NECK, HEAD_TOP]].mean() + 0.02, HEAD, 0),
    ]
    for side, name in enumerate(("right", "left")):
        for part, (start, end) in {
            UPPER_ARM: ("shoulder", "elbow"),
            FOREARM: ("elbow", "wrist"),
            THIGH: ("hip", "knee"),
            SHIN: ("knee", "ankle"),
        }.items():
            mean = depth[[JOINT[f"{name}_{start}"], JOINT[f"{name}_{end}"]]].mean()
            # The shirt hangs over the trousers and an arm beside the body rests on it.
            parts.append((mean + {THIGH: -0.05, SHIN: -0.06}.get(part, 0.015), part, side))
    for _, part, side in sorted(parts):
        if part == TORSO:
            _draw_torso(brush, figure, look, px["joints"], height, first_owner + TORSO)
        elif part == HEAD:
            _draw_head(brush, figure, look, px["joints"], first_owner + HEAD)
        else:
            _draw_limb(brush, look, {name: points[..., :2] for name, points in px.items()}, height * look.girth, part, side, first_owner)


def _draw_limb(brush: Brush, look: Look, px: dict[str, FloatArray], unit: float, part: int, side: int, first_owner: int) -> None:
    name, owner = ("right", "left")[side], first_owner + part - 1 + side

    def at(joint: str) -> FloatArray:
        return px["joints"][JOINT[f"{name}_{joint}"]]

    if part == UPPER_ARM:
        brush.limb(at("shoulder"), at("elbow"), 0.033 * unit, 0.025 * unit, look.skin if look.sleeve == 0 else look.shirt, owner)
        if look.sleeve == 0.5:
            cuff = 0.7 * at("elbow") + 0.3 * at("shoulder")
            brush.limb(cuff, at("elbow"), 0.024 * unit, 0.023 * unit, look.skin, owner)
    elif part == FOREARM:
        brush.limb(at("wrist"), px["hands"][side], 0.017 * unit, 0.02 * unit, look.skin, owner)
        brush.limb(at("elbow"), at("wrist"), 0.0245 * unit, 0.0175 * unit, look.shirt if look.sleeve == 1 else look.skin, owner)
        if name == "left":
            band = 0.12 * (at("elbow") - at("wrist"))
            brush.capsule(at("wrist") + band, at("wrist") + 0.3 * band, 0.019 * unit, 0.019 * unit, look.accent, owner)
    elif part == THIGH:
        brush.limb(at("hip"), at("knee"), 0.054 * unit, 0.036 * unit, look.legs if look.trousers == 1 else look.skin, owner)
        if look.trousers != 1:
            brush.limb(at("hip"), 0.35 * at("hip") + 0.65 * at("knee"), 0.057 * unit, 0.05 * unit, look.legs, owner)
    else:
        brush.limb(px["heels"][side], px["toes"][side], 0.02 * unit, 0.017 * unit, look.shoes, owner)
        brush.limb(at("knee"), at("ankle"), 0.036 * unit, 0.021 * unit, look.legs if look.trousers == 1 else look.skin, owner)


def _draw_torso(brush: Brush, figure: Figure, look: Look, joints: FloatArray, height: float, owner: int) -> None:
    """Elliptical cross sections along the spine give a contour that is right from every side."""
    pelvis, thorax = joints[PELVIS, :2], joints[THORAX, :2]
    spine = thorax - pelvis
    levels = np.linspace(TORSO_CONTOUR[0, 0], TORSO_CONTOUR[-1, 0], 24)
    widths, depths = (height * look.girth * np.interp(levels, TORSO_CONTOUR[:, 0], TORSO_CONTOUR[:, column]) for column in (1, 2))
    across = np.array((-spine[1], spine[0])) / max(np.hypot(*spine), 1e-6)
    blend = np.clip(levels, 0, 1)[:, None, None]
    axes = figure.torso_axes[0] * (1 - blend) + figure.torso_axes[1] * blend
    left, forward = axes[:, 0, :2], axes[:, 2, :2]
    reach = np.hypot(widths * (left @ across), depths * (forward @ across))[:, None] * across
    middle = pelvis + levels[:, None] * spine
    # Foreshortened, the ends are as thick as the body is deep.
    if np.hypot(*spine) < 0.2 * height:
        middle[[0, -1]] = middle[[1, -2]]

    def fill(low: float, high: float, factor: float, shift: float, colour: Colour, owner: int | None = None) -> None:
        chosen = (levels >= low) & (levels <= high)
        center = middle[chosen] + shift * reach[chosen]
        contour = np.concatenate([center + factor * reach[chosen], (center - factor * reach[chosen])[::-1]])
        brush.polygon(contour, colour, owner)

    def surface(sideways: float, level: float) -> FloatArray:
        """A point on the chest: `sideways` -1 to 1 of the half width to the person's left."""
        row = int(np.argmin(np.abs(levels - level)))
        bulge = np.sqrt(max(1 - sideways**2, 0.0))
        return middle[row] + sideways * widths[row] * left[row] + bulge * depths[row] * forward[row]

    brush.capsule(thorax, joints[UPPER_NECK, :2], 0.04 * height, 0.032 * height, shade(look.skin, 0.8), owner)
    fill(-1, 2, 1.0, 0.0, shade(look.legs, 0.7), owner)
    fill(-1, 0.12, 0.86, 0.0, look.legs)
    fill(0.04, 1.03, 1.0, 0.0, shade(look.shirt, 0.7))
    fill(1.0, 2, 1.0, 0.0, look.skin)
    fill(0.06, 1.03, 0.86, 0.0, look.accent if look.pattern == "sides" else look.shirt)
    if look.pattern == "sides":
        fill(0.06, 1.03, 0.55, 0.0, look.shirt)
    if look.pattern == "stripes":
        for low in (0.15, 0.4, 0.65, 0.9):
            fill(low, low + 0.14, 0.86, 0.0, look.accent)
    else:
        bright = float(np.sign(across[0] + across[1]) or 1)
        fill(0.1, 0.98, 0.3, -0.35 * bright, shade(look.shirt, 1.12))
    if figure.facing > 0.2:
        brush.polygon(np.array([surface(-0.42, 1.04), surface(0.42, 1.04), surface(0, 0.8)]), look.skin)
        brush.polygon(np.array([surface(x, y) for x, y in ((0.2, 0.8), (0.62, 0.8), (0.6, 0.62), (0.2, 0.62))]), look.accent)


def _draw_head(brush: Brush, figure: Figure, look: Look, joints: FloatArray, owner: int) -> None:
    """A face in front, hair behind: what tells a front view from a back view, and so left from right."""
    neck, top = joints[UPPER_NECK, :2], joints[HEAD_TOP, :2]
    up = top - neck
    bone = float(np.hypot(*up))
    across = np.array((-up[1], up[0]))
    left, forward = bone * figure.head_axes[0], bone * figure.head_axes[2]
    front = forward[2] / bone
    skull = neck + 0.555 * up
    half_width = across * np.hypot(0.315 * left[:2] @ across, 0.36 * forward[:2] @ across) / bone**2

    brush.capsule(neck - 0.25 * up, skull - 0.2 * up, 0.2 * bone, 0.2 * bone, shade(look.skin, 0.82), owner)
    if look.hair_style == "long":
        for sign in (-1, 1):
            strand = skull + 0.2 * sign * half_width - 0.14 * forward[:2] * (front < 0.5)
            reach = 0.95 if front < 0 else 0.62
            spread = 0.75 if front > 0 else 0.35
            brush.limb(
                strand + spread * sign * half_width,
                strand + spread * sign * half_width - reach * up,
                0.14 * bone,
                0.11 * bone,
                look.hair,
                owner,
            )
        if front < 0:
            brush.limb(skull, skull - 0.9 * up - 0.1 * forward[:2], 0.3 * bone, 0.24 * bone, look.hair, owner)
    brush.ellipse(skull, 0.475 * up, half_width, shade(look.hair, 0.8), owner)
    brush.ellipse(skull + 0.02 * up, 0.43 * up, 0.9 * half_width, look.hair)
    for sign in (-1, 1):
        ear = skull + 0.31 * sign * left[:2] - 0.06 * up
        if sign * left[2] / bone > -0.25 and (look.hair_style != "long" or front > 0.6):
            brush.ellipse(ear, 0.075 * up, 0.045 * across, shade(look.skin, 0.85), owner)
    if front < -0.3:
        brush.ellipse(skull - 0.4 * up, 0.09 * up, 0.5 * half_width, look.hair if look.hair_style == "long" else shade(look.skin, 0.85))
    else:
        jaw = skull + 0.16 * forward[:2] - 0.1 * up
        brush.ellipse(jaw, 0.375 * up, (0.215 + 0.065 * front) * across, shade(look.skin, 0.9), owner)
        brush.ellipse(jaw - 0.01 * up, 0.35 * up, (0.19 + 0.065 * front) * across, look.skin)
        for sign in (-1, 1):
            if 0.4 * sign * left[2] / bone + 0.9 * front > 0.15:
                eye = skull + 0.13 * sign * left[:2] + 0.29 * forward[:2]
                brush.ellipse(eye, 0.05 * up, 0.062 * across, (250, 250, 248))
                brush.ellipse(eye + 0.02 * forward[:2], 0.042 * up, 0.034 * across, (30, 24, 22))
                brush.ellipse(eye + 0.09 * up, 0.018 * up, 0.08 * across, look.hair)
        nose = skull + 0.37 * forward[:2] - 0.1 * up
        brush.ellipse(nose, 0.08 * up, 0.04 * across, shade(look.skin, 0.75))
        brush.ellipse(skull + 0.29 * forward[:2] - 0.26 * up, 0.025 * up, (0.05 + 0.07 * max(front, 0.0)) * across, (168, 60, 58))
    if look.hair_style == "cap":
        brush.ellipse(skull + 0.24 * up - 0.02 * forward[:2], 0.24 * up, 1.05 * half_width, look.accent, owner)
        brim = skull + 0.18 * up + 0.3 * forward[:2]
        if front > -0.3:
            visor = 0.2 * forward[:2] - 0.03 * up
            brush.polygon(
                np.array([brim + 0.26 * left[:2], brim + 0.16 * left[:2] + visor, brim - 0.16 * left[:2] + visor, brim - 0.26 * left[:2]]),
                shade(look.accent, 0.7),
                owner,
            )
            brush.capsule(brim + 0.2 * left[:2], brim - 0.2 * left[:2], 0.06 * bone, 0.06 * bone, shade(look.accent, 0.7), owner)
