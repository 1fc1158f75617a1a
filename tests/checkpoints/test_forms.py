"""Checkpoints as training leaves them are opened, and give the bits of the bare weights."""
import logging

import pytest
import torch
from checkpoint_forms import FORMS, forms_table
from helpers import ROOT

from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.model import zoo
from dyvit_deploy.model.checkpoint import load_model
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.state import published_name

KEEP = KeepRequest(ratio=0.7)


def weights(seed):
    torch.manual_seed(seed)
    model = DynamicViT(zoo.get("digits-s"), PruneConfig.from_ratio(0.7, (1, 3, 4)))
    return {published_name(name): tensor for name, tensor in model.state_dict().items()}


STATE, AVERAGE = weights(0), weights(1)


def logits(path, weights="auto"):
    model, _ = load_model(path, LoadConfig(weights=weights, keep=KEEP))
    with torch.no_grad():
        return model(torch.ones(1, 3, 64, 64))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The logits of the bare weights, and of their moving average."""
    path = tmp_path_factory.mktemp("bare") / "bare.pth"
    answers = []
    for state in (STATE, AVERAGE):
        torch.save(state, path)
        answers.append(logits(path))
    return answers


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.what)
def test_every_form_gives_the_bits_of_the_bare_weights(form, tmp_path, bare):
    path = form.save(tmp_path, STATE, AVERAGE)
    if form.ema:
        assert torch.equal(logits(path, "ema"), bare[1])
        assert torch.equal(logits(path, "model"), bare[0])
    else:
        assert torch.equal(logits(path), bare[0])


@pytest.mark.parametrize("form", [form for form in FORMS if form.ema], ids=lambda form: form.what)
def test_a_file_with_two_sets_of_weights_says_which_was_taken(form, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        logits(form.save(tmp_path, STATE, AVERAGE))
    said = [record for record in caplog.records if "moving average" in record.getMessage()]
    swapped = form.what == "Lightning's WeightAveraging"
    assert len(said) == 1 and (said[0].levelname == "WARNING") is not swapped
    assert ("--weights ema takes" in said[0].getMessage()) is not swapped


def test_the_documentation_lists_every_form():
    assert forms_table() in (ROOT / "docs" / "checkpoints.md").read_text()
