"""Named settings of a training run: the paper's four, published recipes on MPII, a small one for CPUs."""

from collections.abc import Mapping
from typing import Any

# Calvo, Cañadillas: "Application of convolutional neural networks to the problem of pose detection in images".
# Their samples: jobs.prepare --framing image --people single --size 220, which are its defaults. They reach PCKh@0.5 of 30 % (CNN) and 50 %
# (ResNet) by their own normaliser.
_PAPER = {"regression_head": "paper", "missing_joints": "zero", "schedule": "constant"}

# The recipe that MMPose and others publish for ResNets on MPII. Samples: jobs.prepare --framing person --people all --size 256 --val-list
# with the standard list. Official PCKh@0.5 in percent of its 2,958 people, with flip test, as published there for the same head:
_MPII = {
    "task": "pose",
    "model": "resnet50",
    "weights": ["imagenet"],
    "optimizer": "adam",
    "learning_rate": 5e-4,
    "batch_size": 512,
    "epochs": 210,
    "schedule": "step",
    "milestones": [0.81, 0.9524],
    "warmup_steps": 500,
    "augment": True,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper-head-deeppose": {**_PAPER, "task": "head", "model": "deeppose", "batch_size": 128, "epochs": 100, "learning_rate": 5e-5},
    "paper-head-resnet": {**_PAPER, "task": "head", "model": "resnetv2_50", "batch_size": 32, "epochs": 100, "learning_rate": 5e-5},
    "paper-pose-deeppose": {**_PAPER, "task": "pose", "model": "deeppose", "batch_size": 128, "epochs": 300, "learning_rate": 5e-4},
    "paper-pose-resnet": {**_PAPER, "task": "pose", "model": "resnetv2_50", "batch_size": 32, "epochs": 300, "learning_rate": 5e-4},
    # 82.6: github.com/open-mmlab/mmpose, configs/body_2d_keypoint/topdown_regression/mpii/resnet_mpii.md
    "mpii-resnet50-regression": {**_MPII, "regression_head": "direct"},
    # 86.1: the same folder, resnet_rle_mpii.md
    "mpii-resnet50-rle": {**_MPII, "regression_head": "rle"},
    # MMPose has a config for it (simcc/mpii/simcc_res50_wo-deconv-8xb64-210e_mpii-256x256.py), but publishes no figure.
    "mpii-resnet50-simcc": {**_MPII, "regression_head": "simcc"},
    # 88.5: github.com/microsoft/human-pose-estimation.pytorch, 256x256_pose_resnet_50 (with 140 epochs at 1e-3)
    "mpii-resnet50-heatmap": {**_MPII, "regression_head": "heatmap"},
    # For person crops of 128 px and minutes to hours on CPUs; docs/results.md says what it reached on a twentieth of MPII.
    "mpii-resnet18-small": {
        "task": "pose",
        "model": "resnet18",
        "feature_stride": 16,
        "weights": ["imagenet"],
        "regression_head": "unet",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "ema_decay": 0.999,
        "batch_size": 32,
        "epochs": 60,
        "schedule": "cosine",
        "augment": True,
    },
}
