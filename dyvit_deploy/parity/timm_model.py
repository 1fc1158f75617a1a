"""A checkpoint as timm reads it: timm's model, loader and preprocessing, and nothing of this package's own."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifacts.files import CONFIG, TIMM_PREFIX
from ..checkpoints.archive import read_json
from ..config import LoadConfig
from ..errors import ArtifactError, CheckpointError, foreign_errors, reason
from ..machine.tf32 import full_float32
from ..optional import require
from ..runners.base import Runner

ELSEWHERE = "compare it with logits from the code that trained it: --against FILE.npz, see docs/checkpoints.md."
# The names that DynamicViT's code gives its predictors.
PREDICTORS = "score_predictor."


class TimmModel:
    """timm's model `timm:NAME` with the weights of a file.

    timm has its own image size, unless --image-size is given, or the file has another number of positions.
    """

    def __init__(self, name: str, file: Path, like: Runner, load: LoadConfig) -> None:
        """`like` is this package's runner of the file: it tells the number of classes, which of two sets of weights is
        compared, and the device.

        Raises:
            ConfigError: timm has no such model.
            CheckpointError: timm's loader cannot read the file, or its tensors are not those of the model.
        """
        assert like.facts is not None and like.facts.parent is not None
        self.name, self._torch = name, require("torch")
        state = self._read(file, like.facts.parent["weights"] == "ema")
        classes, size = like.facts.model.classes, load.image_size
        model = _create(name, file.parent, classes, size)
        positions = state.get("pos_embed")
        if size is None and positions is not None and positions.shape[1:2] != model.pos_embed.shape[1:2]:
            size = like.facts.model.image_size
            model = _create(name, file.parent, classes, size)
        self._load(model, state, file)
        self._device = self._torch.device(like.device)
        self._model = model.to(self._device).eval()
        data = require("timm.data")
        self.settings = data.resolve_model_data_config(model, {"input_size": (3, *size)} if size else None)
        self._transform = data.create_transform(**self.settings, is_training=False)

    def _read(self, file: Path, ema: bool) -> Any:
        from ..checkpoints.archive import PLAIN

        def translated(error: Exception) -> CheckpointError:
            return CheckpointError(f"timm's loader cannot read {file} ({reason(error)}); {ELSEWHERE}")

        # Each kind of file has errors of its own.
        with foreign_errors(translated), self._torch.serialization.safe_globals(PLAIN):
            return require("timm.models").load_state_dict(str(file), use_ema=ema, weights_only=True)

    def _load(self, model: Any, state: Any, file: Path) -> None:
        if any(str(key).startswith(PREDICTORS) for key in state):
            raise CheckpointError(f"{file} has predictors that drop tokens, which timm's models do not have; "
                                  f"{ELSEWHERE}")
        def translated(error: Exception) -> CheckpointError:
            return CheckpointError(f"timm cannot load {file} as {self.name} ({reason(error, last=True)}); {ELSEWHERE}")

        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        with foreign_errors(translated):
            result = model.load_state_dict(adapt(state, model) if adapt else state, strict=False)
        for names, problem in ((result.missing_keys, "lacks"), (result.unexpected_keys, "has an unexpected")):
            if names:
                raise CheckpointError(f"timm cannot load {file} as {self.name}, because it {problem} tensor "
                                      f"{names[0]!r}; name another model, or {ELSEWHERE}")

    def prepare(self, photos: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB photos as timm prepares them: float32 [B, 3, height, width]."""
        pixels: NDArray[np.float32] = self._torch.stack([self._transform(photo) for photo in photos]).numpy()
        return pixels

    @property
    def preparation(self) -> str:
        """How timm prepares images, in words."""
        mean, std = (",".join(f"{value:g}" for value in self.settings[name]) for name in ("mean", "std"))
        return (f"mean {mean}, std {std}, crop {self.settings['crop_pct']:g} ({self.settings['crop_mode']}), "
                f"{self.settings['interpolation']}")

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Prepared images [B, 3, height, width] -> float32 [B, classes]."""
        with self._torch.inference_mode(), full_float32():
            logits = self._model(self._torch.from_numpy(images).to(self._device))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result


def _create(name: str, folder: Path, classes: int, size: tuple[int, int] | None) -> Any:
    """timm's model with random weights; as timm's config.json in `folder` describes it, if that is of the model."""
    from ..model.build import create_timm

    bare = name.removeprefix(TIMM_PREFIX)
    options = {"num_classes": classes, **({"img_size": size} if size else {})}
    described = None
    with contextlib.suppress(ArtifactError, AttributeError):
        described = read_json(folder / CONFIG).get("architecture")
    if described != bare:
        return create_timm(bare, **options)

    def translated(error: Exception) -> CheckpointError:
        return CheckpointError(f"timm cannot create the model of {folder / CONFIG} ({reason(error)}); correct that "
                               "file, or move it away.")

    # What a configuration holds may be anything.
    with foreign_errors(translated):
        return require("timm").create_model(f"local-dir:{folder}", pretrained=False, **options)
