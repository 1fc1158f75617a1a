"""How an engine is built, and for which batch sizes."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..settings.fields import OPTIONS, FieldOptions, JsonConfig, Kind, Option, option

# Builder optimization levels of TensorRT.
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class BatchProfile(JsonConfig):
    """One optimization profile: the batch sizes that an engine accepts, and the one that it is tuned for."""

    min: int
    opt: int
    max: int
    name: str = "default"

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"A profile is MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, not {self}.")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str, name: str = "default") -> BatchProfile:
        """`1:8:32`, or `8` for that batch size only.

        Raises:
            ConfigError: anything else.
        """
        if not re.fullmatch(r"\d{1,9}(:\d{1,9}:\d{1,9})?", text):
            raise ConfigError(f"Batch sizes are written MIN:OPT:MAX, like 1:8:32, or as one number, not {text!r}.")
        sizes = [int(part) for part in text.split(":")]
        return cls(sizes[0], sizes[len(sizes) // 2], sizes[-1], name)

    @classmethod
    def parse_named(cls, text: str) -> BatchProfile:
        """`latency=1:1:1`; see `parse`."""
        name, equals, sizes = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"A profile is written NAME=MIN:OPT:MAX, like latency=1:1:1, not {text!r}.")
        return cls.parse(sizes, name)


def parse_capability(text: str) -> str:
    """A compute capability as "8.9", from `8.9` or `89`.

    Raises:
        ConfigError: none that a GPU has.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)|(\d{1,2})(\d)", text.strip())
    if match is None or not 5 <= int(match[1] or match[3]) < 20:
        raise ConfigError(f"A compute capability is written like 8.9 or 89, not {text!r}.")
    return f"{match[1] or match[3]}.{match[2] or match[4]}"


def profile_flags(profiles: Sequence[BatchProfile]) -> list[str]:
    """The command line's words for `profiles`: --batch for a first one without a name, else --profile."""
    words: list[str] = []
    for number, profile in enumerate(profiles):
        plain = number == 0 and profile.name == "default"
        words += ["--batch", str(profile)] if plain else ["--profile", f"{profile.name}={profile}"]
    return words


_BATCH = Option(("--batch",), "Batch sizes of an engine; default {default}.",
                kind=Kind("MIN:OPT:MAX", "a batch range", BatchProfile.parse, lambda profiles: str(profiles[0])))
_PROFILE = Option(("--profile",), "One of several batch ranges.", repeated=True,
                  kind=Kind("NAME=MIN:OPT:MAX", "a named batch range", BatchProfile.parse_named))


@dataclass(frozen=True)
class BuildConfig(JsonConfig):
    """How an engine is built; None leaves a choice to the builder.

    `version_compatible` and `hardware_compatible` trade speed for engines that load in more places. `strip_weights`
    leaves the weights out of the plan, and takes only the same ones back unless it is also `refittable`, as every such
    engine of TensorRT for RTX is. `compute_capabilities` are the GPUs that it must run on, like "8.9"; empty is the
    one at hand for TensorRT, and its default set for TensorRT for RTX. TF32 has 10 bits of mantissa.
    """

    profiles: tuple[BatchProfile, ...] = dataclasses.field(
        default=(BatchProfile(1, 8, 32),), metadata={OPTIONS: FieldOptions((_BATCH, _PROFILE), write=profile_flags)})
    workspace_mib: float | None = option(None, "Limit of scratch memory.", "--workspace", "MIB")
    timing_cache: str | None = option(None, "File that builds share; made anew when damaged.")
    optimization_level: int | None = option(None, "0 builds fastest, 5 runs fastest.", "--opt-level", "[0-5]")
    version_compatible: bool = option(False, "Loads in later TensorRT versions too; for --format trt.")
    hardware_compatible: bool = option(False, "Runs on every GPU from Ampere on; for --format trt.")
    refittable: bool = option(False, "dyvit refit can exchange the weights for others.")
    strip_weights: bool = option(False, "Leave weights out; dyvit refit puts the same ones back, with --refittable "
                                        "also others.")
    compute_capabilities: tuple[str, ...] = option((), "Of the GPUs that will run it: 8.9,12.0; for --format rtx.",
                                                   "--compute-capability", "X.Y,...")
    tf32: bool = option(False, "float32 products may round their inputs to TF32.")
    allow_precision_fallback: bool = option(False, "Accept matrix products in a wider type than asked for; they are "
                                                   "listed.")

    def __post_init__(self) -> None:
        names = [profile.name for profile in self.profiles]
        if not names or len(set(names)) < len(names):
            raise ConfigError("An engine needs at least one profile, each with a name of its own, not "
                              f"{', '.join(names) or 'none'}.")
        if self.workspace_mib is not None and not self.workspace_mib > 0:
            raise ConfigError(f"The workspace must be more than 0 MiB, not {self.workspace_mib}.")
        if self.optimization_level is not None and self.optimization_level not in OPTIMIZATION_LEVELS:
            raise ConfigError(f"The builder's optimization level is 0 to 5, not {self.optimization_level}.")
        capabilities = tuple(dict.fromkeys(parse_capability(text) for text in self.compute_capabilities))
        object.__setattr__(self, "compute_capabilities", capabilities)
