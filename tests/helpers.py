"""Tiny models and where the reference numbers lie."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from fake_runner import FakeRunner
from PIL import Image

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.config import LoadConfig, ModelConfig, PruneConfig
from dyvit_deploy.data import digits
from dyvit_deploy.demo.quickstart import STUDENT
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.sidecar import EngineFacts, write_plan
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import ExportReport, export_onnx
from dyvit_deploy.model.checkpoint import save_checkpoint
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.runners.base import Outputs, TensorSpec
from dyvit_deploy.settings.preprocessing import Preprocess

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
REFERENCE, PHOTOS = SHARED / "reference", SHARED / "images"
# Seconds after which what a test waits for will never come; no machine is so slow.
HANGS = 600


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None,
                              reason=f"{module} is missing: pip install 'dyvit-deploy[{extra}]'")


needs_modelopt, needs_openvino = needs("modelopt", "calib"), needs("openvino", "openvino")
needs_rtx = needs("tensorrt_rtx", "rtx")
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the reference numbers are not at {REFERENCE}")
# Its Python needs numpy 1, so it has an environment of its own; .ci/run makes one.
needs_triton = pytest.mark.skipif("DYVIT_TRITON" not in os.environ,
                                  reason="DYVIT_TRITON names no environment with nvidia-pytriton")
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photos are not at {PHOTOS}")


def tiny_config(**changes) -> ModelConfig:
    """16 patches of 8 px, 4 blocks; a forward takes a millisecond."""
    values = dict(name="tiny", builder="vit", image_size=(32, 32), patch_size=8, width=32, depth=4, heads=2,
                  classes=5, preprocess=Preprocess(short_side=36))
    return ModelConfig(**(values | changes))


def tiny_model(ratio: float | None = 0.5, seed: int = 0, **changes) -> tuple[DynamicViT, ArtifactFacts]:
    """A tiny model with random weights large enough to matter; ratio None is dense."""
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    prune = None if ratio is None else PruneConfig.from_ratio(ratio, (1, 2, 3))
    model = DynamicViT(config, prune).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, ArtifactFacts(config, prune)


def tiny_checkpoint(folder: Path, ratio: float | None = 0.5, **changes) -> Path:
    model, facts = tiny_model(ratio, **changes)
    path = folder / ("tiny.safetensors" if ratio else "tiny-dense.safetensors")
    save_checkpoint(path, model, facts)
    return path


def tiny_images(batch: int = 2, side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def two_classes(folder: Path, train: int = 12, val: int = 4) -> Path:
    """A training and a validation split of two classes that are told apart by brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, base in (("dark", 40), ("light", 200)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray((base + rng.integers(-30, 30, (32, 32, 3))).astype(np.uint8)).save(place / f"{i}.png")
    return folder


FEW_SCENES = 200
# A test of the demo data set with few scenes, and the same with all of them in a job of its own.
SCENES = [pytest.param(FEW_SCENES, id="200-scenes"), pytest.param(None, id="all-scenes", marks=pytest.mark.slow)]


@contextlib.contextmanager
def digit_scenes(count: int | None) -> Iterator[None]:
    """The digits with so many scenes in each split; None leaves them whole."""
    with pytest.MonkeyPatch.context() as patch:
        if count is not None:
            patch.setattr(digits, "COUNTS", dict.fromkeys(digits.COUNTS, count))
        yield


def fake_runner(logits, kept=(), scores=(), batch: int | None = None, facts: ArtifactFacts | None = None,
                name: str = "fake") -> FakeRunner:
    """Answers with the first rows of fixed arrays, whatever it is fed; 4 x 4 px images."""
    def answer(feed):
        cut = slice(0, len(feed))
        return Outputs(np.asarray(logits, np.float32)[cut], tuple(np.asarray(k)[cut] for k in kept),
                       tuple(np.asarray(s, np.float32)[cut] for s in scores))
    return FakeRunner(answer, TensorSpec("images", "float32", (batch, 3, 4, 4)), facts=facts, name=name)


@functools.cache
def recipe() -> ModuleType:
    """The script that makes the reference's deterministic weights."""
    spec = importlib.util.spec_from_file_location("reference_recipe", REFERENCE / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_checkpoint(folder: Path, name: str, salt: str = "", predictors: bool = True) -> Path:
    """A published-format file with the reference's weights."""
    state = {k: torch.from_numpy(np.array(v)) for k, v in recipe().state_dict(name, salt).items()
             if predictors or not k.startswith("score_predictor.")}
    path = folder / f"{salt}{name}.pth"
    torch.save({"model": state}, path)
    return path


def tiny_graph(folder: Path, ratio: float | None = 0.5, **export) -> Path:
    """The tiny model as a float32 ONNX file, with kept tokens."""
    path = folder / "tiny.onnx"
    cached_export(tiny_checkpoint(folder, ratio), path, ExportConfig(with_tokens=True, **export))
    return path


def plan_file(folder, profiles=((1, 8, 32),), format="trt", **changes):
    """A plan with a sidecar, as if it had been built; nothing here runs it."""
    _, facts = tiny_model()
    facts = dataclasses.replace(facts, keep_counts=facts.prune.counts(facts.model.patches))
    path, content = folder / "engine.plan", b"ftrt and the rest of a plan"
    path.write_bytes(content)
    values = dict(
        plan={"sha256": sha256(path), "bytes": len(content)}, builder={"format": format, "version": "10.12.0.36"},
        config=BuildConfig(), target={"gpu": None, "system": "linux-x86_64"},
        profiles=tuple(BatchProfile(*sizes, f"p{i}") for i, sizes in enumerate(profiles)),
        inputs={"images": ["float32", [None, 3, 32, 32]]}, outputs={"logits": ["float32", [None, 5]]}, products={},
        source={"file": "m.onnx", "sha256": "1" * 64}, rebuild="dyvit build m.onnx", model=facts)
    write_plan(path, content, EngineFacts(**(values | changes)))
    return path


def photo_folder(folder: Path, count: int = 8, side: int = 40, classes: int = 0, seed: int = 0) -> Path:
    """`count` smooth colourful images, in `classes` subfolders if any."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = folder / f"class{i % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        clouds = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        clouds.resize((side, side), Image.Resampling.BICUBIC).save(place / f"{i:03d}.png")
    return folder


def code_blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: their kind and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.S | re.M)


def digits_shop(folder: Path) -> Path:
    """What the pages of docs/ take as there: a checkpoint, its graph, photos."""
    pytest.importorskip("sklearn", reason="the pages use the digit scenes")
    (folder / "ckpt.safetensors").write_bytes(STUDENT.read_bytes())
    export_onnx(STUDENT, folder / "model.onnx", ExportConfig(with_tokens=True))
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "another.png", "photos/1.jpg", "photos/2.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (90, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


_EXPORTED: dict[tuple, tuple[bytes, ExportReport]] = {}


def cached_export(checkpoint, path, config=ExportConfig(), load=LoadConfig()) -> ExportReport:
    """`export_onnx`, which does the same thing only once."""
    key = (sha256(Path(checkpoint)), config, load)
    if key not in _EXPORTED:
        report = export_onnx(checkpoint, path, config, load)
        _EXPORTED[key] = Path(path).read_bytes(), report
    content, report = _EXPORTED[key]
    Path(path).write_bytes(content)
    return dataclasses.replace(report, path=str(path))


def dyvit(*arguments):
    """The command line, as a user types it: no traceback, whatever it is given."""
    from click.testing import CliRunner

    from dyvit_deploy.cli.main import main
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result
