"""Seeded mutations of every file with JSON, TOML, YAML or names that dyvit reads.

`python tests/mutations.py 1000` reads so many of each kind, and prints what happened.
"""
from __future__ import annotations

import copy
import functools
import json
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyvit_deploy.errors import DyvitError

# Values that a file may have anywhere. The longest texts and the deepest lists are above the limits.
HOSTILE = [
    None, True, False, -1, 0, 1, 3, 1000, 255.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), 2**31,
    2**63, 10**30, 10**5000, "", "x", "1e5", "0", "nan", "\ud800", "\udcff", "\x00", "\x1b[31m", "a\nb",
    "../../etc/passwd", "/dev/zero", "y" * 300, "z" * 5000, "w" * 2**21, "9" * 5000, "[red]", "{0}", "%s", "=1+1",
    "\u202e", [], {}, [[]], [0], ["x", 1], [None], {"": 0}, {"x": {"x": None}}, list(range(5000)),
    [1.5, "a", None, True], {"k" * 5000: 1},
    functools.reduce(lambda inner, _: [inner], range(40), []),
    functools.reduce(lambda inner, _: {"a": inner}, range(200), 1),
]
SNIPPETS = ["[" * 9999, "{\"a\":" * 9999, "NaN", "1e999", "-", "\\", "\"", "}", "]", ",", ":", "\x00", "\ufeff",
            "9" * 4400, "\\ud800", "null", "*a", "&a ", "<<: ", "!!python/object:os.system ", "a." * 400, "#" * 20000,
            "\r", "\u2028"]


def mutated(value: Any, rng: random.Random) -> str:
    """The JSON of `value` with one to three changes; one in five times, its text is damaged instead."""
    if rng.random() < 0.2:
        return damaged(json.dumps(value), rng)
    value = copy.deepcopy(value)
    with long_numbers():
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = _changed(value, rng)
        return json.dumps(value)


class long_numbers:  # noqa: N801
    """Python writes no whole number of more than 4,300 digits otherwise."""

    def __enter__(self) -> None:
        sys.set_int_max_str_digits(0)

    def __exit__(self, *_: object) -> None:
        sys.set_int_max_str_digits(4300)


def _changed(value: Any, rng: random.Random) -> Any:
    """`value` with a hostile value somewhere, or without something, or with something more."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.05:
        return _hostile(rng)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    action = rng.random()
    if action < 0.1:
        del value[key]
    elif action < 0.15 and isinstance(value, dict):
        value[rng.choice(("surprise", "", "n" * 5000, "format"))] = _hostile(rng)
    elif action < 0.2 and isinstance(value, list):
        short = len(str(value[key])) < 200
        value.extend([value[key]] * (rng.choice((1, 50, 3000)) if short else 1))
    else:
        inner = value[key]
        deeper = isinstance(inner, (dict, list)) and inner and rng.random() < 0.8
        value[key] = _changed(inner, rng) if deeper else copy.deepcopy(rng.choice([*HOSTILE, *_near(inner)]))
    return value


def _hostile(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(HOSTILE))


def _near(value: Any) -> list[Any]:
    """Values of the same type that are out of range."""
    if isinstance(value, (int, float)):
        return [-value, value + 1, value * 2, value * 1000, value * 10**9, str(value)]
    return [value * 2, value[:1], [value]] if isinstance(value, str) else []


def damaged(text: str, rng: random.Random) -> str:
    """`text`, cut off, with something in it, or with characters exchanged."""
    at = rng.randrange(len(text) + 1)
    action = rng.randrange(4)
    if action == 0:
        return text[:at]
    if action == 1:
        return text[:at] + rng.choice(SNIPPETS) + text[at:]
    if action == 2:
        return text[:at] + text[at + rng.randrange(1, 20):]
    letters = list(text)
    for _ in range(rng.randrange(1, 4)):
        letters[rng.randrange(len(letters))] = chr(rng.choice((0, 10, 34, 44, 48, 57, 91, 123, 255, 0x2028)))
    return "".join(letters)


@dataclass(frozen=True)
class Kind:
    """A kind of file: `sample` is one that is read, `write` puts a mutated text into a folder, `read` is what dyvit
    does with the path. Text is damaged, and all else mutated as JSON."""

    sample: Any
    write: Callable[[str], Path]
    read: Callable[[Path], object]

    def text(self, seed: str | None) -> str:
        """The sample, or a mutation of it."""
        if seed is None:
            return self.sample if isinstance(self.sample, str) else json.dumps(self.sample)
        rng = random.Random(seed)
        return damaged(self.sample, rng) if isinstance(self.sample, str) else mutated(self.sample, rng)


@dataclass
class Outcome:
    """What happened to the files of a kind; `broken` has the seed and the error of each that was not refused properly.
    `slowest` is in CPU seconds, `peak_mib` what the peak of resident memory grew by."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_seed: str = ""
    peak_mib: float = 0.0
    broken: list[str] = field(default_factory=list)


def run(name: str, kind: Kind, count: int) -> Outcome:
    """Reads the sample, which must succeed, then `count` mutations of it."""
    kind.read(kind.write(kind.text(None)))
    outcome, before = Outcome(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        seed = f"{name} {number}"
        path = kind.write(kind.text(seed))
        began = time.process_time()
        try:
            kind.read(path)
            outcome.read += 1
        except DyvitError as error:
            outcome.refused += 1
            if len(str(error)) > 2000 or "\n" in str(error):
                outcome.broken.append(f"{seed}: a message of {len(str(error))} characters: {str(error)[:200]!r}")
        except Exception as error:
            outcome.broken.append(f"{seed}: {type(error).__name__}: {str(error)[:200]}")
        seconds = time.process_time() - began
        if seconds > outcome.slowest:
            outcome.slowest, outcome.slowest_seed = seconds, seed
    outcome.peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return outcome


def writes(path: Path) -> Callable[[str], Path]:
    """Writes a text to `path`. Half surrogates, which no file in UTF-8 has, become question marks."""
    def write(text: str) -> Path:
        path.write_bytes(text.encode("utf-8", "replace"))
        return path
    return write


if __name__ == "__main__":
    from mutated_kinds import kinds

    logging.disable()
    total: Counter[str] = Counter()
    chosen = sys.argv[2:]
    for name, make in kinds().items():
        if chosen and not any(word in name for word in chosen):
            continue
        with tempfile.TemporaryDirectory() as place:
            result = run(name, make(Path(place)), int(sys.argv[1]))
        total.update(files=result.read + result.refused + len(result.broken), read=result.read, refused=result.refused,
                     broken=len(result.broken))
        print(f"{name}: {result.read} read, {result.refused} refused, {len(result.broken)} broken, slowest "
              f"{result.slowest:.2f} s ({result.slowest_seed}), {result.peak_mib:+.0f} MiB", flush=True)
        for line in result.broken[:20]:
            print("   ", line, flush=True)
    print(dict(total), f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
