import argparse
import pickle
import struct

import pytest
import torch
from helpers import needs_reference, recipe, tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.errors import ArtifactError, CheckpointError, ConfigError
from dyvit_deploy.model import zoo
from dyvit_deploy.model.checkpoint import RawCheckpoint, identified_facts, load_model, read_checkpoint, save_checkpoint
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.state import published_name

KEEP = LoadConfig(keep=KeepRequest(ratio=0.7))


def published(folder, name="digits-s", predictors=True, **extra):
    """A file as the published training script writes it, of the smallest zoo model."""
    torch.manual_seed(0)
    model = DynamicViT(zoo.get(name), PruneConfig.from_ratio(0.7, (1, 3, 4)) if predictors else None)
    state = {published_name(k): v for k, v in model.state_dict().items()}
    path = folder / "published.pth"
    torch.save({"model": state} | extra, path)
    return path, state


def test_our_format_round_trips_weights_and_facts(tmp_path):
    model, facts = tiny_model(0.5)
    save_checkpoint(tmp_path / "m.safetensors", model, facts)
    again, read = load_model(tmp_path / "m.safetensors")
    assert torch.equal(again(tiny_images()), model(tiny_images()))
    assert (read.model, read.prune) == (facts.model, facts.prune)
    assert read.parent["file"] == "m.safetensors" and len(read.parent["sha256"]) == 64


def test_published_files_are_recognised_by_their_tensors(tmp_path):
    path, _ = published(tmp_path)
    model, facts = load_model(path, KEEP)
    assert facts.model.name == "digits-s" and model.keep_counts == (44, 31, 21)
    assert facts.parent["weights"] == "model"


@needs_reference
@pytest.mark.parametrize("name", ["deit-256", "deit-s", "lvvit-s"])
def test_our_tensor_names_and_shapes_are_the_published_ones(name):
    config = zoo.get(name)
    with torch.device("meta"):
        model = DynamicViT(config, PruneConfig.from_ratio(0.7, (3, 6, 9)))
    ours = {published_name(k): list(v.shape) for k, v in model.state_dict().items()}
    assert ours == {k: list(v.shape) for k, v in recipe().state_dict(name).items()}


@pytest.mark.parametrize("side, name", [(224, "deit-s"), (384, "deit-s-384")])
def test_the_input_size_follows_from_the_position_embedding(side, name):
    with torch.device("meta"):
        model = DynamicViT(zoo.get(name), PruneConfig.from_ratio(0.7, (3, 6, 9)))
    state = {published_name(k): v for k, v in model.state_dict().items()}
    config = identified_facts(RawCheckpoint("file", state, None, "model")).model
    assert config == zoo.get(name) and config.image_size == (side, side)


def test_ema_weights_are_taken_from_a_file_saved_as_best_ema_and_only_there(tmp_path):
    path, state = published(tmp_path)
    ema = {k: v * 2 if v.is_floating_point() else v for k, v in state.items()}

    def taken(weights, **extra):
        torch.save({"model": state, "model_ema": ema} | extra, path)
        raw = read_checkpoint(path, weights)
        factor = round((raw.state["head.weight"] / state["head.weight"]).mean().item())
        assert {"model": 1, "ema": 2}[raw.weights] == factor
        return raw.weights

    assert taken("auto", epoch="best-ema") == "ema"
    assert taken("auto", epoch=29) == "model"
    assert taken("model", epoch="best-ema") == "model"
    assert taken("ema", epoch=29) == "ema"


def test_the_keep_ratio_of_the_training_arguments_is_used(tmp_path):
    path, _ = published(tmp_path, args=argparse.Namespace(base_rate=0.5))
    model, _ = load_model(path)
    assert model.keep_counts == (32, 16, 8)


def test_an_explicit_keep_ratio_replaces_an_invalid_one_in_the_file(tmp_path):
    path, _ = published(tmp_path, args=argparse.Namespace(base_rate=2.0))
    assert load_model(path, KEEP)[0].keep_counts == (44, 31, 21)


def test_bare_and_wrapped_state_dicts_are_read(tmp_path):
    path, state = published(tmp_path)
    for saved in (state, {"state_dict": state}, {"model": {f"module.{k}": v for k, v in state.items()}}):
        torch.save(saved, path)
        assert read_checkpoint(path).state.keys() == state.keys()


def test_another_image_size_interpolates_positions(tmp_path):
    path, state = published(tmp_path)
    model, facts = load_model(path, LoadConfig(image_size=(96, 64), keep=KeepRequest(ratio=0.7)))
    assert facts.model.patches == 96
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 10)
    assert torch.equal(model.backbone.pos_embed[:, 0], state["pos_embed"][:, 0])


def test_positions_of_an_unknown_grid_are_used_as_they_are_where_their_number_fits(tmp_path):
    path, state = published(tmp_path)
    model, facts = load_model(path, LoadConfig(image_size=(32, 128), keep=KeepRequest(ratio=0.7)))
    assert model.config.grid == (4, 16) and facts.adapted == ()
    assert torch.equal(model.backbone.pos_embed, state["pos_embed"])


def test_positions_are_resampled_from_a_recorded_grid_with_as_many_patches(tmp_path):
    path = tiny_checkpoint(tmp_path, image_size=(32, 32))
    before, _ = load_model(path)
    model, facts = load_model(path, LoadConfig(image_size=(16, 64)))
    assert facts.adapted == ("positions interpolated from 4 x 4 to 2 x 8 patches",)
    assert not torch.allclose(model.backbone.pos_embed, before.backbone.pos_embed, atol=1e-3)


def test_positions_of_a_rectangular_checkpoint_are_resampled_from_its_own_grid(tmp_path):
    path = tiny_checkpoint(tmp_path, image_size=(48, 32))
    _, facts = load_model(path, LoadConfig(image_size=(64, 64)))
    assert facts.model.grid == (8, 8)


def test_a_named_model_has_the_size_of_its_positions(tmp_path):
    path, state = published(tmp_path)
    state["pos_embed"] = torch.randn(1, 145, 128)
    torch.save({"model": state}, path)
    model, facts = load_model(path, LoadConfig(model="digits-s", keep=KeepRequest(ratio=0.7)))
    assert facts.model.image_size == (96, 96) and torch.equal(model.backbone.pos_embed, state["pos_embed"])
    state["pos_embed"] = torch.randn(1, 61, 128)
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match="--image-size HEIGHTxWIDTH"):
        load_model(path, LoadConfig(model="digits-s", keep=KeepRequest(ratio=0.7)))


def test_a_dense_backbone_loads_as_dense_and_is_refused_with_a_keep_ratio(tmp_path):
    path, _ = published(tmp_path, predictors=False)
    assert load_model(path)[1].dense
    assert load_model(path, LoadConfig(keep=KeepRequest(ratio=1.0)))[1].dense
    with pytest.raises(CheckpointError, match=r"--backbone .*published\.pth"):
        load_model(path, KEEP)


class RunsCode:
    """Pickles to a call that creates the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_does_not_run(tmp_path):
    trap, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    torch.save({"model": {"pos_embed": torch.zeros(1)}, "args": RunsCode(trap)}, path)
    with pytest.raises(CheckpointError, match=r"evil.pth contains code, .*open.* not run"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(RunsCode(trap), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not trap.exists()


def damaged(tmp_path):
    good = tiny_checkpoint(tmp_path)
    path, _ = published(tmp_path)
    whole_st, whole_pth = good.read_bytes(), path.read_bytes()
    yield "cut.safetensors", whole_st[:-100]
    yield "cut-header.safetensors", whole_st[:50]
    yield "huge-header.safetensors", struct.pack("<Q", 1 << 60) + b"{}"
    yield "text.safetensors", b"hello"
    yield "cut.pth", whole_pth[:len(whole_pth) // 2]
    yield "text.pth", b"hello world"
    yield "zip.pth", b"PK\x03\x04" + b"\0" * 100
    yield "json.pth.tar", b'{"a": 1}'


def test_a_damaged_file_is_a_checkpoint_error_that_names_it(tmp_path):
    for name, content in damaged(tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
            read_checkpoint(tmp_path / name)
        assert "again" in str(caught.value), name


@pytest.mark.parametrize("saved, message", [
    ([1, 2], "holds a list"), ({}, "no state dict"), ({"model": {}}, "no state dict"), ({"epoch": 3}, "no state dict"),
    (torch.zeros(3), "holds a Tensor"),
])
def test_files_without_a_state_dict_are_refused(tmp_path, saved, message):
    torch.save(saved, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("norm.weight"), "lacks the tensor 'norm.weight'"),
    (lambda s: s.update(extra=torch.zeros(1)), "has the tensor 'extra'"),
    (lambda s: s.update({"norm.weight": torch.zeros(7)}), r"'norm.weight' has shape \[7\], digits-s needs \[128\]"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 60, 128)), "do not form a square grid"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 0, 128)), "do not form a square grid"),
    (lambda s: s.update(pos_embed=torch.zeros(65)), "no tensor 'pos_embed' of 3 dimensions"),
    (lambda s: s.update({"head.weight": torch.tensor(1.0)}), "no tensor 'head.weight' of 2 dimensions"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 65, 100)), r"'pos_embed' has shape \[1, 65, 100\]"),
    (lambda s: s.update({f"{i}.weight": torch.zeros(1) for i in range(5)}), "no known model has its tensors"),
    (lambda s: s.pop("pos_embed"), "has no tensor 'pos_embed'"),
    (lambda s: s.pop("head.weight"), "has no tensor 'head.weight'"),
])
def test_tensors_that_do_not_match_the_model_are_named(tmp_path, change, message):
    path, state = published(tmp_path)
    change(state)
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path, KEEP)


def test_requests_that_the_checkpoint_cannot_meet_are_refused(tmp_path):
    path, _ = published(tmp_path)
    for load, message in ((LoadConfig(), "does not record its keep ratio"),
                          (LoadConfig(keep=KeepRequest(ratio=0.7, stages=(1, 3))), "3 predictors but 2 stages"),
                          (LoadConfig(weights="ema"), "no EMA weights")):
        with pytest.raises(CheckpointError, match=message):
            load_model(path, load)
    with pytest.raises(ConfigError, match="multiple of the patch size"):
        load_model(path, LoadConfig(image_size=(60, 60), keep=KeepRequest(ratio=0.7)))


def test_a_file_of_a_timm_backbone_needs_the_models_name(tmp_path):
    import timm
    path = tmp_path / "backbone.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=2).state_dict(), path)
    with pytest.raises(CheckpointError, match="--model timm:NAME"):
        load_model(path)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict(), path)
    _, facts = load_model(path, LoadConfig(model="timm:vit_tiny_patch16_224"))
    assert facts.model.classes == 7 and facts.dense


def test_a_missing_file_is_an_artifact_error():
    with pytest.raises(ArtifactError, match="does not exist"):
        load_model("nowhere.pth")


