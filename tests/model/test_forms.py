"""The inference forms give the same results as the model."""
import pytest
import torch
from helpers import tiny_images, tiny_model

from dyvit_deploy.config import PruneConfig, default_stages
from dyvit_deploy.errors import ArtifactError
from dyvit_deploy.export.config import FORM_NAMES, ExportConfig
from dyvit_deploy.model import zoo
from dyvit_deploy.model.build import resolve
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.forms import FORMS, ReadAttention, inference_form
from dyvit_deploy.model.macs import count_costs

MODELS = {
    "vit": (dict(), set(FORM_NAMES) - {"fold-batch-norm"}),
    "conv stem": (dict(stem="conv"), set(FORM_NAMES)),
    "lvvit": (dict(builder="lvvit"), set(FORM_NAMES) - {"read-block"}),
}


def with_trained_norms(model):
    """Gives the norms random values: their initial scale of 1 and shift of 0 would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            module.weight.data.uniform_(0.5, 2, generator=generator)
            module.bias.data.uniform_(-1, 1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("changes, applies", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", [*FORM_NAMES, "all"])
def test_results_are_equal_up_to_rounding_and_the_model_stays_unchanged(changes, applies, name):
    model = with_trained_norms(tiny_model(0.5, **changes)[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form, applied = inference_form(model, [] if name == "all" else [other for other in FORM_NAMES if other != name])
    assert set(applied) == (applies if name == "all" else applies & {name})
    images = tiny_images(3)
    with torch.inference_mode():
        expected, found = model.forward_pruned(images), form.forward_pruned(images)
    assert torch.allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.kept, expected.kept))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224",
                                  "vit_small_patch14_reg4_dinov2"])
def test_prefix_tokens_and_other_poolings_of_timm_are_respected(name):
    torch.manual_seed(0)
    config = resolve(f"timm:{name}")
    model = DynamicViT(config, PruneConfig.from_ratio(0.5, (1,)))
    # Two blocks suffice.
    model.backbone.blocks = model.backbone.blocks[:2]
    model = with_trained_norms(model)
    form, applied = inference_form(model)
    assert ("read-block" in applied) == (model.backbone.global_pool == "token")
    images = tiny_images(2, config.image_size[0])
    with torch.inference_mode():
        assert torch.allclose(form(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("selector", ["attention", "random", "static", "structural"])
def test_all_selectors_keep_the_same_tokens_in_the_inference_forms(selector):
    config = tiny_model()[0].config
    ratios = (0.25,) if selector == "structural" else (0.5, 0.25)
    torch.manual_seed(0)
    stages = (2,) if selector == "structural" else (2, 3)
    model = with_trained_norms(DynamicViT(config, PruneConfig(stages, ratios, selector=selector)))
    form, applied = inference_form(model)
    assert "split-predictor" not in applied and ("one-gather" in applied) == (selector != "structural")
    images = tiny_images(2)
    with torch.inference_mode():
        expected, found = model.forward_pruned(images), form.forward_pruned(images)
    assert torch.allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.kept, expected.kept))


def test_a_dense_model_gets_the_forms_that_do_not_depend_on_pruning():
    model = with_trained_norms(tiny_model(None)[0])
    form, applied = inference_form(model)
    assert set(applied) == {"read-block", "fold-scale"}
    images = tiny_images(2)
    with torch.inference_mode():
        assert torch.allclose(form(images), model(images), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_with_an_activation_is_not_folded():
    from timm.layers import ConvNormAct
    model = with_trained_norms(tiny_model(0.5, stem="conv")[0])
    stem = ConvNormAct(3, 3, 3, act_layer=torch.nn.GELU)
    model.backbone.patch_embed = torch.nn.Sequential(with_trained_norms(stem), model.backbone.patch_embed)
    form, _ = inference_form(model)
    images = tiny_images(2)
    with torch.inference_mode():
        assert torch.allclose(form(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [dict(qk_norm=True), dict(scale_norm=True), dict(gate=True)])
def test_read_attention_equals_timms_attention_with_norms_and_gates(changes):
    from timm.layers import Attention
    torch.manual_seed(0)
    try:
        attn = Attention(32, num_heads=4, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **changes).eval()
    except TypeError:
        pytest.skip(f"this timm has no {next(iter(changes))}")
    attn.fused_attn, tokens = False, torch.randn(2, 7, 32)
    with torch.inference_mode():
        assert torch.allclose(ReadAttention(attn, 3)(tokens), attn(tokens)[:, :3], atol=1e-5)


def test_a_rewrite_of_another_version_is_refused():
    with pytest.raises(ArtifactError, match="folded-by-the-future"):
        count_costs(zoo.get("digits-s"), [None], ["folded-by-the-future"])


def test_form_names_of_the_export_config_are_those_of_the_forms():
    assert tuple(FORMS) == FORM_NAMES and ExportConfig(without=("all",)).left_out == FORM_NAMES


def test_the_forms_raise_the_theoretical_speedup_of_deit_s():
    config = zoo.get("deit-s")
    prune = PruneConfig.from_ratio(0.7, default_stages(config.depth))
    [dense, plain], [fast] = count_costs(config, [None, prune]), count_costs(config, [prune], FORM_NAMES)
    assert dense.gmacs / plain.gmacs == pytest.approx(1.543, abs=1e-3)
    assert dense.gmacs / fast.gmacs > 1.6
