"""Which images a model classifies correctly, in a few bytes of a report, so that two reports can be paired."""
from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..settings.untrusted import typed
from ..statistics.counts import counted
from ..statistics.estimates import Estimate, PairedLoss, UnpairedLoss

# More images are not recorded: they need a megabyte, and shares of so many need no pairs.
MOST = 1 << 22


class Packed(TypedDict):
    """`Answers` in a report."""

    digest: str
    correct: str


@dataclass(frozen=True)
class Answers:
    """The correct answers on a set of images. Two are comparable image by image if `digest` is equal.

    `digest` is the sha256 of the keys of the images in rising order, see `image_key`. `correct` has one bit per image
    in that order, the first one in the highest bit of the first byte, 1 for a correct answer, in base64.
    """

    digest: str
    correct: str

    def bits(self, images: int) -> NDArray[np.bool_]:
        """bool [images], True for a correct answer."""
        packed = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(packed, count=images).astype(bool)


def image_key(name: str, label: int) -> int:
    """A number for the image `name`, without the folder of its set, with this label of the set: 64 bits."""
    text = f"{label} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def pack_answers(keys: NDArray[np.uint64], correct: NDArray[np.bool_]) -> Answers | None:
    """The answers `correct` [n] on the images with these `keys` [n], in any order; None if two images have one key, or
    if there are more than MOST."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if len(keys) > MOST or (ordered[1:] == ordered[:-1]).any():
        return None
    digest = hashlib.sha256(ordered.astype("<u8").tobytes()).hexdigest()
    return Answers(digest, base64.b64encode(np.packbits(correct[order]).tobytes()).decode())


def read_answers(values: Mapping[str, Any] | None, images: int, top1: float) -> Answers | None:
    """The answers in a report with this number of images and accuracy; None if it has none.

    Raises:
        ConfigError: they are damaged, or belong to another result.
    """
    if values is None:
        return None
    answers = Answers(**typed(values, Packed, "answers"))
    if not re.fullmatch("[0-9a-f]{64}", answers.digest):
        raise ConfigError("the digest of the images is not a sha256")
    try:
        packed = base64.b64decode(answers.correct, validate=True)
    # binascii.Error is one; other letters raise the plain one.
    except ValueError as error:
        raise ConfigError("the answers are not base64") from error
    # No bit beyond the last image may be set either.
    right = sum(map(int.bit_count, packed))
    if len(packed) != -(-images // 8) or right != counted(top1, images) or answers.bits(images).sum() != right:
        raise ConfigError("the answers are not those of this accuracy")
    return answers


def estimated_loss(images: int, reference: tuple[float, Answers | None], mine: tuple[float, Answers | None],
                   ) -> Estimate:
    """The accuracy that a model loses against a reference on `images` images; each has a top-1 share (0..1) and its
    answers. Without the answers of both on the same images, the estimate is unpaired."""
    (reference_top1, theirs), (top1, own) = reference, mine
    if theirs is None or own is None or theirs.digest != own.digest:
        return UnpairedLoss(images, counted(reference_top1, images), counted(top1, images))
    expected, got = theirs.bits(images), own.bits(images)
    return PairedLoss(images, int((expected & ~got).sum()), int((got & ~expected).sum()))
