"""The 16 MPII joints: names, left/right pairs, limbs, PCKh groups.

Source: http://human-pose.mpi-inf.mpg.de/#download, field `annopoints.point.id`. Right and left are the person's own.
"""

JOINT_NAMES = (
    "right_ankle",
    "right_knee",
    "right_hip",
    "left_hip",
    "left_knee",
    "left_ankle",
    "pelvis",
    "thorax",
    "upper_neck",
    "head_top",
    "right_wrist",
    "right_elbow",
    "right_shoulder",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
)
NUM_JOINTS = len(JOINT_NAMES)
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}

PELVIS, THORAX, UPPER_NECK, HEAD_TOP = (JOINT[name] for name in ("pelvis", "thorax", "upper_neck", "head_top"))

LEFT_RIGHT_PAIRS = tuple((JOINT[f"left_{part}"], JOINT[f"right_{part}"]) for part in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder"))

# As in HRNet's half-body crops. https://github.com/leoxiaobin/deep-high-resolution-net.pytorch/blob/master/lib/dataset/mpii.py
LOWER_BODY = tuple(range(7))
UPPER_BODY = tuple(range(7, NUM_JOINTS))

LIMBS = tuple(
    (JOINT[start], JOINT[end])
    for start, end in (
        ("right_ankle", "right_knee"),
        ("right_knee", "right_hip"),
        ("right_hip", "pelvis"),
        ("left_hip", "pelvis"),
        ("left_knee", "left_hip"),
        ("left_ankle", "left_knee"),
        ("pelvis", "thorax"),
        ("thorax", "upper_neck"),
        ("upper_neck", "head_top"),
        ("right_wrist", "right_elbow"),
        ("right_elbow", "right_shoulder"),
        ("right_shoulder", "thorax"),
        ("left_shoulder", "thorax"),
        ("left_elbow", "left_shoulder"),
        ("left_wrist", "left_elbow"),
    )
)

# The groups of the published tables. Pelvis and thorax are in none of them: they do not count in PCKh.
PCKH_GROUPS: dict[str, tuple[int, ...]] = {
    "head_top": (JOINT["head_top"],),
    "neck": (JOINT["upper_neck"],),
    "shoulder": (JOINT["left_shoulder"], JOINT["right_shoulder"]),
    "elbow": (JOINT["left_elbow"], JOINT["right_elbow"]),
    "wrist": (JOINT["left_wrist"], JOINT["right_wrist"]),
    "hip": (JOINT["left_hip"], JOINT["right_hip"]),
    "knee": (JOINT["left_knee"], JOINT["right_knee"]),
    "ankle": (JOINT["left_ankle"], JOINT["right_ankle"]),
}
PCKH_JOINTS = tuple(sorted(joint for group in PCKH_GROUPS.values() for joint in group))
