"""Predicts the classes of many images: listed, read, run, kept, written."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..artifacts.files import check_target, is_timm, require_source, sha256
from ..config import LoadConfig
from ..data.images import Track, no_track
from ..data.listing import ImagePlace, count_images, list_images
from ..engine.sidecar import sidecar_path
from ..optional import require
from ..runners.open import is_engine
from .cluster import predict_on_ray
from .config import PredictConfig
from .outputs import write_csv, write_parquet
from .partial import PartialFile
from .predictor import Opener, Places, predict_here
from .report import Prediction, PredictReport, Tally

OPENERS: dict[str, Opener] = {"local": predict_here, "ray": predict_on_ray}


def predict_images(artifact: str | Path, sources: str | Path | Sequence[str | Path],
                   config: PredictConfig = PredictConfig(), load: LoadConfig = LoadConfig(),
                   track: Track[Any] = no_track,
                   watch: Callable[[list[Prediction]], None] | None = None) -> PredictReport:
    """The likeliest classes of every image, whether it has a label or not, with bounded memory.

    Files in `config` are written when all is done; until then the work lies in `FILE.partial`, and the same call goes
    on where an interrupted one stopped: to the same bytes on the same machine and versions of libraries. Finished
    files are written over.

    Args:
        artifact: anything that `open_runner` opens.
        sources: image files, folders (all images in them and below), .tar shards, or wds/FOLDER for a folder of those.
        load: see `open_runner`.
        watch: is called with the rows of each batch that this call predicts, in order.

    Raises:
        ConfigError: more classes than there are, or a partial file of another artifact or with other settings.
        ArtifactError: the artifact cannot be opened, or a file not be written.
        DataError: a source is not there, or holds no image.
        MissingDependency: shards need the extra `train`, Parquet the extra `predict`, "ray" the extra `ray`.
        BackendError: the runtime or the cluster failed.
    """
    names = [str(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    path = require_source(artifact)
    for file in config.files:
        check_target(file)
    if config.parquet:
        require("pyarrow", extra="predict")
    total, tally, notes, damage = count_images(names), Tally(), list[str](), list[str]()
    chunks = _chunks(list_images(names, damage), config.batch)
    started = time.perf_counter()
    work = _Work(str(path), config, load, track, watch, tally)
    if config.partial is None:
        work.run(chunks, total)
        resumed = 0
    else:
        identity = _identity(path, names, config, load)
        with PartialFile(config.partial, identity) as partial:
            left = partial.go_on(chunks, tally, notes)
            resumed = tally.images
            work.run(left, total - resumed, partial)
            if config.csv:
                write_csv(Path(config.csv), partial.batches(), config.top)
            if config.parquet:
                write_parquet(Path(config.parquet), partial.batches(), config.top, identity)
            partial.remove()
    seconds = time.perf_counter() - started
    return PredictReport(path.name, tuple(names), config.runner, tally.images, tally.failed, resumed, seconds,
                         (tally.images - resumed) / work.seconds if work.seconds else 0.0,
                         tuple(map(str, config.files)), tuple(tally.first), (*notes, *damage))


class _Work:
    """What is done with each batch."""

    def __init__(self, artifact: str, config: PredictConfig, load: LoadConfig, track: Track[Any],
                 watch: Callable[[list[Prediction]], None] | None, tally: Tally) -> None:
        self._artifact, self._config, self._load = artifact, config, load
        self._track, self._watch, self._tally = track, watch, tally
        self.seconds = 0.0                                                  # with the artifact open

    def run(self, chunks: Iterator[Places], images: int, partial: PartialFile | None = None) -> None:
        first = next(chunks, None)
        if first is None:                                                  # only the files are left to write
            return
        with OPENERS[self._config.runner](self._artifact, self._config, self._load) as answer:
            started = time.perf_counter()
            batches: Iterable[tuple[Places, list[Prediction]]] = answer(_put_back(first, chunks))
            for places, rows in self._track(batches, "predicting", -(-images // self._config.batch)):
                if partial:
                    partial.append(places, rows)
                self._tally.add(rows)
                if self._watch:
                    self._watch(rows)
            self.seconds = time.perf_counter() - started


def _put_back(first: Places, chunks: Iterator[Places]) -> Iterator[Places]:
    yield first
    yield from chunks


def _chunks(places: Iterator[ImagePlace], size: int) -> Iterator[Places]:
    while chunk := list(islice(places, size)):
        yield chunk


def _identity(path: Path, sources: Sequence[str], config: PredictConfig, load: LoadConfig) -> dict[str, Any]:
    """What a row depends on, preprocessing and class names beside a plan included.

    Where and by which versions it is computed changes last digits at most, and is left out.
    """
    suffix, sidecar = path.suffix.lower(), sidecar_path(path)
    beside = [path.with_suffix(".bin")] if suffix == ".xml" else [sidecar] * (is_engine(path) and sidecar.is_file())
    files = [] if is_timm(path) else [path, *beside]
    return {"dyvit": "predict", "format": 1, "artifact": " ".join([sha256(f) for f in files]) or str(path),
            "load": repr(load), "sources": [source.rstrip("/") for source in sources], "top": config.top,
            "batch": config.batch}
