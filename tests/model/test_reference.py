"""The published implementation's numbers, reproduced by PyTorch and by the exported graph."""
import json

import numpy as np
import pytest
import torch
from helpers import PHOTOS, REFERENCE, needs_photos, needs_reference, recipe, reference_checkpoint

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.data.open import open_images
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.model.checkpoint import load_model
from dyvit_deploy.model.state import published_name
from dyvit_deploy.runners.open import open_runner
from dyvit_deploy.training.losses import total_loss
from dyvit_deploy.training.step import student_losses

pytestmark = needs_reference
LOAD = LoadConfig(keep=KeepRequest(ratio=0.7))


def assert_matches(out, reference):
    assert np.abs(out.logits - reference["logits"]).max() < 1e-4
    for stage, kept in enumerate(out.kept):
        assert np.array_equal(np.sort(kept, axis=1), reference[f"kept_{stage}"]), f"stage {stage}"
    assert len(out.kept) == 3


@pytest.fixture(scope="module", params=["deit-256", "deit-s", "lvvit-s"])
def model_files(request, tmp_path_factory):
    """Name, checkpoint and ONNX file of one reference model."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = reference_checkpoint(folder, request.param)
    export_onnx(checkpoint, folder / "model.onnx", ExportConfig(with_tokens=True), LOAD)
    return request.param, checkpoint, folder / "model.onnx"


def opened(which, checkpoint, onnx):
    return open_runner(checkpoint, load=LOAD) if which == "PyTorch" else open_runner(onnx)


@pytest.mark.parametrize("which", ["PyTorch", "ONNX Runtime"])
def test_inference_reproduces_the_published_outputs(model_files, which):
    name, checkpoint, onnx = model_files
    with opened(which, checkpoint, onnx) as runner:
        assert_matches(runner.infer(recipe().images(2)), np.load(REFERENCE / f"eval_{name}_0.7.npz"))


@needs_photos
@pytest.mark.parametrize("which", ["PyTorch", "ONNX Runtime"])
def test_photos_through_our_preprocessing_reproduce_the_published_outputs(model_files, which):
    name, checkpoint, onnx = model_files
    if name != "deit-s":
        pytest.skip("the reference holds photo outputs of deit-s only")
    with opened(which, checkpoint, onnx) as runner:
        [batch] = open_images(str(PHOTOS), runner.facts.model).batches(10)
        order = np.argsort([int(n.rsplit("/", 1)[1].removesuffix(".jpg")) for n in batch.names])
        assert_matches(runner.predict(batch.images[order]), np.load(REFERENCE / "photos_deit-s_0.7.npz"))


def test_training_reproduces_the_published_losses_and_gradients(tmp_path):
    student, _ = load_model(reference_checkpoint(tmp_path, "deit-s"), LOAD)
    teacher, _ = load_model(reference_checkpoint(tmp_path, "deit-s", salt="teacher.", predictors=False),
                            LoadConfig(model="deit-s"))
    given = np.load(REFERENCE / "train_deit-s_0.7.npz")
    expected = json.loads((REFERENCE / "train_deit-s_0.7.json").read_text())
    student.train()
    images = torch.from_numpy(recipe().images(2))
    samples = tuple(torch.from_numpy(given[f"sample_{s}"].astype(np.float32)) for s in range(3))
    out = student.forward_masked(images, samples)
    assert np.abs(out.logits.detach().numpy() - given["logits"]).max() < 1e-4
    for stage, decision in enumerate(out.decisions):
        assert np.array_equal(decision.detach().round().numpy(), given[f"decision_{stage}"])
    assert out.tokens.mean().item() == pytest.approx(expected["tokens_mean"], abs=1e-6)
    assert out.tokens.std().item() == pytest.approx(expected["tokens_std"], rel=1e-5)

    labels = torch.from_numpy(given["labels"].astype(np.int64))
    parts, _ = student_losses(student, teacher, images, labels, samples=samples)
    loss = total_loss(parts)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    assert parts.classification.item() == pytest.approx(expected["cls_loss"], rel=1e-4)
    assert 3 * parts.ratio.item() == pytest.approx(expected["ratio_loss_sum"], rel=1e-4)
    assert parts.kl.item() == pytest.approx(expected["kl_loss"], rel=1e-4)
    assert parts.token.item() == pytest.approx(expected["token_loss"], rel=1e-4)
    norms = {published_name(name): p.grad.norm().item() for name, p in student.named_parameters()}
    for name, norm in expected["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name
