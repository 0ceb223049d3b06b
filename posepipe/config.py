"""One frozen dataclass per job.

Values that are out of bounds are refused where the config is built, before anything starts. Presets are named values of the same
dataclasses, see `presets`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

Framing = Literal["image", "person"]
People = Literal["single", "all"]
Split = Literal["train", "val", "test"]
Task = Literal["head", "pose"]
RegressionHead = Literal["direct", "paper", "rle", "simcc", "heatmap", "unet"]
DirectLoss = Literal["mse", "smooth_l1", "l1", "giou"]
MissingJoints = Literal["mask", "zero"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "step", "cosine"]
Precision = Literal["float32", "bfloat16"]
CacheKind = Literal["auto", "decoded", "encoded"]
Scheduler = Literal["asha", "none"]
BadStatus = Literal[
    "missing", "forbidden", "unreadable", "unreachable", "empty", "not_an_image", "truncated", "corrupt", "unsupported", "too_large",
    "decoder_crashed", "no_person",
]  # fmt: skip
OnNonFinite = Literal["stop", "skip"]
Logger = Literal["none", "mlflow", "wandb"]
SearchAlgorithm = Literal["random", "optuna"]
StudyRow = Literal[
    "paper", "paper-small", "masks", "person", "augment", "pretrained", "rle", "simcc", "heatmap", "unet", "flip-test"
]  # fmt: skip


MAX_PIXELS = 178_956_970
PERSON_CROP_MARGIN = 0.2
DEFAULT_MILESTONES = (0.8, 0.95)


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that names the choices."""
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choices: {', '.join(choices)}")


def _check_choices(config: Any) -> None:
    """Refuses a value that is not among its field's Literal."""
    for item in dataclasses.fields(config):
        if get_origin(item.type) is Literal:
            check_choice(item.name.replace("_", " "), getattr(config, item.name), get_args(item.type))


def _check_at_least(config: Any, **bounds: float) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        if not bound <= value < math.inf:
            needed = "finite" if value == math.inf else f"at least {bound}"
            raise ValueError(f"--{name.replace('_', '-')} must be {needed}, got {value}")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Raw MPII -> samples."""

    mpii_uri: str
    """Folder or bucket prefix with mpii_human_pose_v1_u12_1.mat and images/."""
    samples_uri: str = ""
    """Where the samples go. Not needed with --dry-run."""
    framing: Framing = "image"
    """What the model sees: image (the whole picture, as the paper) or person (MPII's square around one person)."""
    people: People = "single"
    """single (pictures with exactly one annotated person, as the paper) or all."""
    size: int | str = 220
    """Side of the crop in px, or WIDTHxHEIGHT: 192x256."""
    margin: float | None = None
    """How much of the picture is kept around the crop for augmentation, on every side, as a share of the crop's side. By default 0.2 for
    person framing; a whole picture has nothing around it."""
    val_list: str = ""
    """URI of the validation pictures, a text file of names, or of the validation people, HRNet's valid.json: others in their pictures are
    left out. Without one, a stable hash of the video, or of the name where that is unknown, takes val_percent."""
    val_percent: float = 10.0
    """About how many of the train pictures become the val split, in percent, where there is no val_list."""
    shard_size: int = 128
    """Pictures per task and output file."""
    overwrite: bool = False
    """Make the samples anew, also where complete ones, or those of other settings, are there."""
    dry_run: bool = False
    """Print an inventory of the data set as JSON and stop."""

    def __post_init__(self) -> None:
        _check_choices(self)
        parse_size(self.size)
        _check_at_least(self, shard_size=1)
        if self.margin is not None:
            if not 0 <= self.margin <= 1:
                raise ValueError(f"--margin must be in [0, 1], got {self.margin}")
            if self.margin and self.framing == "image":
                raise ValueError(f"--margin goes with --framing person: there is nothing around a whole picture, got {self.margin}")
        if not 0 <= self.val_percent < 100:
            raise ValueError(f"--val-percent must be in [0, 100), got {self.val_percent}")
        if not self.samples_uri and not self.dry_run:
            raise ValueError("--samples-uri says where the samples go; only --dry-run can do without")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Width and height of the crop, px."""
        return parse_size(self.size)

    @property
    def crop_margin(self) -> tuple[int, int]:
        """What is kept around the crop, whole px on the left and on the right, above and below."""
        share = (PERSON_CROP_MARGIN if self.framing == "person" else 0.0) if self.margin is None else self.margin
        width, height = self.crop_size
        return round(share * width), round(share * height)


def parse_size(text: int | str, least: int = 8) -> tuple[int, int]:
    """`SIDE` or `WIDTHxHEIGHT` -> width and height."""
    width, is_pair, height = str(text).partition("x")
    sides = (width, height) if is_pair else (width, width)
    if not all(side.isdecimal() and int(side) >= least for side in sides):
        raise ValueError(f"--size must be a number of px of at least {least}, or WIDTHxHEIGHT of such, got {text!r}")
    return int(sides[0]), int(sides[1])


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Samples -> checkpoint."""

    samples_uri: str
    """What jobs.prepare wrote."""
    extra_samples_uri: tuple[str, ...] = ()
    """More samples of the same framing and size, of which only the train split is used."""
    runs_uri: str
    """Folder of all runs."""
    name: str
    """Name of this run. Running again under the same name resumes it."""
    task: Task = "pose"
    """What is regressed: head (the head box, 4 numbers) or pose (16 joints, 32 numbers)."""
    model: str = "resnetv2_50"
    """deeppose (the paper's network) or any timm backbone: resnetv2_50 (ResNet50V2), resnet18, mobilenetv2_100, hrnet_w32, …"""
    regression_head: RegressionHead = "direct"
    """How it is regressed: direct (linear, unit frame), paper (ReLU outputs in crop px), rle (residual log-likelihood), simcc (a
    distribution over each axis), heatmap (a map per point) or unet (a map per point, from all maps of the backbone)."""
    direct_loss: DirectLoss = "mse"
    """Of the direct head: mse, smooth_l1, l1, or giou (generalised IoU, for the head box)."""
    feature_stride: int = 32
    """Cut a timm backbone at the last stage with at most this stride."""
    weights: tuple[str, ...] = ("none",)
    """Where the network starts: none (random), imagenet (timm's download) or URIs of state dicts, loaded in this order. The
    model.safetensors of another run also gives its regression head, where that is the same."""
    freeze_norm: bool = False
    """Keep the backbone's BatchNorm statistics as loaded."""
    missing_joints: MissingJoints = "mask"
    """Joints without a label: mask (not in the loss, nor are joints outside the crop) or zero (trained as (0, 0), as in the paper)."""
    epochs: int = 100
    """Passes over the train split."""
    batch_size: int = 128
    """Samples per optimizer step over all workers."""
    learning_rate: float = 5e-4
    """Of the optimizer, at its peak where there is a schedule."""
    optimizer: Optimizer = "adam"
    """adam, adamw or sgd (Nesterov momentum 0.9)."""
    weight_decay: float = 0.0
    """Of weights; norms and biases have none."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block of the backbone to the one before it; below 1 for a pretrained backbone. Layers of the
    stem, norms and downsampling between blocks count as blocks of their own."""
    clip_norm: float = 0.0
    """Longer gradients are cut to this norm; 0: never."""
    schedule: Schedule = "constant"
    """constant (the paper), step (a tenth after each of --milestones) or cosine (down to zero)."""
    milestones: tuple[float, ...] = DEFAULT_MILESTONES
    """Where the step schedule steps, as shares of all epochs."""
    warmup_steps: int = -1
    """Steps of a linear warm-up; -1: 3 % of all steps, none for the constant schedule."""
    ema_decay: float = 0.0
    """Validate and keep an exponential moving average of the weights, with this decay once it is warm; 0: the weights themselves. After n
    steps it is at most 1 - n^(-2/3): 0.99 takes 1,000 of them, 0.999 takes 31,600."""
    patience: int = 0
    """Stop after so many epochs without a better validation score; 0: never."""
    augment: bool = False
    """Flip, rotate, scale, shift, recolour, blur and partly cover the train crops, or show half a body, on the device."""
    seed: int = 0
    """Of the weights, the order of samples and the augmentation."""
    num_workers: int | str = 1
    """Data-parallel workers, which share each batch; or MIN:MAX (in YAML "1:4", with quotes): as many as there is room for."""
    cpus_per_worker: int = 1
    """CPUs (and torch threads) of each worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    precision: Precision = "float32"
    """float32, or bfloat16 for mixed precision: for GPUs, and for CPUs that compute in it (AMX, AVX512-BF16)."""
    sample_cache: CacheKind = "auto"
    """As what the samples stay in memory: decoded, encoded (JPEG, several times smaller, decoded anew for every batch), or auto: decoded
    where the nodes have room for it."""
    max_failures: int = 2
    """How often the run restarts from its last checkpoint after a worker died, or its node."""
    max_preemption_failures: int = -1
    """The same for workers whose node Ray was told to drain because it is taken away (as on Kubernetes), counted apart; -1: without limit.
    Spot machines of `ray up` just die, and count as --max-failures."""
    checkpoint_every: int = 0
    """Optimizer steps between checkpoints in the middle of an epoch; 0: only at its end."""
    on_nonfinite: OnNonFinite = "stop"
    """A step whose loss or gradient is not finite: stop (ends the run and names the batch's samples) or skip (leaves it out)."""
    deterministic: bool = False
    """Two runs on one machine give the same bits. GPUs are slower so."""
    logger: Logger = "none"
    """none, mlflow or wandb (both read their own environment variables). TensorBoard's event files are always written."""
    num_snapshot_people: int = 6
    """Validation people whose predictions are kept at some epochs, to be seen in the report; 0: of nobody."""
    num_snapshot_epochs: int = 6
    """At so many epochs, from the first to the last, more of them early on."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, epochs=1, cpus_per_worker=1, max_failures=0, feature_stride=4)
        _check_at_least(self, max_preemption_failures=-1, checkpoint_every=0)
        _check_at_least(self, num_snapshot_people=0, num_snapshot_epochs=1)
        _check_at_least(self, batch_size=max(2, self.max_workers))  # a batch norm needs two samples, a worker one
        _check_at_least(self, weight_decay=0, clip_norm=0, patience=0, warmup_steps=-1)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay must be in [0, 1), got {self.ema_decay}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay must be in (0, 1], got {self.layer_decay}")
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"--milestones must be rising shares of all epochs in (0, 1), got {' '.join(map(str, self.milestones))}")
        if tuple(self.milestones) != DEFAULT_MILESTONES and self.schedule != "step":
            raise ValueError(f"--milestones are of --schedule step, got --schedule {self.schedule}")
        if self.direct_loss != "mse" and self.regression_head != "direct":
            raise ValueError(f"--direct-loss {self.direct_loss} is of the direct head; {self.regression_head} has its own loss")
        if self.direct_loss == "giou" and self.task != "head":
            raise ValueError("--direct-loss giou compares boxes: it needs --task head")
        if not self.name or "/" in self.name:
            raise ValueError(f"--name must be one folder name, got {self.name!r}")

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return parse_workers(self.num_workers)[0]

    @property
    def max_workers(self) -> int:
        """The most workers that it takes."""
        return parse_workers(self.num_workers)[1]


def parse_workers(text: int | str) -> tuple[int, int]:
    """`N` or `MIN:MAX` -> the fewest and the most workers."""
    low, _, high = str(text).partition(":")
    if not low.isdecimal() or not (high or low).isdecimal() or not 1 <= int(low) <= int(high or low) or str(text).endswith(":"):
        raise ValueError(f"--num-workers must be a number of at least 1, or MIN:MAX, got {text!r}")
    return int(low), int(high or low)


def with_parameters(shared: TrainConfig, parameters: Mapping[str, Any]) -> TrainConfig:
    """The config of a trial; ValueError where its parameters make no sense together."""
    if parameters.get("schedule", "step") != "step":
        parameters = {"milestones": DEFAULT_MILESTONES, **parameters}  # those of a preset are of its own schedule
    return dataclasses.replace(shared, **parameters)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Samples -> best checkpoint of a sweep over learning rate, batch size, …"""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """What all trials share; its name is the sweep's."""
    search: tuple[str, ...] = ("learning_rate=grid:1e-4,5e-4,1e-3", "batch_size=grid:32,128")
    """Fields of the training config and their values: FIELD=grid:A,B,… tries all, FIELD=choice:A,B,… chooses one per trial,
    FIELD=uniform:LOW,HIGH and FIELD=loguniform:LOW,HIGH choose from an interval."""
    search_algorithm: SearchAlgorithm = "random"
    """Who chooses where there is no grid: random (draws, all from the seed) or optuna (TPE: random for ten trials, then where the best ones
    were). Neither tries a configuration twice."""
    num_trials: int = 1
    """How often the grid is gone through, each time with new choices; without a grid, the number of trials."""
    scheduler: Scheduler = "asha"
    """asha (from a quarter of the epochs on, and at every doubling, stops a trial that is worse than half of those before it) or none."""
    max_concurrent_trials: int = 0
    """At most so many trials at a time; 0: as many as the cluster holds. It never starts more than that."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, num_trials=1, max_concurrent_trials=0)
        if self.train.min_workers < self.train.max_workers:
            raise ValueError(f"a trial's --num-workers must be one number, got {self.train.num_workers!r}: others wait for the rest")
        kinds: dict[str, str] = {}
        for text in self.search:
            name, kind, values = parse_search(text)
            for value in values:
                with_parameters(self.train, {name: value})
            if name in kinds:
                raise ValueError(f"--search names {name} twice")
            kinds[name] = kind
        if not kinds:
            raise ValueError("--search needs at least one field")
        if set(kinds.values()) == {"grid"}:
            for flag, is_given in (("--num-trials", self.num_trials > 1), ("--search-algorithm optuna", self.search_algorithm == "optuna")):
                if is_given:
                    raise ValueError(f"{flag} needs a field to choose: one with choice, uniform or loguniform; grids are gone through once")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Samples or an image bucket + checkpoint -> predictions (and PCKh where labels exist)."""

    checkpoint_uri: tuple[str, ...]
    """Run folders of jobs.train or jobs.tune, or checkpoints in them. A pose and a head model predict in one pass; several of a task are an
    ensemble, whose points are averaged, and each costs its own forward passes. All are of one framing."""
    predictions_uri: str = ""
    """Where the predictions go: one folder per run. Not needed with --dry-run."""
    samples_uri: str = ""
    """Score these samples of jobs.prepare; either these or --images-uri."""
    split: Split = "val"
    """Which split of --samples-uri."""
    images_uri: str = ""
    """Score all the pictures below this prefix, or those that a .txt, .csv or .parquet file names, maybe with a person for each row."""
    first_stage_uri: str = ""
    """A checkpoint trained on image framing that finds the person for a model trained on person framing."""
    run_id: str = "score"
    """Name of this scoring run, written into every row."""
    limit: int = 0
    """Only the first so many inputs; 0: all."""
    sample_fraction: float = 1.0
    """Only this share of the inputs, the same one every time."""
    batch_size: int = 0
    """Crops per forward pass; 0: 32 on CPUs, on a GPU 64, or up to 256 of crops below 256 px."""
    shard_size: int = 256
    """Pictures per task and output file: what is done again after a crash."""
    flip_test: bool = False
    """Average with what is predicted for the mirrored crop, in the first stage too: twice the forward passes."""
    test_scales: tuple[float, ...] = (1.0,)
    """Average over the crop scaled about its centre by each of these, 0.5 to 2, not in the first stage: a forward pass for each."""
    precision: Precision = "float32"
    """float32, or bfloat16 for mixed precision: for GPUs, and for CPUs that compute in it (AMX, AVX512-BF16)."""
    num_actors: int = 0
    """Processes that hold the models; 0: one per GPU, or without --use-gpu as many as the CPUs hold, if there is work for so many."""
    cpus_per_actor: int = 0
    """CPUs of each of these processes; 0: 1 where --use-gpu or --num-actors is given, otherwise 2 if none is left over. Without a GPU the
    models of a process predict so many shards at a time, a core each, and share these with tasks that read and decode."""
    use_gpu: bool = False
    """One GPU per replica. With a first stage its replicas and the others share CPUs and GPUs half and half."""
    max_bytes: int = 128 * 2**20
    """Larger files are not read, or, where a server does not say how large they are, not decoded."""
    max_pixels: int = 89_478_485
    """Larger pictures are not decoded."""
    unreachable_after: float = 0.0
    """After so many seconds without an answer of its web server (http, https) a picture is a row `unreachable`, and one in a bucket or on a
    disk after ten minutes if others can be read there; 0: the run ends after ten minutes, and the same command goes on."""
    takeover_after: float = 30.0
    """Take a run over whose writer has shown no sign of life for so many seconds, or for its own --takeover-after where that is more."""
    price_per_hour: float = 0.0
    """What the cluster costs per hour: the summary then says what a million pictures cost."""
    num_overlays: int = 0
    """Draw the predictions of so many rows on their pictures, as overlays.jpg beside the predictions."""
    redo: tuple[BadStatus, ...] = ()
    """Score the shards again that hold rows of these statuses, when what was wrong has been mended: a bucket's permissions, a mount."""
    overwrite: bool = False
    """Begin anew, whatever the folder holds."""
    dry_run: bool = False
    """Say what there is to do and what the cluster offers, and stop."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for status in self.redo:
            check_choice("status", status, get_args(BadStatus))
        if self.redo and self.overwrite:
            raise ValueError("--redo and --overwrite exclude each other: who begins anew scores all shards again")
        _check_at_least(self, batch_size=0, shard_size=1, num_actors=0, cpus_per_actor=0, num_overlays=0, limit=0)
        _check_at_least(self, max_bytes=1, max_pixels=1, unreachable_after=0, takeover_after=1, price_per_hour=0)
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"--max-pixels must be at most {MAX_PIXELS}, where Pillow draws its own line, got {self.max_pixels}")
        if bool(self.samples_uri) == bool(self.images_uri):
            raise ValueError("give either --samples-uri or --images-uri")
        if not 0 < self.sample_fraction <= 1:
            raise ValueError(f"--sample-fraction must be in (0, 1], got {self.sample_fraction}")
        if not self.predictions_uri and not self.dry_run:
            raise ValueError("--predictions-uri says where the predictions go; only --dry-run can do without")
        if not self.checkpoint_uri:
            raise ValueError("--checkpoint-uri needs at least one checkpoint")
        scales = self.test_scales
        if not scales or len(set(scales)) < len(scales) or not all(0.5 <= scale <= 2 for scale in scales):
            raise ValueError(f"--test-scales must be different numbers from 0.5 to 2, at least one, got {list(scales)}")
        if self.samples_uri:
            for name in ("first_stage_uri", "limit"):
                if getattr(self, name):
                    raise ValueError(f"--{name.replace('_', '-')} goes with --images-uri; samples are framed and counted already")
            if self.sample_fraction < 1:
                raise ValueError("--sample-fraction goes with --images-uri")
            for item in dataclasses.fields(self):
                names = ("shard_size", "max_bytes", "max_pixels", "unreachable_after", "redo")
                if item.name in names and getattr(self, item.name) != item.default:
                    raise ValueError(f"--{item.name.replace('_', '-')} goes with --images-uri; samples are cut and decoded already")
        elif self.split != "val":
            raise ValueError("--split goes with --samples-uri; pictures have none")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Predictions and runs -> a self-contained HTML report."""

    report_uri: str
    """Where index.html goes, with the plots as PNG and the tables as Parquet and CSV."""
    predictions_uri: tuple[str, ...] = ()
    """What jobs.score wrote, or files of other systems: .npz, .mat or .h5 with arrays (N, 16, 2), all of a file or FILE::key.
    The first is compared person by person with those that follow."""
    runs_uri: tuple[str, ...] = ()
    """Folders of runs, each RUNS_URI/NAME of jobs.train or jobs.tune, for their curves and snapshots."""
    truth_uri: str = ""
    """Labels to score against, needed for array files: an .npz (joints, annotated, headboxes), HRNet's gt_valid.mat, or samples.
    Predictions of jobs.score carry labels; with this they are joined to these by sample_id instead."""
    split: Split = "val"
    """The split of the samples in --truth-uri."""
    first_pixel: Literal[0, 1] | None = None
    """Where coordinates in array files start: 1 (MATLAB, MPII, most published sets) or 0. There is no default."""
    images_uri: str = ""
    """Folder of the pictures that an array file of labels names."""
    title: str = "Pose report"
    """Heading of the page."""
    num_cases: int = 6
    """How many people to draw of each kind: best, median and worst."""
    min_confidence: float = 0.2
    """Joints with less confidence are not drawn. It changes no score."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, num_cases=0, min_confidence=0)
        if not self.predictions_uri and not self.runs_uri:
            raise ValueError("give --predictions-uri, --runs-uri or both")
        if self.first_pixel not in (None, 0, 1):
            raise ValueError(f"--first-pixel must be 0 or 1, got {self.first_pixel}")
        for name in ("predictions_uri", "runs_uri"):
            uris = getattr(self, name)
            if len({uri.rstrip("/") for uri in uris}) < len(uris):
                raise ValueError(f"--{name.replace('_', '-')} names one place twice: {' '.join(uris)}")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """All of it, on a generated MPII-shaped data set or on a real one."""

    work_uri: str = "work/demo"
    """Everything the demo makes goes below this folder."""
    mpii_uri: str = ""
    """A real data set in MPII's layout instead of the generated one."""
    num_images: int = 1200
    """Pictures to generate."""
    size: int | str = 128
    """Side of the crops in px, or WIDTHxHEIGHT."""
    epochs: int = 6
    """Passes of the pose training; the head box takes two less, the sweep's trials a quarter."""
    use_gpu: bool = False
    """Train and score on a GPU."""

    def __post_init__(self) -> None:
        _check_choices(self)
        parse_size(self.size, least=32)
        _check_at_least(self, num_images=50, epochs=4)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What each step from the paper's recipe to the best one is worth: a table, all rows on the same data and budget."""

    mpii_uri: str
    """A data set in MPII's layout, to train and to validate on."""
    extra_mpii_uri: tuple[str, ...] = ()
    """More data sets in MPII's layout, of which all train pictures are trained on and none is validated on."""
    val_list: str = ""
    """URI of the validation images, as for jobs.prepare. Without one, a stable hash of the video or name takes a tenth."""
    study_uri: str
    """Everything the study makes goes below this folder. Running again goes on where it stopped."""
    minutes: float = 30.0
    """Of training for each row, in wall-clock minutes: as many epochs as fit, but at least one."""
    size: int | str = 128
    """Of the crops in px, of all rows but paper, whose crops have 220: side, or WIDTHxHEIGHT."""
    model: str = "resnet18"
    """The backbone of all rows but paper, whose own is resnetv2_50."""
    feature_stride: int = 16
    """Cut that backbone at the last stage with at most this stride."""
    weights: tuple[str, ...] = ("imagenet",)
    """Where it starts from the row pretrained on: imagenet, or URIs of state dicts."""
    batch_size: int = 32
    """Samples per optimizer step, of all rows but the paper's two."""
    precision: Precision = "float32"
    """float32 or bfloat16, of all rows but the paper's two."""
    rows: tuple[StudyRow, ...] = get_args(StudyRow)
    """Which rows there are. Their order is that of the study, whatever the order here."""
    seed: int = 0
    """Of every row's training."""
    num_workers: int = 1
    """Data-parallel workers of each training."""
    cpus_per_worker: int = 1
    """CPUs (and torch threads) of each worker."""
    use_gpu: bool = False
    """Train and score on GPUs."""

    def __post_init__(self) -> None:
        _check_choices(self)
        parse_size(self.size)
        _check_at_least(self, batch_size=2, feature_stride=4, num_workers=1, cpus_per_worker=1)
        if not self.minutes > 0:
            raise ValueError(f"--minutes must be positive, got {self.minutes}")
        for row in self.rows:
            check_choice("row", row, get_args(StudyRow))
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"--rows names one row twice: {' '.join(self.rows)}")
        if not set(self.rows) - {"flip-test"}:
            raise ValueError("--rows needs a row that is trained; flip-test scores the best of them")
        if "pretrained" in self.rows and self.weights == ("none",):
            raise ValueError("--weights none leaves the row pretrained without effect; give weights, or leave it out of --rows")


# What all trials of a sweep share: their data, their objective, their size.
NOT_SEARCHED = (
    "samples_uri",
    "extra_samples_uri",
    "runs_uri",
    "name",
    "weights",
    "task",
    "epochs",
    "num_workers",
    "cpus_per_worker",
    "use_gpu",
    "max_failures",
    "max_preemption_failures",
    "checkpoint_every",
    "on_nonfinite",
    "deterministic",
    "logger",
    "num_snapshot_people",
    "num_snapshot_epochs",
    "milestones",
    "sample_cache",
)


def parse_search(text: str) -> tuple[str, str, tuple[Any, ...]]:
    """`FIELD=KIND:A,B,…` -> the field of TrainConfig, the kind and the values in the field's type."""
    name, _, rest = text.partition("=")
    kind, _, values = rest.partition(":")
    fields = {item.name: item.type for item in dataclasses.fields(TrainConfig) if item.name not in NOT_SEARCHED}
    check_choice("field to search", name, tuple(fields))
    check_choice(f"kind of search for {name}", kind, ("grid", "choice", "uniform", "loguniform"))
    field_type: Any = str if get_origin(fields[name]) is Literal else fields[name]
    if kind.endswith("uniform"):
        if field_type is not float:
            raise ValueError(f"{kind} draws floats, but {name} is {getattr(field_type, '__name__', field_type)}; use grid or choice")
        low_high = values.split(",")
        if len(low_high) != 2:
            raise ValueError(f"{text!r}: expected {kind}:LOW,HIGH")
    if field_type is bool:
        for value in values.split(","):
            check_choice(f"value of {name}", value, ("true", "false"))
    try:
        parsed = tuple(value == "true" if field_type is bool else field_type(value) for value in values.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if kind == "loguniform" and not 0 < parsed[0] < parsed[1]:
        raise ValueError(f"{text!r}: expected 0 < LOW < HIGH")
    if kind == "uniform" and not 0 <= parsed[0] < parsed[1]:
        raise ValueError(f"{text!r}: expected 0 <= LOW < HIGH")
    return name, kind, parsed
