"""How an engine is built, and for which batch sizes."""
from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import JsonConfig
from ..errors import ConfigError

OPTIMIZATION_LEVELS = range(6)                           # builder optimization levels of TensorRT


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


@dataclass(frozen=True)
class BuildConfig(JsonConfig):
    """How an engine is built; None leaves a choice to the builder.

    `workspace_mib` bounds scratch memory on the GPU; `timing_cache` is a file that builds share;
    `optimization_level` is 0 (fast build) to 5 (fast engine). `version_compatible` and
    `hardware_compatible` (Ampere and later) trade speed for engines that load in more places.
    `refittable` lets weights be exchanged for others; `strip_weights` leaves them out of the plan, and takes only the
    same ones back unless it is also `refittable`, as every such engine of TensorRT for RTX is.
    `compute_capabilities` are the GPUs that it must run on, like "8.9"; empty is the one at hand for
    TensorRT, and its default set for TensorRT for RTX.
    `tf32` lets float32 products round their inputs to 10 bits of mantissa. `allow_precision_fallback` accepts
    matrix products that the builder computes in a wider type than the graph asks for.
    """

    profiles: tuple[BatchProfile, ...] = (BatchProfile(1, 8, 32),)
    workspace_mib: float | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    allow_precision_fallback: bool = False

    def __post_init__(self) -> None:
        profiles = tuple(BatchProfile.from_dict(p) if isinstance(p, Mapping) else p for p in self.profiles)
        object.__setattr__(self, "profiles", profiles)
        names = [profile.name for profile in profiles]
        if not names or len(set(names)) < len(names):
            raise ConfigError("An engine needs at least one profile, each with a name of its own, not "
                              f"{', '.join(names) or 'none'}.")
        if self.workspace_mib is not None and not self.workspace_mib > 0:
            raise ConfigError(f"The workspace must be more than 0 MiB, not {self.workspace_mib}.")
        if self.optimization_level is not None and self.optimization_level not in OPTIMIZATION_LEVELS:
            raise ConfigError(f"The builder's optimization level is 0 to 5, not {self.optimization_level}.")
        capabilities = tuple(dict.fromkeys(parse_capability(text) for text in self.compute_capabilities))
        object.__setattr__(self, "compute_capabilities", capabilities)

    def flags(self) -> list[str]:
        """These settings as the command line takes them."""
        flags = [f"--batch {p}" if i == 0 and p.name == "default" else f"--profile {shlex.quote(f'{p.name}={p}')}"
                 for i, p in enumerate(self.profiles)] if self.profiles != BuildConfig().profiles else []
        for name, option in (("workspace_mib", "--workspace"), ("timing_cache", "--timing-cache"),
                             ("optimization_level", "--opt-level")):
            value = getattr(self, name)
            text = f"{value:.15g}" if isinstance(value, float) else shlex.quote(str(value))
            flags += [] if value is None else [f"{option} {text}"]
        flags += [f"--{name.replace('_', '-')}" for name in
                  ("version_compatible", "hardware_compatible", "refittable", "strip_weights", "tf32",
                   "allow_precision_fallback") if getattr(self, name)]
        if self.compute_capabilities:
            flags.append(f"--compute-capability {','.join(self.compute_capabilities)}")
        return flags
