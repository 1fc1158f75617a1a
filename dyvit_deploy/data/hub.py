"""Hugging Face data sets, from the Hub or a local folder, through timm's reader."""
from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import ImageSpec
from ..errors import DataError, reason
from ..optional import require
from .labels import numbers_as_names
from .reading import SPLITS, IndexedImages, decode, split_names, spread

# Preferred names of the label column, best first.
LABELS = ("label", "labels", "fine_label", "cls")
# Seconds to wait for the Hub's answer.
HUB_TIMEOUT = 10


class HubImages(IndexedImages):
    """The rows of a split: an image column, and a label column with class names or numbers.

    "val" may also be called "validation" or "valid"; "test" falls back to the validation split.
    """

    def __init__(self, source: str, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        choices, name, splits = split_names(split), f"hfds/{source}", load(source)
        chosen = next((choice for choice in choices if choice in splits), None)
        if chosen is None:
            raise DataError(f"{name} has no {split} split, only {', '.join(splits)}; pass --split, or add one.")
        if not len(splits[chosen]):
            raise DataError(f"The {chosen} split of {name} is empty; choose another one.")
        image, label = _columns(name, splits[chosen])
        self._rows = require("timm.data").create_reader(name, split=chosen, input_key=image, target_key=label)
        self._image = image
        super().__init__(name, _class_names(name, splits[chosen], label), spec,
                         [int(i) for i in spread(len(splits[chosen]), limit)], chosen)

    @staticmethod
    def has_split(source: str, split: str) -> bool:
        """True if the data set contains `split` itself, without a fallback."""
        return any(name in load(source) for name in SPLITS[split])

    def _read(self, item: int) -> tuple[Image.Image, int | None]:
        try:
            file, label = self._rows[item]
        # timm's reader raises these for a null image.
        except (TypeError, AssertionError) as error:
            raise ValueError("the row has no image") from error
        with file:
            if label is None or not 0 <= label < len(self.class_names or ()):
                raise ValueError(f"its class {label} is not one of the {len(self.class_names or ())} classes")
            return decode(file), int(label)

    def _name(self, item: int) -> str:
        path = (self._rows.dataset[item][self._image] or {}).get("path")
        return f"{self.name} {self.split} {item}" + (f" ({path})" if path else "")


@functools.lru_cache(maxsize=4)
def load(source: str) -> dict[str, Any]:
    """The splits of a data set by name; the last four data sets are cached.

    Raises:
        MissingDependency: `datasets` is not installed.
        DataError: the data set does not exist, cannot be reached or cannot be read.
    """
    datasets = require("datasets", extra="train")
    if not Path(source).exists():
        _require_reachable(source)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        splits: dict[str, Any] = datasets.load_dataset(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hfds/{source} cannot be loaded ({reason(error.__cause__ or error)}); give a data set of the "
                        "Hub, or a folder with images in class folders or Parquet files.") from error
    return splits


def _require_reachable(source: str) -> None:
    """Raises DataError unless the Hub answers one request; `datasets` itself would retry for half a minute."""
    hub = require("huggingface_hub", extra="train")
    # Offline, only the cache is read.
    if hub.constants.HF_HUB_OFFLINE:
        return
    try:
        hub.HfApi().dataset_info(source, timeout=HUB_TIMEOUT)
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise DataError(f"The Hugging Face Hub has no data set {source!r} that you may read, and there is no such "
                        "folder; check the name, or log in.") from error
    # The Hub's client raises errors of requests or httpx, depending on its version.
    except Exception as error:
        raise DataError(f"hfds/{source} is not a local folder, and the Hugging Face Hub cannot be reached "
                        f"({reason(error)}); set HF_HUB_OFFLINE=1 if it was downloaded before.") from error


def _columns(name: str, rows: Any) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    datasets = require("datasets", extra="train")
    types = rows.features
    images = [column for column, kind in types.items() if isinstance(kind, datasets.Image)]
    named = [column for column, kind in types.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [column for column, kind in types.items() if "int" in str(getattr(kind, "dtype", "")) and column in LABELS]
    labels = sorted(named or whole, key=lambda column: LABELS.index(column) if column in LABELS else len(LABELS))
    if not images or not labels:
        missing = "no images" if not images else "no labels"
        raise DataError(f"{name} has {missing}: its columns are {', '.join(types)}; it needs an image column and one "
                        "with class labels.")
    return images[0], labels[0]


def _class_names(name: str, rows: Any, label: str) -> tuple[str, ...]:
    names = getattr(rows.features[label], "names", None)
    numbers = [number for number in rows.unique(label) if number is not None and number >= 0]
    if not numbers:
        raise DataError(f"{name} has no labels in this split; choose another one with --split.")
    return tuple(names) if names else numbers_as_names(max(numbers), f"The column {label} of {name}")
