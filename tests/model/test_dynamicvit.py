import pytest
import timm
import torch
from helpers import tiny_config, tiny_images, tiny_model

from dyvit_deploy.config import ModelConfig, PruneConfig
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.dynamicvit import DynamicViT

# One per feature of timm's VisionTransformer that pruning has to respect.
TIMM = {
    "class token": "vit_tiny_patch16_224",
    "distillation token": "deit_tiny_distilled_patch16_224",
    "register, average pooling, parallel blocks": "vit_pwee_patch16_reg1_gap_256",
    "no prefix, attention pooling": "vit_base_patch16_siglip_224",
}


def timm_model(name: str, ratio: float) -> DynamicViT:
    torch.manual_seed(0)
    config = resolve(f"timm:{name}")
    stages = (1, 2) if config.depth > 2 else (1,)
    return DynamicViT(config, PruneConfig.from_ratio(ratio, stages)).eval()


@pytest.mark.parametrize("builder", ["vit", "lvvit"])
def test_keep_ratio_one_is_the_dense_model_bit_for_bit(builder):
    model, _ = tiny_model(1.0, builder=builder, patch_size=16)
    images = tiny_images()
    with torch.inference_mode():
        assert torch.equal(model(images), model.backbone(images))


@pytest.mark.parametrize("name", TIMM.values(), ids=TIMM)
def test_any_timm_vit_is_dense_at_ratio_one_and_keeps_its_prefix_tokens(name):
    model = timm_model(name, 1.0)
    images = tiny_images(1, model.config.image_size[0])
    with torch.inference_mode():
        assert torch.equal(model(images), model.backbone(images))
        model.keep_counts = tuple(model.config.patches // 4 for _ in model.keep_counts)
        seen = []
        hook = model.backbone.blocks[-1].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
        out = model.forward_pruned(images)
        hook.remove()
    assert out.logits.isfinite().all() and out.logits.shape == (1, model.config.classes)
    assert seen == [model.prefix + model.keep_counts[-1]]


def test_a_backbone_with_qk_norm_swiglu_and_registers_can_be_pruned():
    config = tiny_config()
    model = DynamicViT(config, PruneConfig.from_ratio(0.5, (1, 2, 3)))
    model.backbone = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5, qk_norm=True,
        init_values=0.1, mlp_layer=timm.layers.SwiGLU, reg_tokens=2)
    model.prefix = 3
    model.eval()
    images = tiny_images()
    samples = [torch.ones(2, 16) for _ in range(3)]
    out = model.forward_masked(images, samples, eps=0)
    assert torch.allclose(out.logits, model.backbone(images), atol=1e-4)
    assert model(images).shape == (2, 5)


@pytest.mark.parametrize("builder, stem", [("vit", "linear"), ("vit", "conv"), ("lvvit", "linear")])
def test_masked_training_equals_pruned_inference(builder, stem):
    model, _ = tiny_model(0.5, builder=builder, stem=stem, patch_size=8)
    images = tiny_images()
    with torch.inference_mode():
        pruned = model.forward_pruned(images)
        samples = [torch.zeros(2, 16).scatter(1, kept, 1.0) for kept in pruned.kept]
        masked = model.forward_masked(images, samples, eps=0)
    assert torch.allclose(masked.logits, pruned.logits, atol=1e-4)
    for decision, kept in zip(masked.decisions, pruned.kept):
        assert torch.equal(decision, torch.zeros(2, 16).scatter(1, kept, 1.0))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_masked_equals_pruned_for_each_pooling_that_can_be_trained(pool):
    model, _ = tiny_model(0.5)
    model.backbone = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5, global_pool=pool)
    model.eval()
    with torch.inference_mode():
        pruned = model.forward_pruned(tiny_images())
        samples = [torch.zeros(2, 16).scatter(1, kept, 1.0) for kept in pruned.kept]
        masked = model.forward_masked(tiny_images(), samples, eps=0)
    assert torch.allclose(masked.logits, pruned.logits, atol=1e-4)


def test_kept_patches_shrink_and_stay_within_those_kept_before():
    model, _ = tiny_model(0.7)
    with torch.inference_mode():
        out = model.forward_pruned(tiny_images())
    assert [k.shape[1] for k in out.kept] == [11, 7, 5]
    for before, after in zip(out.kept, out.kept[1:]):
        assert all(set(a.tolist()) < set(b.tolist()) for a, b in zip(after, before))


def test_scores_are_minus_infinity_exactly_for_patches_dropped_before():
    model, _ = tiny_model(0.7)
    with torch.inference_mode():
        out = model.forward_pruned(tiny_images())
    for scores, before in zip(out.scores[1:], out.kept):
        assert torch.equal(scores.isfinite(), torch.zeros(2, 16).scatter(1, before, 1.0).bool())
    kept_scores = out.scores[0].gather(1, out.kept[0])
    assert torch.equal(kept_scores, kept_scores.sort(descending=True).values)


def test_the_result_of_an_image_does_not_depend_on_its_batch():
    model, _ = tiny_model(0.5)
    images = tiny_images(4)
    with torch.inference_mode():
        together = model.forward_pruned(images)
        alone = [model.forward_pruned(image[None]) for image in images]
    assert torch.allclose(together.logits, torch.cat([a.logits for a in alone]), atol=1e-5)
    assert torch.equal(together.kept[-1], torch.cat([a.kept[-1] for a in alone]))


def test_an_image_without_kept_tokens_gives_finite_logits_and_gradients():
    for builder in ("vit", "lvvit"):
        model, _ = tiny_model(0.5, builder=builder)
        model.train()
        out = model.forward_masked(tiny_images(), [torch.zeros(2, 16)] * 3)
        out.logits.square().sum().backward()
        assert out.logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_rectangular_images_other_patch_sizes_and_class_counts_work():
    config = tiny_config(image_size=(48, 32), patch_size=16, classes=3)
    model = DynamicViT(config, PruneConfig((1,), keep_counts=(4,))).eval()
    out = model.forward_pruned(torch.randn(2, 3, 48, 32))
    assert out.logits.shape == (2, 3) and out.kept[0].shape == (2, 4)
    assert out.kept[0].max() < 6


def test_models_that_cannot_be_trained_are_refused_with_the_reason():
    dense, _ = tiny_model(None)
    with pytest.raises(ConfigError, match="no predictors"):
        dense.forward_masked(tiny_images())
    siglip = timm_model("vit_base_patch16_siglip_224", 0.5)
    with pytest.raises(ConfigError, match="'map' pooling"):
        siglip.forward_masked(tiny_images(1, 224))


def test_timm_models_of_other_kinds_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="not a VisionTransformer"):
        resolve("timm:resnet18")
    with pytest.raises(ConfigError, match="Did you mean 'vit_small_patch16_224'"):
        resolve("timm:vit_smal_patch16_224")
    assert isinstance(resolve("timm:vit_tiny_patch16_224.augreg_in21k"), ModelConfig)
