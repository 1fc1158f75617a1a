"""Weights from elsewhere: dense files with a selector, backbones to train on, timm's pretrained weights."""
import dataclasses

import pytest
import timm
import torch
from helpers import tiny_checkpoint, tiny_config, tiny_images, tiny_model

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.errors import CheckpointError, ConfigError
from dyvit_deploy.model import pretrained, zoo
from dyvit_deploy.model.checkpoint import load_backbone, load_facts, load_model, save_checkpoint
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.runners.open import is_checkpoint, open_runner

NAME = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
ATTENTION = LoadConfig(keep=KeepRequest(ratio=0.5, selector="attention"))


@pytest.fixture
def downloaded(monkeypatch):
    """timm's models with seeded random weights, in place of a download."""
    create = timm.create_model

    def fake(name, pretrained=False, **options):
        torch.manual_seed(5)
        return create(name, pretrained=False, **options)
    monkeypatch.setattr(pretrained, "_require_reachable", lambda repository: None)
    monkeypatch.setattr(timm, "create_model", fake)


def test_selectors_without_training_drop_tokens_of_any_dense_file(tmp_path):
    dense = tiny_checkpoint(tmp_path, None)
    for keep in (ATTENTION.keep, KeepRequest(ratio=0.5, selector="random"), KeepRequest(selector="structural")):
        model, facts = load_model(dense, LoadConfig(keep=keep))
        assert facts.prune.selector == keep.selector and model(tiny_images()).isfinite().all()
        assert load_facts(dense, LoadConfig(keep=keep)).prune == facts.prune
    with pytest.raises(CheckpointError, match="--selector attention"):
        load_model(dense, LoadConfig(keep=KeepRequest(ratio=0.5, selector="static")))
    with pytest.raises(ConfigError, match="add --keep-ratio"):
        load_model(dense, LoadConfig(keep=KeepRequest(selector="attention")))


@pytest.mark.parametrize("selector", ["attention", "random", "static"])
def test_a_trained_checkpoint_keeps_its_selector(tmp_path, selector):
    config, prune = tiny_config(), PruneConfig((2,), (0.5,), selector=selector)
    save_checkpoint(tmp_path / "m.safetensors", DynamicViT(config, prune), ArtifactFacts(config, prune))
    model, facts = load_model(tmp_path / "m.safetensors", LoadConfig(keep=KeepRequest(ratio=0.25)))
    assert facts.prune == PruneConfig((2,), (0.25,), selector=selector) and model.keep_counts == (4,)
    with pytest.raises(CheckpointError, match=f"trained to drop tokens by '{selector}'"):
        load_model(tmp_path / "m.safetensors", LoadConfig(keep=KeepRequest(ratio=0.5, selector="prediction")))


def test_a_backbone_loads_for_other_image_sizes_and_numbers_of_classes(tmp_path):
    for builder in ("vit", "lvvit"):
        dense, facts = tiny_model(None, builder=builder)
        save_checkpoint(tmp_path / "m.safetensors", dense, facts)
        same, kept, new = load_backbone(tmp_path / "m.safetensors", facts.model)
        assert not new and torch.equal(same(tiny_images()), dense(tiny_images())) and kept.parent["sha256"]
        other = dataclasses.replace(facts.model.with_image_size((48, 64)), classes=3)
        model, found, new = load_backbone(tmp_path / "m.safetensors", other)
        assert new and found.model == other and found.class_names is None
        assert model(torch.randn(2, 3, 48, 64)).shape == (2, 3)
        assert torch.equal(model.backbone.blocks[1].mlp.fc1.weight, dense.backbone.blocks[1].mlp.fc1.weight)


def test_a_file_that_is_not_a_backbone_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a backbone is dense"):
        load_backbone(tiny_checkpoint(tmp_path), tiny_config())
    with pytest.raises(CheckpointError, match="is a tiny, not a digits-s"):
        load_backbone(tiny_checkpoint(tmp_path, None), zoo.get("digits-s"))
    with pytest.raises(CheckpointError, match="no pretrained weights of lvvit-s"):
        load_backbone(zoo.TIMM_PRETRAINED, zoo.get("lvvit-s"))


def test_a_timm_name_is_accepted_in_place_of_a_file(downloaded):
    keep = KeepRequest(ratio=0.8, selector="attention", fuse=True)
    assert is_checkpoint(NAME)
    with open_runner(NAME, load=LoadConfig(keep=keep), device="cpu") as runner:
        facts = runner.facts
        out = runner.infer(tiny_images(1, 224).numpy())
    assert facts.parent["file"] == NAME and facts.keep_counts is None and facts.prune.fuse
    assert [k.shape[1] for k in out.kept] == [156, 125, 100] and facts.prune.stages == (4, 7, 10)
    model, again = load_model(NAME, like=facts)
    assert again.parent == facts.parent and model.keep_counts == (156, 125, 100)
    with pytest.raises(CheckpointError, match="is a timm:vit_tiny"):
        load_model(NAME, LoadConfig(model="timm:deit_tiny_patch16_224"))


def test_unavailable_weights_are_refused_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained.huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(CheckpointError, match=f"no network.*FILE --model {NAME}"):
        load_model(NAME, ATTENTION)
    with pytest.raises(ConfigError, match="no weights 'nope' of vit_tiny_patch16_224; it has augreg_in21k"):
        load_model("timm:vit_tiny_patch16_224.nope", ATTENTION)
    with pytest.raises(CheckpointError, match="no pretrained weights of timm:vit_base_patch32_plus_256"):
        load_model("timm:vit_base_patch32_plus_256", ATTENTION)
