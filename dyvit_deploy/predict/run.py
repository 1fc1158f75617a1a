"""Predicts the classes of many images: lists, reads and runs them, and writes the rows."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..artifacts.files import check_target, is_timm, require_file, require_source, sha256
from ..artifacts.locks import sole_use
from ..config import LoadConfig
from ..data.images import Track, no_track
from ..data.listing import ImagePlace, count_images, list_images
from ..engine.sidecar import sidecar_path
from ..graph.files import data_files
from ..optional import require
from ..runners.open import is_engine
from .cluster import predict_on_ray
from .config import PredictConfig
from .outputs import write_csv, write_parquet
from .partial import PartialFile
from .predictor import Chunk, OpenBackend, predict_here
from .report import Prediction, PredictReport, RowCounter

BACKENDS: dict[str, OpenBackend] = {"local": predict_here, "ray": predict_on_ray}


def predict_images(artifact: str | Path, sources: str | Path | Sequence[str | Path],
                   config: PredictConfig = PredictConfig(), load: LoadConfig = LoadConfig(),
                   track: Track[Any] = no_track,
                   watch: Callable[[list[Prediction]], None] | None = None) -> PredictReport:
    """Predicts the likeliest classes of every image, labelled or not, in bounded memory.

    The files in `config` are written at the end, and replace existing ones; until then the rows are in `FILE.partial`,
    from which the same call resumes after an interruption. The results are the same bytes as without interruption, on
    the same machine and versions of libraries.

    Args:
        artifact: anything that `open_runner` opens.
        sources: image files, folders (searched recursively), .tar shards, or wds/FOLDER for a folder of shards.
        load: see `open_runner`.
        watch: called with the rows of each batch that this call predicts, in order.

    Raises:
        ConfigError: more classes are requested than the model has, the partial file is of another artifact or has
            other settings, or another run writes one of the files.
        ArtifactError: the artifact cannot be opened, or a file cannot be written.
        DataError: a source does not exist, or holds no image, or the labels are not those of the model.
        MissingDependency: shards need the extra `train`, Parquet the extra `predict`, "ray" the extra `ray`.
        BackendError: the runtime or the cluster failed.
    """
    with contextlib.ExitStack() as stack:
        for file in config.files:
            check_target(file)
            stack.enter_context(sole_use(file))
        return _predict(artifact, sources, config, load, track, watch)


def _predict(artifact: str | Path, sources: str | Path | Sequence[str | Path], config: PredictConfig, load: LoadConfig,
             track: Track[Any], watch: Callable[[list[Prediction]], None] | None) -> PredictReport:
    names = [str(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    path = require_source(artifact)
    if config.labels:
        require_file(config.labels)
    if config.parquet:
        require("pyarrow", extra="predict")
    total, counter, notes, damage = count_images(names), RowCounter(), list[str](), list[str]()
    chunks = _chunks(list_images(names, damage), config.batch)
    started = time.perf_counter()
    job = _Job(str(path), config, load, track, watch, counter)
    if config.partial is None:
        job.run(chunks, total)
        resumed = 0
    else:
        identity = _identity(path, names, config, load)
        with PartialFile(config.partial, identity) as partial:
            remaining = partial.resume(chunks, counter, notes)
            resumed = counter.images
            job.run(remaining, total - resumed, partial)
            if config.csv:
                write_csv(Path(config.csv), partial.batches(), config.top)
            if config.parquet:
                write_parquet(Path(config.parquet), partial.batches(), config.top, identity)
            partial.remove()
    seconds = time.perf_counter() - started
    if counter.turned and not config.orient:
        notes.append(f"{counter.turned} of {counter.images} images have an EXIF orientation, which was not applied, as "
                     "in training; --orient applies it.")
    return PredictReport(path.name, tuple(names), config.runner, counter.images, counter.failed, resumed, seconds,
                         (counter.images - resumed) / job.seconds if job.seconds else 0.0,
                         tuple(map(str, config.files)), tuple(counter.first), (*notes, *damage), counter.turned)


class _Job:
    """Predicts chunks, and counts, stores and reports their rows. `seconds` is the time with the artifact open."""

    def __init__(self, artifact: str, config: PredictConfig, load: LoadConfig, track: Track[Any],
                 watch: Callable[[list[Prediction]], None] | None, counter: RowCounter) -> None:
        self._artifact, self._config, self._load = artifact, config, load
        self._track, self._watch, self._counter = track, watch, counter
        self.seconds = 0.0

    def run(self, chunks: Iterator[Chunk], images: int, partial: PartialFile | None = None) -> None:
        first = next(chunks, None)
        # The resumed run had predicted everything.
        if first is None:
            return
        with BACKENDS[self._config.runner](self._artifact, self._config, self._load) as predict_chunks:
            started = time.perf_counter()
            batches: Iterable[tuple[Chunk, list[Prediction]]] = predict_chunks(_put_back(first, chunks))
            for chunk, rows in self._track(batches, "predicting", -(-images // self._config.batch)):
                if partial:
                    partial.append(chunk, rows)
                self._counter.add(rows)
                if self._watch:
                    self._watch(rows)
            self.seconds = time.perf_counter() - started


def _put_back(first: Chunk, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from chunks


def _chunks(places: Iterator[ImagePlace], size: int) -> Iterator[Chunk]:
    while chunk := list(islice(places, size)):
        yield chunk


def _identity(path: Path, sources: Sequence[str], config: PredictConfig, load: LoadConfig) -> dict[str, Any]:
    """Everything that a row depends on, including the preprocessing and class names in a plan's sidecar.

    The machine and the versions of libraries are left out: they change the last digits at most.
    """
    suffix, sidecar = path.suffix.lower(), sidecar_path(path)
    beside = [path.with_suffix(".bin")] if suffix == ".xml" else [sidecar] * (is_engine(path) and sidecar.is_file())
    if suffix == ".onnx":
        beside += data_files(path)
    files = [] if is_timm(path) else [path, *beside]
    return {"dyvit": "predict", "format": 2, "artifact": " ".join([sha256(f) for f in files]) or str(path),
            "load": repr(load), "sources": [source.rstrip("/") for source in sources], "top": config.top,
            "batch": config.batch, **({"labels": sha256(Path(config.labels))} if config.labels else {}),
            **({"orient": True} if config.orient else {})}
