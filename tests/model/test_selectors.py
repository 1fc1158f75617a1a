import pytest
import torch
from helpers import tiny_config, tiny_images

from dyvit_deploy.config import PruneConfig
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.pruning import gumbel_noise, received_attention
from dyvit_deploy.model.vit import embed, observe_attention

KEEP_PATCHES = ("prediction", "attention", "random", "static")


def with_large_weights(config, prune) -> DynamicViT:
    """A model whose random weights are large enough to affect the results."""
    torch.manual_seed(0)
    model = DynamicViT(config, prune).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pruned(selector, fuse=False, stages=(1, 2, 3), ratios=(0.75, 0.5, 0.25), **changes) -> DynamicViT:
    """16 patches, of which 12, 8 and 4 are kept; structural pooling leaves 4 before block 2."""
    if selector == "structural":
        stages, ratios = (2,), (0.25,)
    return with_large_weights(tiny_config(**changes), PruneConfig(stages, ratios, None, selector, fuse))


def masks(kept, patches=16):
    return [torch.zeros(len(k), patches).scatter(1, k, 1.0) for k in kept]


@pytest.mark.parametrize("builder", ["vit", "lvvit"])
@pytest.mark.parametrize("selector", KEEP_PATCHES)
def test_masked_training_equals_pruned_inference_for_every_selector(selector, builder):
    model, images = pruned(selector, builder=builder), tiny_images()
    with torch.inference_mode():
        out = model.forward_pruned(images)
        masked = model.forward_masked(images, masks(out.kept), eps=0)
    assert torch.allclose(masked.logits, out.logits, atol=1e-4)
    assert [k.shape[1] for k in out.kept] == [12, 8, 4]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_little_patch16_reg1_gap_256"])
def test_the_attention_selector_keeps_the_same_patches_in_training_and_inference(name):
    config = resolve(f"timm:{name}")
    model = with_large_weights(config, PruneConfig((1, 2), (0.5, 0.2), selector="attention"))
    # Three blocks suffice.
    model.backbone.blocks = model.backbone.blocks[:3]
    images = tiny_images(2, config.image_size[0])
    with torch.inference_mode():
        out = model.forward_pruned(images)
        masked = model.forward_masked(images, eps=0)
    assert torch.allclose(masked.logits, out.logits, atol=1e-4)
    assert all(map(torch.equal, masked.decisions, masks(out.kept, config.patches)))


@pytest.mark.parametrize("selector", KEEP_PATCHES)
def test_an_elastic_step_keeps_exactly_the_given_number_in_each_image(selector):
    model = pruned(selector).train()
    keep = torch.tensor([[16, 10, 3], [9, 9, 1]])
    out = model.forward_masked(tiny_images(), keep=keep)
    assert torch.equal(torch.stack([d.sum(dim=1) for d in out.decisions], dim=1).long(), keep)
    assert all((after <= before).all() for before, after in zip(out.decisions, out.decisions[1:]))
    out.logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.score_predictor.parameters())


def test_equal_noise_keeps_equal_patches_and_other_noise_keeps_others():
    model = pruned("prediction").train()
    noise = [gumbel_noise((2, 16, 2), torch.Generator().manual_seed(stage)) for stage in range(3)]
    first, again = (model.forward_masked(tiny_images(), noise=noise).decisions for _ in range(2))
    other = model.forward_masked(tiny_images(), noise=noise[::-1]).decisions
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])


def test_random_patches_are_fixed_at_inference_and_fresh_in_training():
    model, images = pruned("random"), tiny_images()
    kept = [m.forward_pruned(images).kept[0] for m in (model, pruned("random"))]
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0][0], kept[0][1])
    model.train()
    drawn = [model.forward_masked(images).decisions[0] for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0][0], drawn[0][1])
    assert all(d.sum(dim=1).tolist() == [12, 12] for d in drawn)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_received_attention_is_that_of_the_block_with_and_without_a_class_token(pool):
    config = tiny_config()
    model = DynamicViT(config, None).eval()
    model.backbone.has_class_token = pool == "token"
    block, tokens = model.backbone.blocks[0], embed(model.backbone, tiny_images())
    attn = block.attn
    query, key, _ = attn.qkv(block.norm1(tokens)).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query @ key.transpose(-2, -1) * attn.scale).softmax(dim=-1).mean(dim=1)   # [B, T, T]
    after, attended = observe_attention(model.backbone, block, lambda: block(tokens))
    received = received_attention(*attended)
    assert torch.equal(after, block(tokens))
    assert torch.allclose(received, weights[:, 0] if pool == "token" else weights.mean(dim=1), atol=1e-6)


def test_dropped_tokens_neither_give_nor_receive_attention():
    query, key = torch.randn(2, 1, 2, 6, 4).unbind(0)
    kept = torch.tensor([[1.0, 1, 0, 1, 0, 1]])
    for class_token in (True, False):
        masked = received_attention(query, key, 0.5, class_token, kept)
        left = received_attention(query[:, :, kept[0] > 0], key[:, :, kept[0] > 0], 0.5, class_token)
        assert torch.allclose(masked[:, kept[0] > 0], left) and masked[:, kept[0] == 0].abs().max() == 0


def test_structural_pooling_averages_neighbours_and_keeps_no_patch():
    model, images = pruned("structural"), tiny_images()
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert model.score_predictor[0](grid).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    out, masked = model.forward_pruned(images), model.train().forward_masked(images)
    assert out.kept == out.scores == masked.decisions == ()
    assert torch.equal(out.logits, masked.logits) and masked.tokens.shape == (2, 4, 32)


def test_the_fused_token_follows_the_prefix_and_sums_the_dropped_tokens():
    model = pruned("attention", fuse=True, stages=(1, 2), ratios=(0.75, 0.5))
    seen = []
    hooks = [block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
             for block in model.backbone.blocks]
    out = model.forward_pruned(tiny_images())
    [hook.remove() for hook in hooks]
    assert [tokens.shape[1] for tokens, _ in seen] == [17, 1 + 1 + 12, 1 + 1 + 8, 1 + 1 + 8]
    assert [k.shape[1] for k in out.kept] == [12, 8]
    # The first score is the attention in units of 1 / 16.
    dropped = (out.scores[0] / 16) * (1 - masks(out.kept)[0])              # [B, N]
    expected = (seen[0][1][:, 1:] * dropped.unsqueeze(-1)).sum(dim=1)      # [B, C]
    assert torch.allclose(seen[1][0][:, 1], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="leave out --fuse"):
        model.forward_masked(tiny_images())


def test_models_that_a_selector_does_not_support_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="the grid of 3 x 4 is not even"):
        with_large_weights(tiny_config(image_size=(24, 32)), PruneConfig((2,), (0.25,), selector="structural"))
    with pytest.raises(ConfigError, match="choose a timm ViT with the standard block"):
        DynamicViT(resolve("timm:vit_pwee_patch16_reg1_gap_256"), PruneConfig((2,), (0.5,), selector="attention"))
