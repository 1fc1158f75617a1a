"""What a run is made of: copies to a GPU that is not here, and Lightning Fabric under either name."""
import contextlib
import importlib.machinery
import importlib.util
import logging
import subprocess
import sys
from types import ModuleType, SimpleNamespace as Thing

import lightning_fabric
import pytest
import torch
from helpers import ROOT, tiny_config, tiny_model, two_classes

from dyvit_deploy.config import KeepRequest
from dyvit_deploy.model import zoo
from dyvit_deploy.model.checkpoint import read_checkpoint
from dyvit_deploy.training import loop, setup
from dyvit_deploy.training.command import train
from dyvit_deploy.training.data import Part
from dyvit_deploy.training.loop import Run
from dyvit_deploy.training.plan import TrainConfig
from dyvit_deploy.training.recipe import make_recipe

CUDA = torch.device("cuda")


@pytest.fixture
def copies(monkeypatch):
    """Copies of tensors to a GPU, which stay where they are: shape, from pinned memory, without blocking."""
    found, pinned, to = [], [], torch.Tensor.to

    def pin(tensor, *_):
        pinned.append(tensor.clone())
        return pinned[-1]

    def is_pinned(tensor, *_):
        return any(tensor is other for other in pinned)

    def copy(tensor, *args, **options):
        if args[:1] != (CUDA,):
            return to(tensor, *args, **options)
        found.append((tuple(tensor.shape), tensor.is_pinned(), options.get("non_blocking", False)))
        return tensor
    for name, fake in {"pin_memory": pin, "is_pinned": is_pinned, "to": copy}.items():
        monkeypatch.setattr(torch.Tensor, name, fake)
    return found


def test_images_labels_and_draws_are_copied_from_pinned_memory_without_blocking(copies):
    _, facts = tiny_model()
    recipe = make_recipe("small", "tiny", "student", {"batch": 4, "elastic": "0.4:0.9"})
    part = Part(torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64), 0, [])
    running = Thing(fabric=Thing(device=CUDA), recipe=recipe, facts=facts, mixup=None, epoch=0, step=0,
                    _attention=contextlib.nullcontext, module=lambda *inputs: (inputs, None))
    (images, labels, noise, keep), _ = Run._losses(running, part)
    expected = [images, labels, *noise, keep]
    assert copies == [(tuple(tensor.shape), True, True) for tensor in expected] and len(expected) == 6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_loads_into_pinned_memory_where_it_trains_on_a_gpu(tmp_path, monkeypatch, device):
    class Seen(Exception):
        pass

    def loader(*_, pinned=None):
        raise Seen(pinned)
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config())
    monkeypatch.setattr(loop, "make_fabric", lambda *_: Thing(device=torch.device(device)))
    monkeypatch.setattr(loop, "TrainLoader", loader)
    with pytest.raises(Seen) as seen:
        train(TrainConfig("tiny", str(two_classes(tmp_path / "data")), tmp_path / "run", KeepRequest(ratio=1.0)))
    assert seen.value.args == (device == "cuda",)


def fresh():
    """The module `setup` as a process of its own would import it."""
    spec = importlib.util.spec_from_file_location("dyvit_deploy.training.setup_again", setup.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name):
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


@pytest.fixture
def bundle(monkeypatch):
    """The package `lightning`, which has the same library under another name."""
    monkeypatch.setitem(sys.modules, "lightning", package("lightning"))
    for part in ("", ".plugins", ".strategies"):
        monkeypatch.setitem(sys.modules, f"lightning.fabric{part}", sys.modules[f"lightning_fabric{part}"])


def test_lightning_fabric_is_taken_before_the_one_in_lightning(bundle):
    module = fresh()
    assert module.FABRIC == "lightning_fabric"


def test_training_takes_the_fabric_in_lightning_where_that_is_the_only_one(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    module = fresh()
    assert module.FABRIC == "lightning.fabric"
    monkeypatch.setattr(logging.getLogger("lightning.fabric"), "level", logging.INFO)
    fabric = module.make_fabric("cpu", make_recipe("small", "tiny", "student", {"precision": "bf16"}))
    assert isinstance(fabric, lightning_fabric.Fabric) and fabric.device.type == "cpu"
    assert logging.getLogger("lightning.fabric").level == logging.WARNING


def test_without_either_train_names_the_pip_command(tmp_path):
    code = ("import sys; sys.modules['lightning_fabric'] = sys.modules['lightning'] = None; "
            "from dyvit_deploy.cli.main import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "train", "--model", "digits-s", "--data", "digits", "-o",
                           str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "lightning_fabric is not installed. Install it with: pip install 'dyvit-deploy'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_checkpoint_records_the_distribution_that_trained_it(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config())
    there = {"torch", "timm", "lightning", "numpy"}                        # whose wheel has `lightning_fabric`, too
    monkeypatch.setattr(loop, "library_versions", lambda *names: dict.fromkeys(there & set(names), "1.0"))
    overrides = (("epochs", 1), ("batch", 8), ("images", 8), ("precision", "fp32"))
    train(TrainConfig("tiny", str(two_classes(tmp_path / "data")), tmp_path / "run", KeepRequest(ratio=1.0),
                      overrides=overrides, device="cpu", workers=0))
    training = read_checkpoint(tmp_path / "run" / "last.safetensors").facts.training
    assert set(training["versions"]) == {"torch", "timm", "lightning", "numpy"}
