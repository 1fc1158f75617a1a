"""Draws which patches artifacts keep: per image, over a data set, or the differences between two artifacts."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.facts import ArtifactFacts
from ..artifacts.files import make_folder
from ..artifacts.kinds import SUFFIXES
from ..artifacts.locks import TEMPORARY, sole_use
from ..config import ImageSpec, LoadConfig, with_orientation
from ..data.images import Batch, Track, no_track
from ..data.listing import count_images, list_images
from ..data.open import open_images
from ..data.reading import DecodedImage, read_batches, spread
from ..errors import ConfigError
from ..optional import require
from ..parity.compare import open_pair
from ..runners.base import Runner
from ..runners.open import is_checkpoint, open_runner
from .config import DATA_IMAGES, VisualizeConfig
from .drawings import DifferenceDrawing, Drawing, HeatMapDrawing, ImageDrawing
from .report import VisualizeReport
from .views import pruned_facts, require_scores, view_images, with_labels


def visualize(artifacts: Sequence[str | Path], sources: Sequence[str | Path] = (), folder: str | Path = "masks",
              config: VisualizeConfig = VisualizeConfig(), load: LoadConfig = LoadConfig(),
              track: Track[Any] = no_track) -> VisualizeReport:
    """Writes into `folder` a figure per image and a contact sheet, or one heat map; figures 5 and 6 of the paper.

    Images are shown as the model gets them, resized and cropped. Memory does not grow with their number, and the same
    images give the same files, byte for byte.

    Args:
        artifacts: one, or two with `config.diff`; anything that `open_runner` opens.
        sources: image files, folders, .tar shards, or wds/FOLDER; empty if `config.data` names a data set.

    Raises:
        ConfigError: an artifact does not output its kept patches, two cannot be compared, options contradict, or
            another command writes figures into `folder`.
        DataError: there is no image, or none can be read, or `config.labels` are not those of the model.
        MissingDependency: matplotlib is not installed.
    """
    require("matplotlib", extra="report")
    names = [str(source) for source in sources]
    _check_request(artifacts, names, Path(folder), config)
    with contextlib.ExitStack() as stack:
        runners = _open(stack, artifacts, config, load)
        facts = [with_labels(pruned_facts(runner), config.labels) for runner in runners]
        if config.style == "scores":
            require_scores(runners[0], facts[0])
        _check_pair(runners, facts)
        images = _Images(names, config, with_orientation(runners[0].image_spec(load.image_size), config.orient))
        make: Callable[..., Drawing] = (
            HeatMapDrawing if config.heatmap else DifferenceDrawing if config.diff else ImageDrawing)
        folder, short_names = make_folder(folder), _short_names(artifacts)
        stack.enter_context(sole_use(folder / "figures", name=folder))
        drawing, count = make(folder, config, short_names, images.total), 0
        for batch in track(images.batches(config.batch), "drawing", -(-images.total // config.batch)):
            read = [DecodedImage(images.short(name), pixels, None) for name, pixels in zip(batch.names, batch.images)]
            for views in zip(*(view_images(runner, own, read) for runner, own in zip(runners, facts))):
                drawing.add(*views)
            count += len(read)
        drawn = drawing.finish(count)
        files = sum(path.is_file() and not TEMPORARY.match(path.name) for path in folder.iterdir())
        others = files - drawn.files - (drawn.overview is not None)
        return VisualizeReport(short_names, images.name, count, str(folder), drawn, tuple(images.skipped), others)


def _short_names(artifacts: Sequence[str | Path]) -> tuple[str, ...]:
    """The shortest ends of the artifacts' paths that differ from one another."""
    paths = [Path(artifact) for artifact in artifacts]
    longest = max(len(path.parts) for path in paths)
    ends = ([Path(*path.parts[-count:]).as_posix() for path in paths] for count in range(1, longest + 1))
    return tuple(next((names for names in ends if len({*names}) == len(names)), [str(path) for path in paths]))


def _check_request(artifacts: Sequence[str | Path], sources: Sequence[str], folder: Path,
                   config: VisualizeConfig) -> None:
    """Raises ConfigError for requests that are wrong whatever the files contain, before any is opened."""
    if len(artifacts) != 1 + config.diff or (config.diff and not sources and not config.data):
        raise ConfigError("--diff takes two artifacts and images: A B IMAGES..." if config.diff else
                          f"One artifact is drawn at a time, not {len(artifacts)}; two are compared with --diff.")
    for source in sources:
        # A .tar file may hold images.
        if os.path.splitext(source.lower())[1] in {s for found in SUFFIXES.values() for s in found} - {".tar"}:
            raise ConfigError(f"{source} is an artifact, not an image; two artifacts are compared with --diff.")
    if bool(sources) == bool(config.data):
        raise ConfigError("Name the images to draw: files and folders, or a data set with --data, but not both.")
    for source in (*sources, *filter(None, (config.data,))):
        _check_apart(folder, source)


def _check_apart(folder: Path, source: str) -> None:
    """Raises ConfigError if the figures would replace images of `source`, or be found among them by a later run."""
    path = source.removeprefix("wds/").removeprefix("hfds/") if not os.path.exists(source) else source
    images, figures = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    inside = images in (figures, *figures.parents) if images.is_dir() else images.parent == figures
    if inside and images.exists():
        raise ConfigError(f"{folder} holds images of {source}, among which the figures would be; choose another -o.")


def _open(stack: contextlib.ExitStack, artifacts: Sequence[str | Path], config: VisualizeConfig,
          load: LoadConfig) -> tuple[Runner, ...]:
    if len({is_checkpoint(artifact) for artifact in artifacts}) == 2:
        return open_pair(stack, artifacts[0], artifacts[1], load, config.device)
    return tuple(stack.enter_context(open_runner(artifact, load=load, device=config.device)) for artifact in artifacts)


def _check_pair(runners: Sequence[Runner], facts: Sequence[ArtifactFacts]) -> None:
    """Raises ConfigError unless two artifacts have the same patches and keep the same number of them."""
    properties = [{"image size": own.model.image_size, "patch grid": own.model.grid,
                   "preprocessing": own.model.preprocess,
                   "kept patches": own.prune.counts(own.model.patches) if own.prune else ()} for own in facts]
    for name, value in properties[0].items():
        if value != properties[-1][name]:
            raise ConfigError(f"{runners[0].name} and {runners[1].name} differ in {name}, {value} and "
                              f"{properties[-1][name]}; compare artifacts that do not.")


class _Images:
    """The images to draw, from files or from a data set; `skipped` collects those that could not be read."""

    def __init__(self, sources: Sequence[str], config: VisualizeConfig, spec: ImageSpec) -> None:
        self._sources, self._data, self._spec, self._limit = sources, config.data, spec, config.images
        self.skipped: list[str] = []
        if config.data:
            limit = config.images or (None if config.heatmap else DATA_IMAGES)
            self._set = open_images(config.data, spec, config.split, limit)
            self.name, self.total = self._set.name, len(self._set)
        else:
            self._there = count_images(sources)
            self.name, self.total = ", ".join(sources), min(self._there, config.images or self._there)

    def short(self, name: str) -> str:
        """The name of an image relative to the source that contains it."""
        roots = [str(root).rstrip("/") + "/" for root in (*self._sources, self._data) if root]
        root = max((root for root in roots if name.startswith(root)), key=len, default="")
        return name.removeprefix(root) if root else name.rpartition("/")[2]

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields batches of up to `size` images, in order."""
        if not self._sources:
            yield from self._set.batches(size)
            self.skipped += self._set.skipped
            return
        chosen = set(spread(self._there, self._limit).tolist()) if self._limit else None
        places = (place for number, place in enumerate(list_images(self._sources, self.skipped))
                  if chosen is None or number in chosen)
        items = ((place.name, place.read) for place in places)
        yield from read_batches(self.name, items, size, self._spec, self.skipped, whole=True)
