"""Frozen descriptions of models, pruning and export, with a JSON round trip.

Letters used throughout the package: B batch, N patch tokens, P prefix tokens (class,
distillation, registers), C channels, H heads, D channels of a head, K kept, S stages.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .errors import ConfigError
from .settings.fields import Arguments, JsonConfig, as_arguments, check_choice, option, switches
from .settings.preprocessing import INTERPOLATIONS, LARGEST_SIDE, Preprocess
from .settings.untrusted import check_name

BUILDERS = ("vit", "lvvit", "timm")
STEMS = ("linear", "conv")
WEIGHTS = ("auto", "model", "ema")
# Beyond all models that exist; files that claim more are damaged or hostile.
LARGEST = {"patch_size": 1024, "width": 65_536, "depth": 256, "heads": 1024, "classes": 1_000_000, "patches": 1 << 20,
           "stages": 48}
LARGEST_MLP_RATIO = 64
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "float8")
HALF, QUANTIZED = ("float16", "bfloat16"), ("int8", "float8")
TARGETS = ("cpu", "tensorrt")
METHODS = ("max", "percentile", "mse", "entropy")
SELECTORS = ("prediction", "attention", "random", "static", "structural")
# Selectors that are useless before training.
LEARNED = ("prediction", "static")


def device_option() -> Any:
    """The field of a config that chooses the device."""
    return option(None, "Default: CUDA where it works, else the CPU.", metavar="[cpu|cuda]")


def image_size_option() -> Any:
    """The field of a config for another input size."""
    return option(None, "Another input size, positions interpolated.")


class ImageSpec(Protocol):
    """How a model wants its images: `image_size` is (height, width) in pixels. With `orient`, images are turned as
    their EXIF orientation says; training ignores it."""

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def orient(self) -> bool: ...


@dataclass(frozen=True)
class OrientedImages:
    """The `ImageSpec` of `--orient`."""

    image_size: tuple[int, int]
    preprocess: Preprocess
    orient: bool = True


def with_orientation(spec: ImageSpec, orient: bool) -> ImageSpec:
    """`spec`, with the EXIF orientation applied if `orient`."""
    return OrientedImages(spec.image_size, spec.preprocess) if orient else spec


def orient_option() -> Any:
    """The field for it."""
    return option(False, "Turn images as their EXIF orientation says, which training ignores.")


@dataclass(frozen=True)
class ModelConfig(JsonConfig):
    """One architecture, unpruned.

    `builder` picks the constructor: "vit" and "lvvit" use the sizes below, "timm" creates
    the model that timm knows as `timm_name` (the sizes are then read from it).
    `image_size` is (height, width) in pixels. `options` are keyword arguments of timm's constructor, see
    `model.build.OPTIONS`.
    """

    name: str
    builder: str
    image_size: tuple[int, int]
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    classes: int = 1000
    stem: str = "linear"
    timm_name: str | None = None
    preprocess: Preprocess = Preprocess()
    options: Arguments = ()
    # See `ImageSpec`; no property of a model.
    orient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", as_arguments(self.options))
        for field, choices in (("builder", BUILDERS), ("stem", STEMS)):
            check_choice(field, getattr(self, field), choices)
        for text, noun in ((self.name, "name of a model"), (self.timm_name or self.name, "name of a model in timm")):
            check_name(text, noun)
        for name in ("patch_size", "width", "depth", "heads", "classes"):
            if not 1 <= getattr(self, name) <= LARGEST[name]:
                raise ConfigError(f"A model has a {name} from 1 to {LARGEST[name]}, not {getattr(self, name)}.")
        if not 0 < self.mlp_ratio <= LARGEST_MLP_RATIO:
            raise ConfigError(f"A model has an mlp_ratio above 0 and at most {LARGEST_MLP_RATIO}, not "
                              f"{self.mlp_ratio}.")
        for side in self.image_size:
            if side > LARGEST_SIDE:
                raise ConfigError(f"An image side of {side} is above the {LARGEST_SIDE} pixels that are supported.")
            if side < self.patch_size or side % self.patch_size:
                raise ConfigError(f"Image side {side} is not a multiple of the patch size {self.patch_size}; "
                                  f"choose e.g. {max(1, round(side / self.patch_size)) * self.patch_size}.")
        if self.patches > LARGEST["patches"]:
            raise ConfigError(f"A model has at most {LARGEST['patches']} patches, not {self.patches}; choose smaller "
                              "images.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """N, the number of patch tokens before any is dropped."""
        return math.prod(self.grid)

    def with_image_size(self, size: tuple[int, int]) -> ModelConfig:
        """The same model for another input; the crop keeps its fraction of the resized image. For models of the
        zoo, the image is resized straight to the input from 384 px on, as the published code does."""
        if size == self.image_size:
            return self
        short, long = self.preprocess.short_side, None
        if short is not None:
            published = self.timm_name is None and not self.options
            whole = published and min(size) >= 384
            short, long = (None if whole else int(short / min(self.image_size) * side) for side in sorted(size))
        steps = dataclasses.replace(self.preprocess, short_side=short, long_side=long)
        return dataclasses.replace(self, image_size=size, preprocess=steps)


# What 2x2 pooling leaves.
QUARTER = 0.25


def default_stages(depth: int, selector: str = "prediction") -> tuple[int, ...]:
    """Three stages at a quarter, half and three quarters of the depth, as published; pooling has only the middle one.

    Attention drops one block later: EViT scores tokens with the class attention of the block before each stage.
    """
    stages = (depth // 2,) if selector == "structural" else sorted({depth * s // 4 for s in (1, 2, 3)} - {0})
    late = int(selector == "attention" and depth // 2 > 1 and max(stages) + 1 < depth)
    return tuple(stage + late for stage in stages)


def check_stages(stages: Sequence[int], depth: int) -> None:
    """Raises ConfigError unless `stages` ascend strictly within 0 .. depth - 1."""
    if any(not 0 <= stage < depth for stage in stages):
        raise ConfigError(f"Stages {list(stages)} must be blocks of the model, 0 to {depth - 1}.")
    if any(b <= a for a, b in zip(stages, stages[1:])):
        raise ConfigError(f"Stages {list(stages)} must ascend, each block once.")


@dataclass(frozen=True)
class PruneConfig(JsonConfig):
    """How many patch tokens survive each stage: `keep_ratios` of the INITIAL count, or `keep_counts`.

    Exactly one of the two is set; both are per stage and never increase. `selector` chooses the patches, see
    `model.selectors`; `fuse` merges the dropped ones into one token.
    """

    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...] | None = None
    keep_counts: tuple[int, ...] | None = None
    selector: str = "prediction"
    fuse: bool = False

    def __post_init__(self) -> None:
        check_choice("selector", self.selector, SELECTORS)
        if self.fuse and self.selector != "attention":
            raise ConfigError("Tokens are fused by their attention; add --selector attention, or leave out --fuse.")
        if self.selector == "attention" and self.stages[:1] == (0,):
            raise ConfigError("No block has attended yet before block 0; with attention, choose --stages from 1 on.")
        if (self.keep_ratios is None) == (self.keep_counts is None):
            raise ConfigError("Give either keep ratios or keep counts, not both and not neither.")
        values: Sequence[float] = self.schedule
        if len(values) > LARGEST["stages"]:
            raise ConfigError(f"A model has at most {LARGEST['stages']} stages, not {len(values)}.")
        if len(values) != len(self.stages):
            raise ConfigError(f"{len(values)} keep values for {len(self.stages)} stages {list(self.stages)}; "
                              "give one per stage.")
        if self.keep_ratios is not None and any(not 0 < r <= 1 for r in values):
            raise ConfigError(f"Keep ratios {list(values)} must be above 0 and at most 1.")
        if self.keep_counts is not None and any(k < 1 for k in values):
            raise ConfigError(f"Keep counts {list(values)} must be at least 1.")
        if any(b > a for a, b in zip(values, values[1:])):
            raise ConfigError(f"Keep values {list(values)} must not increase: dropped tokens do not come back.")
        if self.selector == "structural" and (len(values) != 1 or self.keep_ratios not in (None, (QUARTER,))):
            raise ConfigError("Structural pooling leaves a quarter of the patches, once; leave out --keep-ratio.")

    @classmethod
    def from_ratio(cls, ratio: float, stages: Sequence[int], selector: str = "prediction",
                   fuse: bool = False) -> PruneConfig:
        """The published schedule: stage s (from 1) keeps ratio**s of the patches."""
        if not 0 < ratio <= 1:
            raise ConfigError(f"Keep ratio {ratio} must be above 0 and at most 1 (1 is the dense model).")
        return cls(tuple(stages), tuple(ratio ** (s + 1) for s in range(len(stages))), None, selector, fuse)

    @property
    def keeps_patches(self) -> bool:
        """True when the patches that are left are patches of the image, not means of several."""
        return self.selector != "structural"

    @property
    def schedule(self) -> tuple[float, ...]:
        """The ratios or the counts, whichever is set."""
        return self.keep_ratios if self.keep_ratios is not None else self.keep_counts or ()

    def counts(self, patches: int) -> tuple[int, ...]:
        """K per stage for N = `patches`: int(N * ratio), the truncation of the published code.

        Raises:
            ConfigError: a stage would keep no token, or more than there are.
        """
        if self.keep_counts is not None:
            counts = self.keep_counts
        else:
            counts = tuple(int(patches * ratio) for ratio in self.keep_ratios or ())
        if any(k < 1 for k in counts):
            raise ConfigError(f"Keep ratios {[round(float(r), 4) for r in self.schedule]} of {patches} patches "
                              "leave 0 tokens; choose larger ratios.")
        if any(k > patches for k in counts):
            raise ConfigError(f"Keep counts {list(counts)} exceed the {patches} patches of the model.")
        if self.selector == "structural" and counts != (patches // 4,):
            raise ConfigError(f"Structural pooling leaves {patches // 4} patches; leave out --keep-counts.")
        return counts

    def aligned(self, patches: int, prefix: int, multiple: int) -> PruneConfig:
        """The same schedule with K + `prefix` rounded to a multiple per stage; a stage that keeps all still does.

        `prefix` counts every token beside the patches: class, distillation, registers, a fused one.

        Raises:
            ConfigError: structural pooling, whose count is fixed, or no multiple fits.
        """
        if self.selector == "structural":
            raise ConfigError("Structural pooling leaves a quarter of the patches; leave out --align.")
        counts, before = [], patches
        for keep in self.counts(patches):
            tokens = (keep + prefix + multiple // 2) // multiple * multiple
            tokens = max(tokens - multiple * (tokens - prefix > before), (prefix // multiple + 1) * multiple)
            if keep < before < tokens - prefix:
                raise ConfigError(f"No multiple of {multiple} fits between {prefix} and {before + prefix} tokens; "
                                  "lower --align.")
            before = before if keep == before else tokens - prefix
            counts.append(before)
        return PruneConfig(self.stages, None, tuple(counts), self.selector, self.fuse)

    def ratios(self, patches: int) -> tuple[float, ...]:
        """The training target per stage, as a fraction of N = `patches`."""
        return self.keep_ratios or tuple(k / patches for k in self.counts(patches))

    def is_dense(self, patches: int) -> bool:
        """True when no stage drops a token."""
        return all(k == patches for k in self.counts(patches))


@dataclass(frozen=True)
class KeepRequest(JsonConfig):
    """What a user asked of the pruning; at most one of `ratio`, `ratios`, `counts`. The defaults ask nothing.

    `align` rounds the kept tokens, prefix included, to a multiple, see `PruneConfig.aligned`.
    """

    ratio: float | None = option(None, "Stages keep RATIO, RATIO**2, ... of the patches; 1.0 is dense.", "--keep-ratio")
    ratios: tuple[float, ...] | None = option(None, "Per stage, of the initial patches: 0.8,0.6,0.5.", "--keep-ratios")
    counts: tuple[int, ...] | None = option(None, "Per stage, patches: 137,96,67.", "--keep-counts")
    stages: tuple[int, ...] | None = option(None, "Blocks before which patches are dropped: 3,6,9.")
    selector: str | None = option(None, "What chooses the patches; attention, random and structural need no training.",
                                  choices=SELECTORS)
    fuse: bool = option(False, "Merge dropped tokens into one; with --selector attention.")
    align: int | None = option(None, "Round kept tokens, class token included, to multiples.", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align is not None and self.align < 1:
            raise ConfigError(f"Token counts are aligned to a multiple of at least 1, not {self.align}.")

    @property
    def asks(self) -> bool:
        """True when a schedule is given; stages alone are none, structural pooling has only one."""
        return self.selector == "structural" or any(v is not None for v in (self.ratio, self.ratios, self.counts))

    def resolve(self, depth: int, default: PruneConfig | None) -> PruneConfig | None:
        """The request laid over what the checkpoint records (`default`, None when it records nothing).

        Raises:
            ConfigError: contradictory values, no schedule for a selector, or stages that the model does not have.
        """
        given = [value for value in (self.ratio, self.ratios, self.counts) if value is not None]
        if len(given) > 1:
            raise ConfigError("Give only one of --keep-ratio, --keep-ratios and --keep-counts.")
        selector = self.selector or (default.selector if default else "prediction")
        if default and default.selector != selector and "structural" in (default.selector, selector):
            # Neither has a schedule for the other.
            default = None
        if default is None and selector == "structural":
            default = PruneConfig(default_stages(depth, selector), (QUARTER,), selector=selector)
        same = default if default and default.selector == selector else None
        stages = self.stages or (same.stages if same else default_stages(depth, selector))
        check_stages(stages, depth)
        fuse = self.fuse or bool(same and same.fuse)
        if self.ratio is not None:
            return PruneConfig.from_ratio(self.ratio, stages, selector, fuse)
        if given:
            return PruneConfig(stages, self.ratios, self.counts, selector, fuse)
        if default is None and (self.selector or self.fuse):
            raise ConfigError("A selector has to know how many patches to keep; add --keep-ratio 0.7, say.")
        return default and PruneConfig(stages, default.keep_ratios, default.keep_counts, selector, fuse)


@dataclass(frozen=True)
class EngineRunConfig(JsonConfig):
    """How an artifact runs on a GPU. `trust`, `runtime_cache` and `streams` concern engine plans only.

    `cuda_graph` captures each batch size once as a CUDA graph and replays it. A checkpoint then runs with the exact
    `rewrites` of model.forms.
    """

    trust: bool = option(False, "Load an engine that has no sidecar (.json), or whose hash differs from it. Engines "
                                "contain native code: only do this for files you trust.")
    runtime_cache: str | None = option(None, "File in which TensorRT for RTX keeps its compiled kernels.")
    cuda_graph: bool = option(False, "Run engines, and checkpoints on a GPU, as captured CUDA graphs; checkpoints then "
                                     "have the exact rewrites.")
    streams: int = option(1, "CUDA streams that an engine runs on at once.")
    rewrites: bool = True

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ConfigError(f"An engine runs on at least 1 stream, not {self.streams}.")


@dataclass(frozen=True)
class LoadConfig(JsonConfig):
    """What a user may override when an artifact is opened; all but `engine` concerns checkpoints.

    `image_size` is (height, width) in pixels; from `mean` to `interpolation` it is the preprocessing; `keep` replaces
    the schedule; `precision` is what PyTorch computes in, predictors included.
    """

    model: str | None = option(None, "Architecture, when the checkpoint does not record it: a zoo name or timm:NAME.")
    weights: str = option("auto", "The weights of the model, or their moving average, where a file has both.",
                          choices=WEIGHTS)
    image_size: tuple[int, int] | None = image_size_option()
    keep: KeepRequest = KeepRequest()
    engine: EngineRunConfig = EngineRunConfig()
    precision: str = switches("float32", ("float32", *HALF), {
        "--fp16": "Run checkpoints in float16, keep scores included.",
        "--bf16": "Run checkpoints in bfloat16, keep scores included."})
    model_args: Arguments = option((), "timm's keyword arguments of the model: heads=12,global_pool=avg,reg_tokens=4.")
    mean: tuple[float, ...] | None = option(None, "Mean per channel of RGB in 0..1, when the checkpoint does not "
                                                  "record it.")
    std: tuple[float, ...] | None = option(None, "Standard deviation per channel, when it is not recorded.")
    crop: float | None = option(None, "Fraction of the resized image that is kept, when it is not recorded: 0.875.")
    interpolation: str | None = option(None, "How images are resized, when it is not recorded.", choices=INTERPOLATIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "model_args", as_arguments(self.model_args))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            # One value counts for every channel.
            values = tuple(values) * (3 if len(values) == 1 else 1)
            object.__setattr__(self, name, values)
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise ConfigError(f"--{name} needs three numbers{' above 0' * (name == 'std')}, as in "
                                  f"--{name} 0.5,0.5,0.5.")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ConfigError(f"--crop {self.crop:g} must be above 0 and at most 1.")
