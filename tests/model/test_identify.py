"""Which model a checkpoint is: recorded, given, or named as an assumption; never taken in silence."""
import argparse
import dataclasses

import pytest
import timm
import torch
from helpers import dyvit, tiny_checkpoint

from dyvit_deploy.checkpoints.recorded import Steps
from dyvit_deploy.config import KeepRequest, LoadConfig, PruneConfig
from dyvit_deploy.errors import CheckpointError, ConfigError
from dyvit_deploy.model import build, zoo
from dyvit_deploy.model.checkpoint import load_facts, load_model
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.identify import prepare
from dyvit_deploy.model.state import published_name
from dyvit_deploy.settings.preprocessing import Preprocess

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def small():
    """The state dict of a ViT-S/16, which DeiT and timm's augreg weights share."""
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224", num_classes=4).state_dict()


def facts_of(folder, content, **load):
    path = folder / "m.pth"
    torch.save(content, path)
    return load_facts(path, LoadConfig(**load))


def test_a_bare_file_that_fits_models_with_other_images_is_refused_with_their_names(tmp_path, small):
    with pytest.raises(CheckpointError) as caught:
        facts_of(tmp_path, small)
    for part in ("deit-s with mean 0.485,0.456,0.406", "timm:vit_small_patch16_224", "mean 0.5,0.5,0.5", "--model",
                 "--mean and --std"):
        assert part in str(caught.value)


IMAGENET = zoo.MODELS["deit-s"].preprocess.mean
VIT, DEIT = "vit_small_patch16_224", "deit_small_patch16_224"


@pytest.mark.parametrize("args, name, mean, short", [
    # timm's script, which records what was given and takes the rest from the model.
    (dict(model=VIT, mean=None, crop_pct=None), f"timm:{VIT}", HALF, 248),
    # DeiT's, which has ImageNet's constants whatever the model is.
    (dict(model=DEIT, input_size=224, eval_crop_ratio=0.875), f"timm:{DEIT}", IMAGENET, 256),
    (dict(model=VIT, input_size=224, eval_crop_ratio=1.0), f"timm:{VIT}", IMAGENET, 224),
    # DynamicViT's, with the option of ConvNeXt's.
    (dict(model="deit-s"), "deit-s", IMAGENET, 256),
    (dict(model="deit-s", input_size=224, imagenet_default_mean_and_std=True), "deit-s", IMAGENET, 256),
    (dict(model="deit-s", input_size=224, imagenet_default_mean_and_std=False), "deit-s", HALF, 256)])
def test_training_arguments_of_known_scripts_decide_and_nothing_is_assumed(args, name, mean, short, tmp_path, small):
    facts = facts_of(tmp_path, {"model": small, "args": argparse.Namespace(**args)})
    assert (facts.model.name, facts.model.preprocess.mean, facts.assumed) == (name, mean, ())
    assert facts.model.preprocess.short_side == short


@pytest.mark.parametrize("content", [dict(arch=VIT), dict(hyper_parameters={"model_name": VIT}),
                                     dict(args=argparse.Namespace(model=VIT))])
def test_of_other_scripts_the_model_is_known_and_its_preprocessing_is_assumed(content, tmp_path, small):
    facts = facts_of(tmp_path, {"state_dict": small} | content)
    [statement] = facts.assumed
    assert facts.model.name == f"timm:{VIT}" and "mean 0.5,0.5,0.5" in statement and "short side 248" in statement
    said = facts_of(tmp_path, {"state_dict": small} | content, mean=HALF, std=HALF, crop=0.9, interpolation="bicubic")
    assert said.assumed == ()


def test_what_is_recorded_of_another_model_than_the_named_one_is_not_used(tmp_path, small, caplog):
    caplog.set_level("INFO")
    args = argparse.Namespace(model="vit_tiny_patch16_224", mean=[0.1, 0.2, 0.3], crop_pct=0.5)
    facts = facts_of(tmp_path, {"model": small, "args": args}, model="deit-s")
    assert facts.model == dataclasses.replace(zoo.get("deit-s"), classes=4) and "it is not used" in caplog.text
    tagged = facts_of(tmp_path, {"model": small, "args": argparse.Namespace(model=VIT, mean=[0.1, 0.2, 0.3],
                                                                            crop_pct=0.5)}, model=f"timm:{VIT}.dino")
    assert tagged.model.preprocess.mean == (0.1, 0.2, 0.3) and tagged.model.preprocess.short_side == 448


def test_models_that_differ_in_their_activation_alone_are_not_taken_for_each_other(tmp_path):
    state = timm.create_model("vit_base_patch16_clip_224", num_classes=4).state_dict()
    with pytest.raises(CheckpointError, match=r"QuickGELU") as caught:
        facts_of(tmp_path, state)
    assert "timm:vit_base_patch16_clip_224" in str(caught.value)


def test_arguments_that_do_not_decide_between_models_do_not_silence_the_refusal(tmp_path, small):
    with pytest.raises(CheckpointError, match="fit several"):
        facts_of(tmp_path, small, model_args=(("drop_rate", 0.1),))


def test_an_image_size_that_follows_from_the_positions_is_an_assumption(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=4).state_dict()
    facts = facts_of(tmp_path, state, model="timm:vit_tiny_patch16_224")
    assert facts.model.image_size == (96, 96)
    assert facts.assumed == ("an image size of 96 x 96, for positions in a square",)
    assert facts_of(tmp_path, state, model="timm:vit_tiny_patch16_224", image_size=(96, 96)).assumed == ()


def test_a_crop_that_would_leave_a_frame_is_refused_and_scales_with_the_image(tmp_path, small):
    facts = facts_of(tmp_path, small, model="deit-s", crop=0.8, image_size=(288, 288))
    assert facts.model.preprocess.short_side == 360
    prepared = prepare(Preprocess(256), Steps(short_side=256), (448, 448), (224, 224))
    assert prepared.short_side == 512
    with pytest.raises(ConfigError, match="below the 448 of the model"):
        prepare(Preprocess(512), Steps(short_side=256), (448, 448), None)
    # The preprocessing of our own files is changed in what is asked alone.
    assert prepare(Preprocess(), Steps(mean=HALF), (64, 64), None) == Preprocess(mean=HALF)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_files_of_dinov2s_own_code_are_read_at_any_size(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, img_size=70, depth=2).eval()
    state = dict(model.state_dict())
    state["mask_token"] = torch.zeros(1, 384)
    if "reg_token" in state:
        # There, the positions have one of the class token, which is added to it in timm's.
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.ones(1, 1, 384), state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - 1
    load = LoadConfig(model=f"timm:{name}", model_args=(("depth", 2),))
    torch.save(state, tmp_path / "m.pth")
    ours, facts = load_model(tmp_path / "m.pth", load)
    images = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        assert torch.allclose(ours(images), model(images), atol=1e-4)
    assert facts.adapted == () and facts.model.image_size == (70, 70)
    larger = load_model(tmp_path / "m.pth", dataclasses.replace(load, image_size=(98, 98)))[1]
    assert larger.adapted == ("positions interpolated from 5 x 5 to 7 x 7 patches",)


CLIP = {"cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj.weight": "conv1.weight",
        "norm_pre.": "ln_pre.", "norm.": "ln_post.", "blocks.0.norm": "transformer.resblocks.0.ln_",
        "blocks.0.attn.qkv.": "transformer.resblocks.0.attn.in_proj_",
        "blocks.0.attn.proj": "transformer.resblocks.0.attn.out_proj",
        "blocks.0.mlp.fc1": "transformer.resblocks.0.mlp.c_fc",
        "blocks.0.mlp.fc2": "transformer.resblocks.0.mlp.c_proj"}


def test_clips_own_names_are_read_with_timms_filter(tmp_path):
    torch.manual_seed(0)
    name = "vit_base_patch32_clip_224"
    model, state = timm.create_model(name, num_classes=512, depth=1).eval(), {}
    for new, tensor in model.state_dict().items():
        old = next((start + new[len(end):] for end, start in CLIP.items() if new.startswith(end)), None)
        if old in ("class_embedding", "positional_embedding"):
            tensor = tensor[0, 0] if old == "class_embedding" else tensor[0]
        # CLIP has a projection in place of a head.
        if old or new == "head.weight":
            state[f"visual.{old or 'proj'}"] = tensor if old else tensor.T.contiguous()
    torch.save(state, tmp_path / "m.pth")
    load = LoadConfig(model=f"timm:{name}", model_args=(("depth", 1),))
    with torch.no_grad():
        model.head.bias.zero_()
    ours, _ = load_model(tmp_path / "m.pth", load)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(images), model(images), atol=1e-5)


def test_preprocessing_in_the_training_arguments_is_used(tmp_path, small):
    args = argparse.Namespace(model="vit_small_patch16_224", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.5,
                              interpolation="bilinear")
    facts = facts_of(tmp_path, {"state_dict": small, "args": args})
    assert facts.model.preprocess == Preprocess(448, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def test_the_name_of_the_moving_average_decides_and_the_rest_is_assumed(tmp_path, small):
    facts = facts_of(tmp_path, {"model": small, "model_ema": small})
    assert facts.model.name == "deit-s" and len(facts.assumed) == 1


def test_a_mean_and_a_deviation_decide_where_all_else_is_equal(tmp_path, small):
    facts = facts_of(tmp_path, small, mean=(0.5,), std=(0.5,), crop=0.9, interpolation="bilinear")
    assert facts.model.preprocess == Preprocess(248, HALF, HALF, "bilinear")
    [statement] = facts.assumed
    assert "6 heads" in statement and "mean" not in statement and "bilinear" not in statement


def test_what_a_named_model_leaves_open_is_assumed_once_and_only_without_a_tag(tmp_path, small, caplog):
    torch.save(small, tmp_path / "m.pth")
    for load, assumed in ((LoadConfig(model="timm:vit_small_patch16_224"), 1),
                          (LoadConfig(model="timm:vit_small_patch16_224.dino"), 0),
                          (LoadConfig(model="timm:vit_small_patch16_224", mean=HALF, std=HALF), 0),
                          (LoadConfig(model="deit-s"), 0)):
        caplog.clear()
        assert len(load_model(tmp_path / "m.pth", load)[1].assumed) == assumed == len(caplog.records)


def test_a_model_whose_tensors_no_other_has_is_taken_and_what_is_assumed_is_said(tmp_path):
    state = {published_name(n): t for n, t in DynamicViT(zoo.get("deit-256"), None).state_dict().items()}
    [statement] = facts_of(tmp_path, state).assumed
    for part in ("deit-256", "4 heads", "class-token pooling", "GELU", "norm epsilon 1e-06", "mean 0.485", "bicubic"):
        assert part in statement


def test_predictors_show_the_models_of_the_published_code(tmp_path):
    model = DynamicViT(zoo.get("deit-s"), PruneConfig.from_ratio(0.7, (3, 6, 9)))
    state = {published_name(n): t for n, t in model.state_dict().items()}
    facts = facts_of(tmp_path, state, keep=KeepRequest(ratio=0.7))
    assert facts.model == zoo.get("deit-s") and len(facts.assumed) == 1


def test_average_pooling_is_seen_in_the_tensors(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=4, global_pool="avg").state_dict()
    torch.save({"model": state}, tmp_path / "m.pth")
    model, _ = load_model(tmp_path / "m.pth", LoadConfig(model="timm:vit_tiny_patch16_224"))
    assert model.backbone.global_pool == "avg"


def test_a_fine_tuned_mae_is_timms_vit_with_average_pooling(tmp_path):
    state = timm.create_model("vit_base_patch16_224", num_classes=4, global_pool="avg").state_dict()
    args = argparse.Namespace(model="vit_base_patch16", nb_classes=4, input_size=224, global_pool=True)
    facts = facts_of(tmp_path, {"model": state, "args": args})
    assert facts.model.name == "timm:vit_base_patch16_224.mae" and facts.model.preprocess.mean[0] == 0.485
    assert facts.assumed == () and dict(facts.model.options) == {"global_pool": "avg"}


def test_arguments_of_the_model_are_those_of_timm_and_survive_the_facts(tmp_path, small):
    facts = facts_of(tmp_path, small, model="deit-s", model_args=(("heads", 12),))
    assert facts.model.heads == 12 and type(facts).from_json(facts.to_json(), "f").model == facts.model
    torch.save(small, tmp_path / "m.pth")
    args = (("num_heads", 12), ("global_pool", "avg"), ("fc_norm", False))
    model, facts = load_model(tmp_path / "m.pth", LoadConfig(model="timm:vit_small_patch16_224", model_args=args))
    assert facts.model.heads == 12 and model.backbone.global_pool == "avg"
    assert type(facts).from_json(facts.to_json(), "f").model == facts.model


@pytest.mark.parametrize("args, message", [
    ((("checkpoint_path", "x"),), "Unknown model argument"), ((("num_heads", "6"),), "a whole number, not '6'"),
    ((("heads", 4), ("num_heads", 2)), "given twice"), ((("act_layer", ""),), "is empty"),
    ((("norm_eps", 1e-3), ("norm_layer", "rmsnorm")), "exclude each other"), ((("num_heads", 0),), "positive"),
    ((("act_layer", "nope"),), "cannot create"), ((("patch_size", (16, 8)),), "only square"),
    ((("num_heads", True),), "not True"), ((("num_heads", 5),), "cannot create|cannot be built"),
    ((("in_chans", 4),), "3 channels or 1"), ((("global_pool", "best"),), "cannot create")])
def test_arguments_that_the_model_does_not_take_are_refused(args, message, tmp_path, small):
    with pytest.raises(ConfigError, match=message):
        facts_of(tmp_path, small, model="timm:vit_small_patch16_224", model_args=args)
    assert build.check_options((("drop_path_rate", 0.1), ("gp", "avg"))) == {"global_pool": "avg"}


def test_options_that_our_own_files_record_already_are_refused_and_preprocessing_may_be_replaced(tmp_path):
    path = tiny_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="records its architecture"):
        load_facts(path, LoadConfig(model_args=(("heads", 1),)))
    own = load_facts(path).model.preprocess
    changed = load_facts(path, LoadConfig(mean=HALF)).model.preprocess
    assert (changed.mean, changed.std, changed.short_side) == (HALF, own.std, own.short_side)


def test_grey_models_apply_their_channel_to_the_luma(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, in_chans=1).eval()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    ours, facts = load_model(tmp_path / "m.pth", LoadConfig(model="timm:test_vit"))
    grey = torch.randn(2, 1, 160, 160)
    with torch.no_grad():
        assert torch.allclose(ours(grey.expand(-1, 3, -1, -1)), model(grey), atol=1e-5)
    assert "luma" in facts.adapted[0]
    torch.save(timm.create_model("test_vit", in_chans=4).state_dict(), tmp_path / "m.pth")
    for load in (LoadConfig(model="timm:test_vit"), LoadConfig()):
        with pytest.raises(CheckpointError, match=r"images of 4 channels.*in_chans=3"):
            load_model(tmp_path / "m.pth", load)


def test_a_model_of_timm_without_its_prefix_is_suggested_with_it():
    with pytest.raises(ConfigError, match=r"Did you mean 'timm:vit_tiny_patch16_224'"):
        build.resolve("vit_tiny_patch16_224")


def test_models_with_parallel_blocks_are_dense_models_like_others(tmp_path):
    state = timm.create_model("vit_small_patch16_18x2_224", num_classes=4, depth=2).state_dict()
    torch.save(state, tmp_path / "m.pth")
    load = LoadConfig(model="timm:vit_small_patch16_18x2_224", model_args=(("depth", 2),))
    facts = load_facts(tmp_path / "m.pth", load)
    assert facts.model.heads == 6 and facts.dense


@pytest.mark.parametrize("words", [["predict", "FILE", "PHOTO", "--top", "1"], ["export", "FILE", "-o", "OUT"],
                                   ["inspect", "FILE"], ["bench", "FILE", "--seconds", "0.1", "--batch", "1"]])
def test_a_command_says_each_assumption_once_and_nothing_where_nothing_is_assumed(words, tmp_path):
    from PIL import Image
    state = timm.create_model("vit_tiny_patch16_224", num_classes=4).state_dict()
    torch.save({"model": state, "model_ema": state}, tmp_path / "m.pth")
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    places = {"FILE": str(tmp_path / "m.pth"), "PHOTO": str(tmp_path / "photo.png"), "OUT": str(tmp_path / "m.onnx")}
    command = [places.get(word, word) for word in words]
    result = dyvit(*command)
    assert result.exit_code == 0, result.output
    if words[0] != "inspect":
        assert result.output.count("Assumed, because") == 1 and "timm:deit_tiny_patch16_224" in result.output
    else:
        assert "timm:deit_tiny_patch16_224 by its tensors" in " ".join(result.output.split())
    named = dyvit(*command, "--model", "timm:deit_tiny_patch16_224", "--weights", "model")
    assert named.exit_code == 0 and "ssumed" not in named.output
