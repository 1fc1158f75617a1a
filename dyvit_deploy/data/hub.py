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
from .reading import SPLITS, IndexedImages, decode, split_names, spread

LABELS = ("label", "labels", "fine_label", "cls")   # of columns with class names, these are preferred
PATIENCE = 10                               # seconds that the Hub may take to answer


class HubImages(IndexedImages):
    """The rows of a split: an image column, and a label column with class names or numbers.

    "val" may be called validation; "test" is also that one where there is no other.
    """

    def __init__(self, source: str, spec: ImageSpec, split: str = "test", limit: int | None = None) -> None:
        choices, name, found = split_names(split), f"hfds/{source}", load(source)
        chosen = next((choice for choice in choices if choice in found), None)
        if chosen is None:
            raise DataError(f"{name} has no {split} split, only {', '.join(found)}; pass --split, or add one.")
        if not len(found[chosen]):
            raise DataError(f"The {chosen} split of {name} is empty; choose another one.")
        image, label = _columns(name, found[chosen])
        self._rows = require("timm.data").create_reader(name, split=chosen, input_key=image, target_key=label)
        self._image = image
        super().__init__(name, _class_names(name, found[chosen], label), spec,
                         [int(i) for i in spread(len(found[chosen]), limit)], chosen)

    @staticmethod
    def has_split(source: str, split: str) -> bool:
        """True when the data set has that split by its own name."""
        return any(name in load(source) for name in SPLITS[split])

    def _read(self, item: int) -> tuple[Image.Image, int | None]:
        try:
            file, label = self._rows[item]
        except (TypeError, AssertionError) as error:                       # the reader's way to say: null
            raise ValueError("the row has no image") from error
        with file:
            if label is None or not 0 <= label < len(self.class_names or ()):
                raise ValueError(f"its class {label} is none of the {len(self.class_names or ())} classes")
            return decode(file), int(label)

    def _name(self, item: int) -> str:
        path = (self._rows.dataset[item][self._image] or {}).get("path")
        return f"{self.name} {self.split} {item}" + (f" ({path})" if path else "")


@functools.lru_cache(maxsize=4)
def load(source: str) -> dict[str, Any]:
    """The splits of a data set by name; read from the Hub or the local cache at most once.

    Raises:
        MissingDependency: without the library.
        DataError: no such data set, none that can be reached, or none that the library can read.
    """
    datasets = require("datasets", extra="train")
    if not Path(source).exists():
        _require_reachable(source)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        found: dict[str, Any] = datasets.load_dataset(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hfds/{source} cannot be loaded ({reason(error.__cause__ or error)}); give a data set of the "
                        "Hub, or a folder with images in class folders or Parquet files.") from error
    return found


def _require_reachable(source: str) -> None:
    """Asks the Hub once: the library itself would try again for half a minute."""
    hub = require("huggingface_hub", extra="train")
    if hub.constants.HF_HUB_OFFLINE:                                            # only the cache is asked
        return
    try:
        hub.HfApi().dataset_info(source, timeout=PATIENCE)
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise DataError(f"The Hugging Face Hub has no data set {source!r} that you may read, and there is no such "
                        "folder; check the name, or log in.") from error
    except Exception as error:                                             # requests' or httpx's, by version
        raise DataError(f"hfds/{source} is no local folder, and the Hugging Face Hub cannot be reached "
                        f"({reason(error)}); set HF_HUB_OFFLINE=1 if it was downloaded before.") from error


def _columns(name: str, rows: Any) -> tuple[str, str]:
    """The columns with the image and with the label."""
    datasets = require("datasets", extra="train")
    kinds = rows.features
    images = [column for column, kind in kinds.items() if isinstance(kind, datasets.Image)]
    named = [column for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [column for column, kind in kinds.items() if "int" in str(getattr(kind, "dtype", "")) and column in LABELS]
    labels = sorted(named or whole, key=lambda column: LABELS.index(column) if column in LABELS else len(LABELS))
    if not images or not labels:
        lacks = "no images" if not images else "no labels"
        raise DataError(f"{name} has {lacks}: its columns are {', '.join(kinds)}; it needs an image column and one "
                        "with class labels.")
    return images[0], labels[0]


def _class_names(name: str, rows: Any, label: str) -> tuple[str, ...]:
    names = getattr(rows.features[label], "names", None)
    numbers = [number for number in rows.unique(label) if number is not None and number >= 0]
    if not numbers:
        raise DataError(f"{name} has no labels in this split; choose another one with --split.")
    return tuple(names) if names else tuple(str(i) for i in range(max(numbers) + 1))
