"""Galleries: the same few images run through every artifact that outputs which patches it keeps."""
from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifacts.facts import ArtifactFacts
from ..config import ModelConfig
from ..data.images import ImageSet, Track
from ..data.labels import class_numbers
from ..data.open import open_images
from ..data.reading import DecodedImage
from ..errors import DataError, DyvitError
from ..runners.base import Runner
from ..runners.open import open_runner
from ..visualization.views import ImageView, pruned_facts, view_images, with_labels
from .collect import PageArtifact

# An image with sides of at most this many pixels is stored without loss and shown without smoothing.
SMALL = 128
# JPEG quality of larger images.
QUALITY = 85
# Images per run.
CHUNK = 32


class Picture(NamedTuple):
    """An image, stored once on the page for all artifacts: its id, and its bytes as a data URI."""

    id: str
    href: str
    small: bool


class Shot(NamedTuple):
    """One image with the outputs of one artifact; `dropped` has one SVG path per stage over the dropped patches."""

    picture: str
    alt: str
    prediction: str
    confidence: str
    label: str | None
    right: bool | None
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """The gallery of one artifact: `counts` are the kept patches after each stage, `grid` is (rows, columns)."""

    entry: PageArtifact
    grid: tuple[int, int]
    counts: tuple[int, ...]
    shots: tuple[Shot, ...]
    small: bool

    @property
    def steps(self) -> tuple[str, ...]:
        """The labels of the slider, from all patches to the last stage."""
        patches = self.grid[0] * self.grid[1]
        return (f"all {patches} patches", *(f"stage {i}: {count} of {patches} patches"
                                            for i, count in enumerate(self.counts)))


class Galleries(NamedTuple):
    """All galleries; `notes` say which artifacts have none, and what to do about it."""

    pictures: tuple[Picture, ...]
    galleries: tuple[Gallery, ...]
    notes: tuple[str, ...]


def make_galleries(entries: Sequence[PageArtifact], data: str, limit: int, track: Track[PageArtifact],
                   labels: str | None = None) -> Galleries:
    """Runs up to `limit` images of `data` through the pruned artifacts among `entries`.

    Args:
        labels: a file with the names of classes to show, see `read_labels`.

    Raises:
        DataError: there are no such images, none of them can be read, or the labels are not those of an artifact.
    """
    pictures: dict[str, Picture] = {}
    galleries, notes = [], []
    read: dict[ModelConfig, tuple[ImageSet, list[DecodedImage]]] = {}
    pruned = [e for e in entries if e.facts and not e.facts.dense]
    # Labels that do not fit are refused before anything runs.
    shown = {entry.key: with_labels(entry.facts, labels).class_names for entry in pruned if entry.facts}
    for entry in track(pruned, "looking at images", len(pruned)):
        assert entry.facts is not None
        if entry.facts.model not in read:
            images = open_images(data, entry.facts.model, limit=limit)
            read[entry.facts.model] = images, _read(images)
            notes += [f"{line} (left out of the galleries)" for line in images.skipped]
        images, readable = read[entry.facts.model]
        classes, doubt = _classes(images, entry.facts.class_names or shown[entry.key])
        notes += [doubt] if doubt else []
        try:
            with open_runner(entry.path) as runner:
                galleries.append(_gallery(entry, runner, readable, classes, labels, pictures))
        except DyvitError as error:
            notes.append(f"{entry.key} has no gallery: {error}")
    return Galleries(tuple(pictures.values()), tuple(galleries), tuple(dict.fromkeys(notes)))


def _read(images: ImageSet) -> list[DecodedImage]:
    return [DecodedImage(*item) for batch in images.batches(CHUNK) for item in zip(
        batch.names, batch.images, batch.labels.tolist() if batch.labels is not None else [None] * len(batch.names))]


def _classes(images: ImageSet, names: tuple[str, ...] | None) -> tuple[list[int] | None, str]:
    """The model's number of each class of the images, matched by `names` as in `evaluate`; None and a reason if classes
    cannot be matched.

    Without class names, a model's class numbers may differ from those of the images.
    """
    if images.class_names is None or not names:
        return None, ""
    try:
        return class_numbers(images, names, "artifact").tolist(), ""
    except DataError as error:
        return None, f"The galleries do not say which predictions are right: {error}"


def _gallery(entry: PageArtifact, runner: Runner, images: Sequence[DecodedImage], classes: list[int] | None,
             labels: str | None, pictures: dict[str, Picture]) -> Gallery:
    facts: ArtifactFacts = with_labels(pruned_facts(runner), labels)
    shots: list[Shot] = []
    counts: tuple[int, ...] = ()
    for start in range(0, len(images), CHUNK):
        chunk = images[start:start + CHUNK]
        for view, image in zip(view_images(runner, facts, chunk), chunk):
            digest = hashlib.sha256(view.pixels.tobytes() + str(view.pixels.shape).encode()).hexdigest()
            if digest not in pictures:
                pictures[digest] = Picture(f"picture-{len(pictures)}", _data_uri(view.pixels), _is_small(view.pixels))
            number = classes[image.label] if classes and image.label is not None else None
            label = facts.class_names[number] if facts.class_names and number is not None else None
            shots.append(_shot(view, pictures[digest].id, label, right=number == view.number))
            counts = view.counts
    return Gallery(entry, facts.model.grid, counts, tuple(shots), max(facts.model.image_size) <= SMALL)


def _shot(view: ImageView, picture: str, label: str | None, right: bool) -> Shot:
    """A shot; without a `label` it is not known whether the prediction is `right`."""
    confidence = f"{view.confidence:.0%}" if view.confidence >= 0.1 else f"{view.confidence:.1%}"
    alt = f"{Path(view.name).name}: predicted {view.prediction}, {confidence} sure"
    alt += "" if label is None or right else f", but it is {label}"
    return Shot(picture, alt, view.prediction, confidence, label, None if label is None else right,
                tuple(map(dropped_path, view.kept)))


def dropped_path(kept: NDArray[np.bool_]) -> str:
    """An SVG path over the patches that are False in bool [rows, columns]; a patch is 1 x 1."""
    rectangles = []
    for row, line in enumerate(np.pad(~kept, ((0, 0), (1, 1))).astype(np.int8)):  # [columns + 2]
        edges = np.flatnonzero(np.diff(line))
        rectangles += [f"M{start} {row}h{end - start}v1h-{end - start}z"
                       for start, end in zip(edges[::2], edges[1::2])]
    return "".join(rectangles)


def _is_small(pixels: NDArray[Any]) -> bool:
    return bool(max(pixels.shape[:2]) <= SMALL)


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """A data URI of a small image as PNG, or of a larger one as JPEG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    kind = "png" if _is_small(pixels) else "jpeg"
    image.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
