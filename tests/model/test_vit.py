import pytest
import timm
import torch
from helpers import tiny_config, tiny_images

from dyvit_deploy.errors import ConfigError
from dyvit_deploy.model.build import ConvStem, build_backbone, resolve
from dyvit_deploy.model.vit import embed, masked_block, set_drop_path


def test_a_masked_block_equals_the_block_if_nothing_is_dropped():
    from timm.models.vision_transformer import Block, ResPostBlock
    tokens = torch.randn(2, 7, 32)
    for block in (Block(32, 2, qk_norm=True, init_values=0.1), ResPostBlock(32, 2), Block(32, 2, scale_attn_norm=True)):
        assert torch.allclose(masked_block(block, tokens, torch.ones(2, 7), eps=0), block(tokens), atol=1e-5)


def test_blocks_without_a_masked_form_are_refused_by_name():
    from timm.models.vision_transformer import ParallelScalingBlock
    with pytest.raises(ConfigError, match="ParallelScalingBlock has no masked attention"):
        masked_block(ParallelScalingBlock(32, 2), torch.randn(1, 3, 32), torch.ones(1, 3))


def test_the_embedding_is_the_input_of_timms_first_block():
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    seen = []
    model.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    images = tiny_images(1, 224)
    model(images)
    assert torch.equal(seen[0], embed(model, images))


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_the_convolutional_stem_ends_on_the_patch_grid(patch):
    stem = ConvStem((32, 64), patch, 3, 32)
    assert stem(torch.randn(2, 3, 32, 64)).shape == (2, stem.num_patches, 32)
    assert stem.grid_size == (32 // patch, 64 // patch)


def test_a_timm_model_has_timms_preprocessing():
    config = resolve("timm:vit_small_patch16_224.augreg_in21k_ft_in1k")
    data = timm.data.resolve_model_data_config(timm.create_model("vit_small_patch16_224.augreg_in21k_ft_in1k"))
    assert (config.preprocess.mean, config.preprocess.std) == (data["mean"], data["std"])
    assert config.preprocess.short_side == int(224 / data["crop_pct"])


def test_lvvit_halves_its_residuals_and_adds_the_best_auxiliary_logits():
    model = build_backbone(tiny_config(builder="lvvit")).eval()
    tokens = torch.randn(1, 17, 32)
    block = model.blocks[0]
    by_hand = tokens + 0.5 * block.attn(block.norm1(tokens))
    by_hand = by_hand + 0.5 * block.mlp(block.norm2(by_hand))
    assert torch.allclose(block(tokens), by_hand, atol=1e-6)
    expected = model.head(tokens[:, 0]) + 0.5 * model.aux_head(tokens[:, 1:]).max(1).values
    assert torch.allclose(model.forward_head(tokens), expected)


def test_stochastic_depth_rises_over_the_blocks_and_can_be_removed():
    model = build_backbone(tiny_config())
    set_drop_path(model, 0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    set_drop_path(model, 0)
    assert not any(hasattr(module, "drop_prob") for module in model.modules())
