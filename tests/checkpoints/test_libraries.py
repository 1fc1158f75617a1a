"""Models of timm and transformers give the logits of their own libraries, from the photo on."""
import json
import resource

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dyvit_deploy.config import LoadConfig
from dyvit_deploy.data.preprocess import normalise, resize_and_crop
from dyvit_deploy.errors import CheckpointError
from dyvit_deploy.model.checkpoint import load_model

# One of each kind of VisionTransformer: sizes of patches, pooling, norms, registers, activations, MLPs, attention.
FAMILIES = [
    "deit_tiny_patch16_224", "deit_small_distilled_patch16_224", "deit3_small_patch16_224", "vit_tiny_patch16_224",
    "vit_small_patch16_384", "vit_small_patch32_224", "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224", "vit_base_patch16_siglip_gap_224", "vit_medium_patch16_gap_256",
    "vit_medium_patch16_reg4_gap_256", "vit_little_patch16_reg1_gap_256", "vit_wee_patch16_reg1_gap_256",
    "vit_pwee_patch16_reg1_gap_256", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224", "flexivit_small",
    "vit_base_patch16_224_miil", "beit3_base_patch16_224", "vit_base_patch16_rpn_224",
    "vit_so150m_patch16_reg4_map_256", "vit_small_patch16_224.dino",
]


@pytest.fixture(scope="module")
def photo():
    """A wide photo with detail, so that resizing and cropping matter."""
    small = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((450, 300), Image.Resampling.BICUBIC)


def shaken(model, seed=0):
    """With weights that differ from their initial values, of which many are zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def our_logits(path, photo, **load):
    """The model input, and the logits."""
    model, facts = load_model(path, LoadConfig(**load))
    pixels = normalise(resize_and_crop(photo, facts.model)[None], facts.model.preprocess)
    with torch.no_grad():
        return pixels, model(torch.from_numpy(pixels))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_timm_gives_timms_logits(name, tmp_path, photo):
    model = shaken(timm.create_model(name, num_classes=7, depth=2))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model(transform(photo)[None])
    pixels, logits = our_logits(tmp_path / "m.pth", photo, model=f"timm:{name}", model_args=(("depth", 2),))
    assert np.abs(pixels - transform(photo)[None].numpy()).max() == 0
    assert (logits - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))


def folder_of_timm(folder, **changes):
    """As timm's push_to_hf_hub writes it."""
    model = shaken(timm.create_model("test_vit", num_classes=3))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    weights = {"input_size": [3, 160, 160], "mean": [.4, .5, .6], "std": [.2, .3, .4], "crop_pct": .9,
               "crop_mode": "center", "interpolation": "bilinear", "num_classes": 3}
    config = {"architecture": "test_vit", "num_classes": 3, "label_names": ["ant", "bee", "cow"],
              "pretrained_cfg": weights} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return model, weights


@pytest.mark.parametrize("form", ["", "pytorch_model.bin"])
def test_a_folder_of_timm_says_how_to_prepare_images_and_what_classes_are_called(form, tmp_path, photo, caplog):
    model, weights = folder_of_timm(tmp_path)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(weights), is_training=False)
    with torch.no_grad():
        expected = model(transform(photo)[None])
    pixels, logits = our_logits(tmp_path / form, photo)
    assert np.abs(pixels - transform(photo)[None].numpy()).max() == 0 and torch.equal(logits, expected)
    facts = load_model(tmp_path / form)[1]
    assert facts.class_names == ("ant", "bee", "cow") and facts.assumed == () and not caplog.records


def test_arguments_in_timms_configuration_are_used_and_unknown_ones_refused(tmp_path):
    folder_of_timm(tmp_path, model_args={"num_heads": 4, "drop_path_rate": 0.1})
    assert load_model(tmp_path)[0].backbone.blocks[0].attn.num_heads == 4
    for arguments in ({"checkpoint_path": "x.pth"}, {"num_heads": "4"}, {"pretrained_cfg": {}}):
        folder_of_timm(tmp_path, model_args=arguments)
        with pytest.raises(CheckpointError, match=r"config\.json|model argument"):
            load_model(tmp_path)


@pytest.mark.parametrize("changes", [{"embed_dim": 12288, "depth": 100, "num_heads": 96}, {"depth": 100_000},
                                     {"embed_dim": 10**9}])
def test_sizes_that_a_configuration_claims_are_compared_before_any_memory_is_taken(changes, tmp_path):
    folder_of_timm(tmp_path, model_args=changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"has 6 blocks|has shape|cannot be used"):
        load_model(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


SIZES = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=64, patch_size=8, num_labels=5)
INNER = dict(intermediate_size=100)
# Class, changes of its configuration, and its processor with sizes.
SQUARE = ("ViTImageProcessorPil", dict(size={"height": 64, "width": 64}))
CROPPED = ("DeiTImageProcessorPil", dict(size={"height": 73, "width": 73}, crop_size={"height": 64, "width": 64}))
SHORT = ("BitImageProcessorPil", dict(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}))
LIBRARY = {
    "vit": ("ViTForImageClassification", "ViTConfig", INNER, SQUARE),
    "vit, relu, no bias": ("ViTForImageClassification", "ViTConfig", INNER | dict(qkv_bias=False, hidden_act="relu"),
                           SQUARE),
    "vit, tanh": ("ViTForImageClassification", "ViTConfig", INNER | dict(hidden_act="gelu_new"), SQUARE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", INNER, CROPPED),
    "deit, distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", INNER, CROPPED),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {}, SHORT),
    "dinov2, other size": ("Dinov2ForImageClassification", "Dinov2Config", dict(image_size=112), SHORT),
    "dinov2, swiglu": ("Dinov2ForImageClassification", "Dinov2Config", dict(use_swiglu_ffn=True), SHORT),
    "dinov2, registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", {}, SHORT),
    "dinov2, registers, other size": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig",
                                      dict(image_size=112), SHORT),
}


def saved_by_transformers(kind, folder, photo, **options):
    """The expected logits and the model; its folder as `save_pretrained` writes it."""
    library = pytest.importorskip("transformers")
    name, config, changes, (processor, sizes) = LIBRARY[kind]
    labels = dict(id2label={i: f"class {i}" for i in range(5)}, label2id={f"class {i}": i for i in range(5)})
    model = shaken(getattr(library, name)(getattr(library, config)(**SIZES | changes | labels)))
    processor = getattr(library, processor)(**sizes)
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    inputs = processor(photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return inputs.numpy(), model(inputs).logits, model


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_folder_of_transformers_gives_its_logits(kind, tmp_path, photo):
    inputs, expected, _ = saved_by_transformers(kind, tmp_path, photo)
    pixels, logits = our_logits(tmp_path, photo)
    assert np.abs(pixels - inputs).max() == 0 and (logits - expected).abs().max() <= 1e-4
    facts = load_model(tmp_path)[1]
    assert facts.class_names == tuple(f"class {i}" for i in range(5)) and facts.assumed == ()


@pytest.mark.parametrize("kind", ["vit", "dinov2, swiglu", "dinov2, registers"])
def test_sharded_files_and_saved_state_dicts_of_transformers_give_the_same(kind, tmp_path, photo):
    _, expected, model = saved_by_transformers(kind, tmp_path, photo, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert (our_logits(path, photo)[1] - expected).abs().max() <= 1e-4
    torch.save({"model": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "mine.pth")
    assert (our_logits(tmp_path / "mine.pth", photo)[1] - expected).abs().max() <= 1e-4


def test_a_model_of_transformers_without_a_processor_names_what_it_assumes(tmp_path, photo, caplog):
    saved_by_transformers("deit", tmp_path, photo)
    (tmp_path / "preprocessor_config.json").unlink()
    facts = load_model(tmp_path)[1]
    assert facts.model.preprocess.squash and facts.model.preprocess.short_side == 73
    [statement] = facts.assumed
    assert "mean 0.485,0.456,0.406" in statement and "bicubic" in statement
    assert [statement in record.getMessage() for record in caplog.records].count(True) == 1


def test_a_named_model_has_its_own_preprocessing_where_no_processor_is_there(tmp_path, photo):
    saved_by_transformers("vit", tmp_path, photo)
    (tmp_path / "preprocessor_config.json").unlink()
    load = LoadConfig(model="timm:vit_tiny_patch16_224", image_size=(64, 64), model_args=(
        ("depth", 3), ("embed_dim", 48), ("num_heads", 3), ("mlp_ratio", 2.1), ("patch_size", 8), ("norm_eps", 1e-12)))
    _, facts = load_model(tmp_path, load)
    assert facts.model.preprocess.interpolation == "bicubic" and not facts.model.preprocess.squash
    assert facts.model.preprocess.short_side == 71 and facts.assumed == ()


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "swin"}, "is a 'swin'"), ({"hidden_act": "mish"}, "hidden_act 'mish'"),
    ({"hidden_size": None}, "cannot be used"), ({"num_attention_heads": "many"}, "cannot be used")])
def test_what_a_configuration_of_transformers_cannot_say_is_refused(changes, message, tmp_path, photo):
    saved_by_transformers("vit", tmp_path, photo)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_torchvisions_vit_gives_torchvisions_logits(tmp_path, photo):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = shaken(VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=5))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    load = dict(model="deit-s", model_args=(("depth", 3), ("embed_dim", 32), ("mlp_ratio", 2), ("num_heads", 2)),
                mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pixels, logits = our_logits(tmp_path / "m.pth", photo, **load)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels))
    assert (logits - expected).abs().max() <= 1e-5
