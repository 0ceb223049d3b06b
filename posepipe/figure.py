"""Poses and dresses one articulated person.

A figure is posed in three dimensions and projected without perspective. Body axes: x to the person's left, y up, z forward. Figure
frame: x right, y down, depth towards the viewer, origin at the pelvis, unit = the person's standing height.
"""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posepipe.skeleton import HEAD_TOP, JOINT, NUM_JOINTS, PELVIS, THORAX, UPPER_NECK

FloatArray = NDArray[np.float64]
Colour = tuple[int, int, int]

ACTIVITIES = ("standing", "walking", "running", "sitting", "squatting", "bending", "wide stance", "kicking")

# Body parts as the owner map names them; a limb of the right side is one less than that of the left.
TORSO, HEAD, UPPER_ARM, FOREARM, THIGH, SHIN = 0, 1, 3, 5, 7, 9
NUM_PARTS = 10

# The part on which a joint is seen. Shoulders and hips are also seen on the torso, where it does not hide them.
_SEEN_ON: dict[str, tuple[int, ...]] = {
    "wrist": (FOREARM,),
    "elbow": (UPPER_ARM, FOREARM),
    "shoulder": (UPPER_ARM,),
    "hip": (THIGH,),
    "knee": (THIGH, SHIN),
    "ankle": (SHIN,),
}

# Lengths in standing heights: the head from crown to chin is 1 / 7.4 of it (0.93 of the bone from upper neck to head top).
HEAD_BONE = 0.146
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.172, 0.15, 0.245, 0.245
_SHOULDER, _HIP = 0.1, 0.058

# Torso contour: place along pelvis -> thorax, half width, half depth, all in standing heights except the first.
TORSO_CONTOUR = np.column_stack(
    [
        (-0.14, 0.0, 0.15, 0.4, 0.62, 0.82, 0.95, 1.02, 1.08),
        (0.05, 0.09, 0.088, 0.07, 0.08, 0.098, 0.104, 0.085, 0.045),
        (0.05, 0.066, 0.066, 0.054, 0.062, 0.064, 0.056, 0.048, 0.036),
    ]
)
_SKIN = ((255, 224, 196), (241, 194, 155), (224, 172, 128), (198, 134, 92), (161, 102, 66), (118, 74, 48), (84, 52, 36))
_HAIR = ((28, 22, 20), (62, 40, 26), (104, 68, 38), (166, 122, 66), (214, 180, 112), (140, 136, 134), (134, 58, 30))


@dataclass(frozen=True)
class Figure:
    """One posed person in the figure frame.

    Attributes:
        activity: one of `ACTIVITIES`, what the legs do.
        joints: (16, 3) x, y, depth.
        hands, toes, heels: (2, 3) right, left.
        torso_axes: (2, 3, 3) at pelvis and thorax; rows left, up, forward as x, y, depth.
        head_axes: (3, 3) rows left, up, forward.
    """

    activity: str
    joints: FloatArray
    hands: FloatArray
    toes: FloatArray
    heels: FloatArray
    torso_axes: FloatArray
    head_axes: FloatArray

    @property
    def facing(self) -> float:
        """How far the chest faces the viewer: 1 front, 0 side, -1 back."""
        return float(self.torso_axes[1, 2, 2])

    @property
    def outline(self) -> FloatArray:
        """x1, y1, x2, y2 of everything drawn."""
        points = np.concatenate([self.joints, self.hands, self.toes, self.heels])[:, :2]
        return np.concatenate([points.min(axis=0) - 0.05, points.max(axis=0) + 0.03])


def _turn(axis: str, degrees: float) -> FloatArray:
    """Rotation matrix of the body axes."""
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(np.radians(degrees))
    matrix[b, a] = np.sin(np.radians(degrees))
    matrix[a, b] = -matrix[b, a]
    return matrix


def _sample_legs(rng: np.random.Generator) -> tuple[str, float, list[tuple[float, float, float]]]:
    """Returns the activity, the torso's lean and per leg flexion, abduction and knee flexion, all in degrees."""
    activity = str(rng.choice(ACTIVITIES, p=(0.3, 0.2, 0.1, 0.12, 0.06, 0.05, 0.12, 0.05)))
    stride = rng.uniform(0.6, 1.3)
    lean, first, second = {
        "standing": (2, (2, 4, 3), (0, 4, 3)),
        "walking": (5, (24 * stride, 3, 8), (-18 * stride, 3, 18 * stride)),
        "running": (14, (58 * stride, 3, 65), (-26 * stride, 3, 50 * stride)),
        "sitting": (-3, (82, 9, 82), (86, 11, 86)),
        "squatting": (28, (95, 22, 112), (95, 22, 112)),
        "bending": (rng.uniform(40, 80), (10, 6, 10), (14, 6, 14)),
        "wide stance": (3, (8 * stride, 26 * stride, 12 * stride), (0, 22 * stride, 6)),
        "kicking": (-8, (65 * stride, 12, 20), (-3, 5, 6)),
    }[activity]
    legs = [tuple(np.add(leg, rng.normal(0, (5, 2.5, 5)))) for leg in (first, second)]
    if rng.random() < 0.5:
        legs.reverse()
    return activity, lean + rng.normal(0, 4), [(flexion, max(abduction, 0.0), max(knee, 1.0)) for flexion, abduction, knee in legs]


def _sample_arm(rng: np.random.Generator, leg_flexion: float) -> tuple[float, float, float, float]:
    """Returns flexion, abduction, inward turn and elbow flexion in degrees; a hanging arm swings against the leg of its side."""
    swing = -0.8 * leg_flexion if leg_flexion < 75 else 25.0
    choices = (
        (swing, 8, 10, 18 + abs(swing) * 0.9),  # hanging
        (-12, 42, 75, 88),  # hand on the hip
        (rng.uniform(140, 172), 12, 10, rng.uniform(5, 50)),  # raised in front
        (10, rng.uniform(110, 160), 0, rng.uniform(5, 45)),  # raised at the side
        (5, rng.uniform(60, 100), -20, rng.uniform(5, 60)),  # spread
        (rng.uniform(50, 95), 12, 15, rng.uniform(10, 60)),  # reaching forward
        (25, 10, 30, rng.uniform(80, 130)),  # bent
    )
    chosen = choices[int(rng.choice(len(choices), p=(0.36, 0.1, 0.12, 0.12, 0.1, 0.1, 0.1)))]
    flexion, abduction, inward, elbow = np.add(chosen, rng.normal(0, (7, 4, 10, 7)))
    return float(flexion), max(float(abduction), 4.0), float(inward), float(np.clip(elbow, 3, 140))


def sample_figure(rng: np.random.Generator) -> Figure:
    """Poses a person at random within natural joint angles; most face the viewer, about a quarter show their back."""
    activity, lean, legs = _sample_legs(rng)
    arms = [_sample_arm(rng, legs[0][0])]
    mirrored = activity not in ("walking", "running") and rng.random() < 0.5
    arms.append(arms[0] if mirrored else _sample_arm(rng, legs[1][0]))
    yaw = rng.normal(rng.choice((0, 180, 90, -90), p=(0.56, 0.24, 0.1, 0.1)), 24)
    roll = rng.normal(0, 22 if rng.random() < 0.1 else 4)
    camera = np.diag((1.0, -1.0, 1.0)) @ _turn("z", roll) @ _turn("x", rng.normal(6, 5)) @ _turn("y", yaw)

    pelvis_turn = _turn("x", 0.3 * lean)
    torso_turn = _turn("x", lean) @ _turn("z", rng.normal(0, 5)) @ _turn("y", rng.normal(0, 12))
    head_turn = torso_turn @ _turn("x", rng.normal(-0.5 * lean, 7)) @ _turn("z", rng.normal(0, 6)) @ _turn("y", rng.normal(0, 18))
    body = np.zeros((NUM_JOINTS, 3))
    body[THORAX] = body[PELVIS] + (pelvis_turn + torso_turn)[:, 1] * (0.29 / 2)
    body[UPPER_NECK] = body[THORAX] + torso_turn @ (0, 0.038, 0.01)
    body[HEAD_TOP] = body[UPPER_NECK] + HEAD_BONE * head_turn[:, 1]
    hands, toes, heels = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))
    down = np.array((0.0, -1.0, 0.0))
    for side, (sign, name) in enumerate(((-1, "right"), (1, "left"))):
        mirror = np.diag((sign, 1.0, 1.0))  # Angles are those of the left side.
        flexion, abduction, inward, elbow = arms[side]
        upper = torso_turn @ mirror @ _turn("z", abduction) @ _turn("x", -flexion) @ _turn("y", -inward)
        lower = upper @ _turn("x", -elbow) @ down
        body[JOINT[f"{name}_shoulder"]] = body[THORAX] + torso_turn @ (sign * _SHOULDER, -0.012, 0)
        body[JOINT[f"{name}_elbow"]] = body[JOINT[f"{name}_shoulder"]] + _UPPER_ARM * upper @ down
        body[JOINT[f"{name}_wrist"]] = body[JOINT[f"{name}_elbow"]] + _FOREARM * lower
        hands[side] = body[JOINT[f"{name}_wrist"]] + 0.05 * lower
        flexion, abduction, knee = legs[side]
        upper = mirror @ _turn("z", abduction) @ _turn("x", -flexion) @ _turn("y", 8)
        shin = upper @ _turn("x", knee)
        body[JOINT[f"{name}_hip"]] = body[PELVIS] + pelvis_turn @ (sign * _HIP, 0, 0)
        body[JOINT[f"{name}_knee"]] = body[JOINT[f"{name}_hip"]] + _THIGH * upper @ down
        body[JOINT[f"{name}_ankle"]] = body[JOINT[f"{name}_knee"]] + _SHIN * shin @ down
        heels[side] = body[JOINT[f"{name}_ankle"]] + shin @ (0, -0.022, -0.012)
        toes[side] = body[JOINT[f"{name}_ankle"]] + shin @ (0.012, -0.03, 0.085)

    joints = body @ camera.T
    axis = joints[HEAD_TOP, :2] - joints[UPPER_NECK, :2]
    if np.hypot(*axis) < 0.4 * HEAD_BONE:
        axis = (camera @ torso_turn)[:2, 1]
    # A head that nods towards the viewer looks hardly shorter: it is about as deep as it is high.
    joints[HEAD_TOP, :2] = joints[UPPER_NECK, :2] + axis * max(0.9 * HEAD_BONE / np.hypot(*axis), min(1.0, HEAD_BONE / np.hypot(*axis)))
    torso_axes = np.stack([(camera @ pelvis_turn).T, (camera @ torso_turn).T])
    return Figure(activity, joints, hands @ camera.T, toes @ camera.T, heels @ camera.T, torso_axes, (camera @ head_turn).T)


def seen_on(figure: Figure, joint: int) -> frozenset[int]:
    """The parts one of which must be on top at `joint` for it to be visible."""
    if joint in (PELVIS, THORAX):
        return frozenset((TORSO, HEAD) if joint == THORAX else (TORSO, THIGH, THIGH - 1))
    if joint in (UPPER_NECK, HEAD_TOP):
        return frozenset((TORSO, HEAD))
    name = next(name for name, index in JOINT.items() if index == joint)
    side, part = name.split("_")
    parts = {owner - (side == "right") for owner in _SEEN_ON[part]}
    if part in ("shoulder", "hip") and figure.joints[joint, 2] > figure.joints[THORAX if part == "shoulder" else PELVIS, 2] - 0.035:
        parts.add(TORSO)
    return frozenset(parts)


def shade(colour: Iterable[float], factor: float) -> Colour:
    """A darker or lighter colour."""
    red, green, blue = (int(min(max(value * factor, 0), 255)) for value in colour)
    return red, green, blue


def sample_colour(
    rng: np.random.Generator, saturation: tuple[float, float] = (0.1, 0.9), value: tuple[float, float] = (0.2, 0.95)
) -> Colour:
    return shade(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)), 255)


@dataclass(frozen=True)
class Look:
    """Skin, hair and clothes of one person.

    Attributes:
        sleeve: covered share of the arm: 0 none, 0.5 the upper arm, 1 all of it.
        trousers: covered share of the leg: 0.5 shorts, 1 all of it.
        pattern: "plain", "stripes" or "sides", of the shirt.
        hair_style: "short", "long" or "cap".
        girth: factor on all widths.
    """

    skin: Colour
    hair: Colour
    shirt: Colour
    accent: Colour
    legs: Colour
    shoes: Colour
    sleeve: float
    trousers: float
    pattern: str
    hair_style: str
    girth: float


def sample_look(rng: np.random.Generator) -> Look:
    light = rng.uniform(0.8, 1.1)
    skin, hair = _SKIN[rng.integers(len(_SKIN))], _HAIR[rng.integers(len(_HAIR))]
    return Look(
        skin=shade(skin, light),
        hair=shade(hair, light),
        shirt=shade(sample_colour(rng, value=(0.3, 0.95)), light),
        accent=shade(sample_colour(rng, value=(0.3, 1.0)), light),
        legs=shade(sample_colour(rng, saturation=(0.0, 0.6), value=(0.12, 0.75)), light),
        shoes=shade(sample_colour(rng, saturation=(0.0, 0.7), value=(0.08, 0.9)), light),
        sleeve=float(rng.choice((0.0, 0.5, 1.0), p=(0.15, 0.5, 0.35))),
        trousers=float(rng.choice((0.5, 1.0), p=(0.4, 0.6))),
        pattern=str(rng.choice(("plain", "stripes", "sides"), p=(0.5, 0.25, 0.25))),
        hair_style=str(rng.choice(("short", "long", "cap"), p=(0.5, 0.35, 0.15))),
        girth=float(rng.uniform(0.88, 1.18)),
    )
