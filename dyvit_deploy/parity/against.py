"""Compares a checkpoint with logits that other code computed: a second opinion on how the checkpoint was read.

A comparison of a checkpoint with its export finds mistakes of the export only: where the checkpoint was read wrongly,
both sides are wrong alike.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifacts.files import is_timm, require_source
from ..config import ImageSpec, KeepRequest, LoadConfig
from ..data.folder import FolderImages
from ..data.images import Track, no_track
from ..data.open import open_images
from ..data.preprocess import normalise
from ..data.reading import IndexedImages
from ..data.walk import FORMATS
from ..errors import ConfigError, DataError
from ..runners.base import Outputs, Runner
from ..runners.open import is_checkpoint, open_runner
from ..settings.preprocessing import Preprocess
from .compare import BatchParity, ParityReport, default_tolerance, in_batches, judge
from .config import CheckConfig
from .images import InBatches
from .reference import Reference, read_reference
from .timm_model import TimmModel
from .tolerance import PrecisionTolerance, Tolerance

Pixels = NDArray[np.float32]
DENSE = KeepRequest(ratio=1.0)
ADVICE_IMAGES = ("Preparations usually differ by mean, std, crop or interpolation; give those of the training with "
                 "--mean, --std, --crop and --interpolation.")
ADVICE_MODEL = ("Models whose tensors have the same shapes usually differ by heads, pooling, activation or norm "
                "epsilon; name the model with --model timm:NAME, or give --model-args heads=12,global_pool=avg. A file "
                "with two sets of weights has --weights.")


def check_against(checkpoint: str | Path, against: str, data: str | None = None, config: CheckConfig = CheckConfig(),
                  load: LoadConfig = LoadConfig(), track: Track[Any] = no_track) -> ParityReport:
    """Compares a checkpoint, as this package reads it, with what other code computes.

    Args:
        checkpoint: the file or folder of the checkpoint.
        against: `timm:NAME`, for timm's own model, loader and preprocessing, both end to end from photos; or an .npz
            file, see `reference.read_reference`.
        data: a folder of photos, for timm; None for random pixels, which are poor evidence.
        config: `batches` larger than the number of images become that number.
        load: how this package opens the checkpoint; compared with timm, the model is dense.

    Raises:
        ConfigError: the comparison is not possible with these options.
        ArtifactError, DataError: a file or the images cannot be used.
    """
    if not is_checkpoint(require_source(checkpoint)):
        raise ConfigError(f"--against judges how a checkpoint is read, and {checkpoint} is none; name the checkpoint "
                          "that it was exported from.")
    if is_timm(against):
        return _with_timm(checkpoint, against, data, config, load, track)
    if Path(against).suffix.lower() != ".npz":
        raise ConfigError(f"--against takes timm:NAME or FILE.npz, not {against!r}.")
    if data:
        raise ConfigError(f"The images are those of {against}; leave out --data.")
    return _with_file(checkpoint, read_reference(against), config, load, track)


def compared_files(checkpoint: str | Path, against: str) -> tuple[str | Path, ...]:
    """The files that a report of `check_against` is about: the weights, and the .npz file."""
    return (weights_file(checkpoint), *(() if is_timm(against) else (against,)))


def weights_file(checkpoint: str | Path) -> Path:
    """The file of weights of a checkpoint, which may be a folder.

    Raises:
        CheckpointError: the folder has none, or several.
    """
    from ..checkpoints.archive import weights_in

    path = Path(checkpoint)
    return weights_in(path) if path.is_dir() else path


def _with_file(checkpoint: str | Path, reference: Reference, config: CheckConfig, load: LoadConfig,
               track: Track[Any]) -> ParityReport:
    notes, count = [], min(reference.count, config.images)
    if reference.count > count:
        notes.append(f"Compared the first {count} of {reference.count} images; --images {reference.count} compares "
                     "all.")
    with open_runner(checkpoint, load=load, device=config.device) as runner:
        _check_fits(reference, runner)
        if reference.grey:
            notes.append("The preprocessing of images of one channel was not compared.")
        elif not reference.files:
            notes.append(f"{reference.name} names no image files, so the preprocessing was not compared; add them as "
                         "the array files.")
        spec, pixels = runner.image_spec(), PixelComparison(runner.preprocess)
        comparisons, size = _comparisons(runner, config, count), max(config.batches)
        for part in track(reference.batches(size, count), f"running {runner.name}", -(-count // size)):
            if part.files and not reference.grey:
                own = np.stack(list(reference.prepared(part.files, spec)))
                pixels.add(normalise(own, spec.preprocess), part.images)
            for comparison in comparisons:
                comparison.add(part.feed, Outputs(part.logits), part.names)
        tolerance = _tolerance(runner, config)
        batches = _finished(comparisons, tolerance)
    report = ParityReport(reference.name, weights_file(checkpoint).name, reference.name, tolerance, batches,
                          tuple(notes), independent=True)
    return _with_pixels(report, pixels)


class RandomPhotos(IndexedImages):
    """Random pixels as photos of random sizes; each is a function of its name."""

    def __init__(self, spec: ImageSpec, count: int) -> None:
        super().__init__("noise", None, spec, range(count))

    def _name(self, item: int) -> str:
        return f"noise {item}"

    def _read(self, item: int) -> tuple[Image.Image, None]:
        return self.photo(self._name(item)), None

    def photo(self, name: str) -> Image.Image:
        """The photo of that name."""
        rng = np.random.default_rng(int(name.split()[-1]))
        sides = [int(rng.integers(side // 2, 2 * side)) for side in self._spec.image_size]
        return Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8))


def _photos(data: str | None, spec: ImageSpec, count: int) -> FolderImages | RandomPhotos:
    """Raises DataError if `data` is not a folder of image files, which timm prepares from the file on."""
    images = RandomPhotos(spec, count) if data is None else open_images(data, spec, limit=count)
    if not isinstance(images, (FolderImages, RandomPhotos)):
        raise DataError(f"timm prepares photos from their files, and {data} has none; pass --data FOLDER.")
    return images


def _with_timm(checkpoint: str | Path, name: str, data: str | None, config: CheckConfig, load: LoadConfig,
               track: Track[Any]) -> ParityReport:
    if is_timm(checkpoint):
        raise ConfigError(f"{checkpoint} is read by timm itself, which is no second opinion; name a checkpoint file.")
    if load.keep not in (KeepRequest(), DENSE):
        raise ConfigError("timm's models keep all tokens; leave out the --keep options, --stages, --selector and "
                          "--fuse, or compare with --against FILE.npz.")
    file = weights_file(checkpoint)
    with open_runner(checkpoint, load=dataclasses.replace(load, keep=DENSE), device=config.device) as runner:
        model = TimmModel(name, file, runner, load)
        photos = _photos(data, runner.image_spec(), config.images)
        pixels, size = PixelComparison(runner.preprocess, f", in timm {model.preparation}"), max(config.batches)
        comparisons = _comparisons(runner, config, len(photos))
        for batch in track(photos.batches(size), f"running {name} in timm, and {runner.name}", -(-len(photos) // size)):
            # Not decoded by this package's rules, which are part of what is compared.
            opened = [photos.photo(file) if isinstance(photos, RandomPhotos) else
                      Image.open(file, formats=tuple(FORMATS)).convert("RGB")
                      for file in batch.names]
            own, other = runner.prepare(batch.images), model.prepare(opened)
            pixels.add(own, other)
            expected = Outputs(model.logits(other))
            for comparison in comparisons:
                comparison.add(own, expected, batch.names)
        tolerance = _tolerance(runner, config)
        batches = _finished(comparisons, tolerance)
    notes = () if data else ("Compared on random pixels, which real images may contradict; pass --data FOLDER.",)
    report = ParityReport(name, file.name, photos.name, tolerance, batches, notes, tuple(photos.skipped),
                          independent=True)
    return _with_pixels(report, pixels)


def _with_pixels(report: ParityReport, pixels: PixelComparison) -> ParityReport:
    """The report with the result of a comparison of pixels, and with advice if it failed."""
    error, failure, notes = pixels.error, pixels.failure, report.notes
    if error is not None and not failure:
        notes += (f"Images are prepared alike: normalised pixels differ by {error:.1e} at most.",)
    differs = any(batch.failures for batch in report.batches)
    advice = [line for line, needed in ((ADVICE_IMAGES, failure), (ADVICE_MODEL, differs and not failure)) if needed]
    return dataclasses.replace(report, notes=notes, pixel_error=error, pixel_failures=(failure,) if failure else (),
                               advice=tuple(advice))


def _check_fits(reference: Reference, runner: Runner) -> None:
    assert runner.facts is not None
    model, size, classes = runner.facts.model, reference.size, reference.classes
    if size != model.image_size:
        given, wanted = ("x".join(map(str, sides)) for sides in (size, model.image_size))
        raise DataError(f"The images of {reference.name} have {given} pixels, and {runner.name} takes {wanted}; pass "
                        f"--image-size {given} if it was trained for that.")
    if classes != model.classes:
        raise DataError(f"The logits of {reference.name} have {classes} classes, and {runner.name} has "
                        f"{model.classes}; compare logits of the same model.")


def _comparisons(runner: Runner, config: CheckConfig, count: int) -> list[InBatches]:
    """What runs `runner` on prepared images [B, 3, height, width], at most `count`, at every batch size."""
    tolerance = _tolerance(runner, config)
    return [in_batches(runner.infer, batch, count, tolerance)
            for batch in sorted({min(size, count) for size in config.batches})]


def _finished(comparisons: Sequence[InBatches], tolerance: Tolerance | PrecisionTolerance) -> tuple[BatchParity, ...]:
    """The verdict at every batch size; of those that became the number of images, one."""
    for part in comparisons:
        part.finish()
    return tuple(judge(part.comparison, batch, tolerance)
                 for batch, part in {part.batch: part for part in comparisons}.items())


def _tolerance(runner: Runner, config: CheckConfig) -> Tolerance | PrecisionTolerance:
    return config.tolerance or default_tolerance(runner, runner, config.error)


class PixelComparison:
    """Compares images as prepared here and elsewhere. `theirs` describes the other preparation.

    error: the largest difference between normalised images so far; None without any, or if their sizes differ.
    """

    def __init__(self, preprocess: Preprocess, theirs: str = "") -> None:
        self.error: float | None = None
        self._preprocess, self._theirs = preprocess, theirs
        self._sizes = ""

    def add(self, own: Pixels, other: Pixels) -> None:
        """Images [B, 3, height, width], normalised."""
        if own.shape != other.shape:
            here, there = ("x".join(map(str, pixels.shape[2:])) for pixels in (own, other))
            self._sizes = f"the images have {here} pixels here, in the other model {there}"
        else:
            self.error = max(self.error or 0.0, float(np.abs(own.astype(np.float64) - other).max()))

    @property
    def failure(self) -> str:
        """A sentence if images differ by more than one of the 255 steps of a colour: decoders and resizing may round
        that much differently."""
        limit = 1 / (255 * min(self._preprocess.std))
        # Rounding of float32 may add to exactly one step.
        if self._sizes or self.error is None or self.error <= limit * 1.01:
            return self._sizes
        return (f"the images are prepared differently, by up to {self.error:.1e} where {limit:.1e} is allowed; here "
                f"{self._preprocess.describe()}{self._theirs}")
