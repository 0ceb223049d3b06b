"""Draws one picture of people, clutter and what hides them, with its labels.

Coordinates are 0-based image px.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from posepipe import figure as figures
from posepipe.figure import HEAD_BONE, NUM_PARTS, Figure, Look
from posepipe.painting import Brush, draw_figure
from posepipe.skeleton import HEAD_TOP, JOINT_NAMES, NUM_JOINTS, PELVIS, UPPER_NECK

FloatArray = NDArray[np.float64]

_SIZES = ((1280, 720), (1920, 1080), (640, 480))
_OCCLUDER = 255
"""In the owner map: neither background nor a person."""


@dataclass(frozen=True)
class SyntheticPerson:
    """The labels of one person, as MPII has them.

    Attributes:
        joints: (16, 2) image px (0-based), NaN where not annotated; whole px but for upper neck and head top.
        is_visible: (16,) false where something hides the joint or it lies outside the picture; says nothing of unannotated joints.
        head_box: (4,) image px (0-based), whole px. Upper neck and head top are symmetric about its centre, 0.8 of its diagonal apart.
        scale: person height / 200 px, by MPII's rule 0.6 * diagonal / 25.
        objpos: (2,) image px (0-based), whole px: centre of the annotated joints' bounding box.
        facing: 1 chest towards the viewer, 0 side, -1 back. Right and left are the person's own.
        activity: one of `figure.ACTIVITIES`.
    """

    joints: FloatArray
    is_visible: NDArray[np.bool_]
    head_box: FloatArray
    scale: float
    objpos: FloatArray
    facing: float
    activity: str


@dataclass(frozen=True)
class SyntheticImage:
    """A picture (RGB) and its people, from the farthest to the nearest."""

    picture: Image.Image
    people: tuple[SyntheticPerson, ...]


@dataclass(frozen=True)
class _Placed:
    """A person's place: the pelvis in image px and image px per standing height."""

    figure: Figure
    look: Look
    origin: FloatArray
    height: float

    @property
    def box(self) -> FloatArray:
        """(4,) image px around everything drawn."""
        return self.figure.outline * self.height + np.tile(self.origin, 2)


def draw_image(seed: int) -> SyntheticImage:
    """Draws one picture; equal seeds give equal pictures.

    About three of four pictures show one person, the others two or three; one in fifty shows nobody.
    """
    rng = np.random.default_rng(seed)
    width, height = _SIZES[rng.choice(len(_SIZES), p=(0.75, 0.1, 0.15))]
    num_people = int(rng.choice(4, p=(0.02, 0.74, 0.16, 0.08)))
    people = sorted((_place(rng, width, height, slot, num_people) for slot in range(num_people)), key=lambda person: person.box[3])
    picture = _draw_background(rng, width, height, people)
    owners = Image.new("L", (width, height))
    for index, person in enumerate(people):
        brush = Brush(picture, owners, person.box)
        draw_figure(brush, person.figure, person.look, person.origin, person.height, 1 + NUM_PARTS * index)
        brush.finish()
    for person in people:
        if rng.random() < 0.35:
            _draw_occluder(rng, picture, owners, person)
    grain = Image.frombytes("L", (width, height), rng.bytes(width * height))
    picture = Image.blend(picture, Image.merge("RGB", (grain,) * 3), float(rng.uniform(0.01, 0.07)))
    owner_map = np.asarray(owners)
    labels = [_label(rng, person, owner_map, 1 + NUM_PARTS * index) for index, person in enumerate(people)]
    return SyntheticImage(picture, tuple(labels))


def _place(rng: np.random.Generator, width: int, height: int, slot: int, num_slots: int) -> _Placed:
    """Poses a person and puts it into its slot of the picture, the head always inside."""
    figure, look = figures.sample_figure(rng), figures.sample_look(rng)
    left, top, right, bottom = figure.outline
    size = float(rng.uniform(0.25, 0.9 if num_slots == 1 else 0.65)) * height
    size = min(size, 0.96 * height / (bottom - top), 0.96 * width / (right - left))
    low = np.array((-left, -top)) * size
    high = np.array((width, height)) - np.array((right, bottom)) * size
    # People stand on the ground more often than they fly: the lower end of the free range is likelier.
    origin = low + (high - low) * np.array((rng.random(), rng.beta(2.5, 1.2)))
    if num_slots > 1:
        middle = (slot + 0.5 + rng.uniform(-0.2, 0.2)) * width / num_slots
        origin[0] = np.clip(middle - size * (left + right) / 2, low[0], high[0])
    if rng.random() < 0.12:
        direction = ((-1, 0), (1, 0), (0, 1))[rng.integers(3)]
        edge = np.where(np.array(direction) > 0, high, low)
        cut = edge + rng.uniform(0.1, 0.4) * size * np.array((right - left, bottom - top)) * direction
        origin = np.where(np.array(direction) != 0, cut, origin)
        head = figure.joints[[UPPER_NECK, HEAD_TOP], :2] * size
        margin = 0.8 * HEAD_BONE * size
        origin = np.clip(origin, margin - head.min(axis=0), np.array((width, height)) - 1 - margin - head.max(axis=0))
    return _Placed(figure, look, origin, size)


def _draw_background(rng: np.random.Generator, width: int, height: int, people: Sequence[_Placed]) -> Image.Image:
    """A blurred scene: two fields of smoothed noise that meet at a horizon, clutter, and the people's shadows.

    It is drawn at half size: a background out of focus has no sharp edges, and it takes a quarter of the time.
    """
    wide, high = width // 2, height // 2
    scene = _smooth_noise(rng, wide, high)
    horizon = int(high * rng.uniform(0.35, 0.85))
    scene.paste(_smooth_noise(rng, wide, high - horizon), (0, horizon))
    draw = ImageDraw.Draw(scene)
    palette = [figures.sample_colour(rng, saturation=(0.0, 0.7), value=(0.1, 0.95)) for _ in range(5)]
    for _ in range(int(rng.integers(4, 26))):
        colour = figures.shade(palette[rng.integers(len(palette))], rng.uniform(0.7, 1.2))
        x, y = rng.uniform(0, wide), rng.uniform(0, high)
        a, b = rng.uniform(0.02, 0.16, 2) * high
        kind = rng.integers(5)
        if kind == 0:
            draw.rectangle((x - 1.5 * a, horizon - 4 * b, x + 1.5 * a, horizon + b), fill=colour)
            draw.rectangle((x - a, horizon - 3 * b, x - 0.3 * a, horizon - 2 * b), fill=figures.shade(colour, 1.4))
        elif kind == 1:
            draw.line((x, -5, x + rng.normal(0, 0.1) * high, high + 5), fill=colour, width=2 + int(0.15 * a))
        elif kind == 2:
            draw.ellipse((x - a, y - b, x + a, y + b), fill=colour)
        elif kind == 3:
            draw.polygon((rng.uniform(-2, 2, (5, 2)) * (a, b) + (x, y)).ravel().tolist(), fill=colour)
        else:
            draw.line((x, y, x + 3 * a, y - 2 * b), fill=colour, width=max(int(0.4 * b), 2))
            draw.ellipse((x + 3 * a - b, y - 3 * b, x + 3 * a + b, y - b), fill=figures.shade(colour, 0.8))
    for person in people:
        feet = (np.concatenate([person.figure.toes, person.figure.heels])[:, :2] * person.height + person.origin) / 2
        x, y = feet[:, 0].mean(), feet[:, 1].max()
        reach = 0.06 * person.height + (feet[:, 0].max() - feet[:, 0].min()) / 2
        ground = cast(tuple[int, int, int], scene.getpixel((int(np.clip(x, 0, wide - 1)), int(np.clip(y, 0, high - 1)))))
        draw.ellipse((x - reach, y - 0.02 * person.height, x + reach, y + 0.012 * person.height), fill=figures.shade(ground, 0.55))
        seat = (person.figure.joints[PELVIS, :2] * person.height + person.origin) / 2 + (0, 0.02 * person.height)
        if person.figure.activity == "sitting" and y > seat[1]:
            half = 0.07 * person.height
            draw.rectangle((seat[0] - half, seat[1], seat[0] + half, y), fill=figures.shade(palette[0], 0.8))
    scene = scene.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 2.5))))
    return scene.resize((width, height), Image.Resampling.BILINEAR)


def _smooth_noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Random light around one colour, from coarse to fine."""
    base = np.array(figures.sample_colour(rng, saturation=(0.02, 0.4), value=(0.25, 0.95)), dtype=np.float64)
    fields = []
    for cells, strength in ((3, 26), (9, 9), (40, 5)):
        noise = base / 3 + rng.normal(0, strength, (cells, 2 * cells, 1)) + rng.normal(0, 0.25 * strength, (cells, 2 * cells, 3))
        small = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        fields.append(small.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC))
    return functools.reduce(ImageChops.add, fields)


def _draw_occluder(rng: np.random.Generator, picture: Image.Image, owners: Image.Image, person: _Placed) -> None:
    """Something in front of a person, never in front of the head: a counter, a pole, a bush or a ball."""
    x1, _, x2, y2 = person.box
    height = person.height
    head = person.figure.joints[[UPPER_NECK, HEAD_TOP], :2] * height + person.origin
    below_head = head[:, 1].max() + 0.2 * height
    colour = figures.sample_colour(rng, saturation=(0.05, 0.7), value=(0.15, 0.8))
    kind = rng.choice(("counter", "pole", "bush", "ball"), p=(0.4, 0.2, 0.25, 0.15))
    x, top, bottom = rng.uniform(x1, x2), max(below_head, y2 - rng.uniform(0.12, 0.45) * height), y2 + 0.1 * height
    brush = Brush(picture, owners, (x1 - 0.5 * height, 0 if kind == "pole" else top - 0.2 * height, x2 + 0.5 * height, bottom))
    if kind == "counter":
        reach = rng.uniform(0.2, 0.5) * height
        brush.box((x - reach, top, x + reach, bottom), colour, _OCCLUDER)
        brush.box((x - reach, top + 0.03 * height, x + reach, bottom), figures.shade(colour, 0.8))
    elif kind == "pole":
        half = 0.018 * height
        if abs(x - head[:, 0].mean()) < HEAD_BONE * height + half:
            x = head[:, 0].mean() + 1.2 * HEAD_BONE * height
        brush.box((x - half, -5, x + half, bottom), colour, _OCCLUDER)
        brush.box((x - 0.7 * half, -5, x + 0.1 * half, bottom), figures.shade(colour, 1.2))
    elif kind == "bush":
        for leaf_x, leaf_y in rng.normal((x, (top + y2) / 2 + 0.05 * height), (0.1 * height, 0.05 * height), (16, 2)):
            radius = rng.uniform(0.03, 0.08) * height
            green = figures.shade((60, 120, 50), rng.uniform(0.5, 1.3))
            brush.disc(np.array((leaf_x, max(leaf_y, below_head + radius))), radius, green, _OCCLUDER)
    else:
        radius = rng.uniform(0.05, 0.1) * height
        center = np.array((x, max(rng.uniform(top, y2), below_head + radius)))
        brush.disc(center, radius, figures.shade(colour, 0.75), _OCCLUDER)
        brush.disc(center - 0.1 * radius, 0.8 * radius, colour)
    brush.finish()


def head_box(upper_neck: ArrayLike, head_top: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The head rectangle as MPII has it, and the two joints that follow from it.

    Args:
        upper_neck, head_top: (2,) image px.

    Returns:
        x1, y1, x2, y2 in whole px, and (2, 2) upper neck and head top: 0.8 diagonals apart about its centre, along the head's axis.
    """
    neck, top = np.asarray(upper_neck, dtype=np.float64), np.asarray(head_top, dtype=np.float64)
    bone = float(np.hypot(*(top - neck)))
    axis = (top - neck) / bone
    # An upright ellipse with half axes 0.54 and 0.315 bones has a bounding box with a diagonal of 1.25 bones, at every angle.
    half = bone * np.hypot(0.54 * axis, 0.315 * axis[::-1])
    middle = (neck + top) / 2
    box = np.round(np.concatenate([middle - half, middle + half]))
    reach = 0.4 * np.hypot(*(box[2:] - box[:2])) * axis
    center = (box[:2] + box[2:]) / 2
    return box, np.stack([center - reach, center + reach])


def _label(rng: np.random.Generator, person: _Placed, owners: NDArray[np.uint8], first_owner: int) -> SyntheticPerson:
    """Looks up what is on top at every joint; hidden joints lose their label now and then, ankles and knees more often."""
    height, width = owners.shape
    exact = person.figure.joints[:, :2] * person.height + person.origin
    box, ends = head_box(exact[UPPER_NECK], exact[HEAD_TOP])
    joints = np.round(exact)
    joints[[UPPER_NECK, HEAD_TOP]] = np.round(ends, 4)
    is_visible = np.zeros(NUM_JOINTS, dtype=bool)
    for joint, (x, y) in enumerate(np.round(exact).astype(int)):
        is_inside = 0 <= x < width and 0 <= y < height
        owner = int(owners[y, x]) if is_inside else _OCCLUDER
        is_visible[joint] = owner - first_owner in figures.seen_on(person.figure, joint)
        if is_inside:
            legs = {"ankle": 0.6, "knee": 0.45}.get(JOINT_NAMES[joint].split("_")[-1], 0.12)
            is_lost = owner == _OCCLUDER and rng.random() < legs
        else:
            is_far = max(-x, x - width, -y, y - height) > 0.05 * height
            is_lost = is_far or rng.random() < 0.7
        if is_lost and joint not in (UPPER_NECK, HEAD_TOP):
            joints[joint] = np.nan
    objpos = np.round((np.nanmin(joints, axis=0) + np.nanmax(joints, axis=0)) / 2)
    scale = 0.6 * float(np.hypot(*(box[2:] - box[:2]))) / 25
    return SyntheticPerson(joints, is_visible, box, scale, objpos, person.figure.facing, person.figure.activity)
