import pytest
from helpers import tiny_checkpoint, tiny_config

from dyvit_deploy.config import KeepRequest, LoadConfig, ModelConfig, PruneConfig, default_stages
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.model import zoo
from dyvit_deploy.model.checkpoint import load_model


@pytest.mark.parametrize("ratio, counts", [(0.9, (176, 158, 142)), (0.8, (156, 125, 100)), (0.7, (137, 96, 67)),
                                           (0.6, (117, 70, 42)), (0.5, (98, 49, 24)), (1.0, (196, 196, 196))])
def test_keep_counts_are_the_published_ones(ratio, counts):
    assert PruneConfig.from_ratio(ratio, (3, 6, 9)).counts(196) == counts


def test_keep_counts_for_576_patches_are_the_published_ones():
    assert PruneConfig.from_ratio(0.7, (3, 6, 9)).counts(576) == (403, 282, 197)


@pytest.mark.parametrize("config", [*zoo.MODELS.values(), tiny_config()], ids=lambda c: c.name)
def test_model_config_survives_a_json_round_trip(config):
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_prune_config_survives_a_json_round_trip():
    for prune in (PruneConfig.from_ratio(0.7, (1, 2)), PruneConfig((1, 2), keep_counts=(5, 3)),
                  PruneConfig.from_ratio(0.7, (1, 2), "attention", fuse=True)):
        assert PruneConfig.from_dict(prune.to_dict()) == prune
    before_selectors = {"stages": [1], "keep_ratios": [0.5], "keep_counts": None}
    assert PruneConfig.from_dict(before_selectors).selector == "prediction"


@pytest.mark.parametrize("depth, stages", [(12, (3, 6, 9)), (16, (4, 8, 12)), (20, (5, 10, 15)), (6, (1, 3, 4)),
                                           (2, (1,)), (1, ())])
def test_default_stages_are_the_published_ones(depth, stages):
    assert default_stages(depth) == stages


def test_each_selector_has_its_own_schedule_until_another_is_asked_for():
    assert KeepRequest(ratio=0.5, selector="attention").resolve(12, None).stages == (4, 7, 10)
    assert KeepRequest(ratio=0.5, selector="attention").resolve(4, None).stages == (1, 2, 3)
    published = PruneConfig.from_ratio(0.7, (3, 6, 9))
    assert KeepRequest(selector="structural").resolve(12, published) == PruneConfig((6,), (0.25,), None, "structural")
    assert KeepRequest(selector="static").resolve(12, published).schedule == published.schedule
    fused = PruneConfig.from_ratio(0.7, (4,), "attention", fuse=True)
    assert KeepRequest(ratio=0.5).resolve(12, fused) == PruneConfig.from_ratio(0.5, (4,), "attention", fuse=True)
    assert KeepRequest().resolve(12, fused) == fused and KeepRequest().resolve(12, None) is None


@pytest.mark.parametrize("make, words", [
    (lambda: PruneConfig.from_ratio(0.0, (1,)), "above 0"),
    (lambda: PruneConfig.from_ratio(1.2, (1,)), "at most 1"),
    (lambda: PruneConfig.from_ratio(float("nan"), (1,)), "above 0"),
    (lambda: PruneConfig((1, 2), keep_ratios=(0.5, 0.6)), "must not increase"),
    (lambda: PruneConfig((1, 2), keep_ratios=(0.5,)), "one per stage"),
    (lambda: PruneConfig((1,), keep_counts=(0,)), "at least 1"),
    (lambda: PruneConfig((1,)), "either"),
    (lambda: PruneConfig((1,), (0.5,), (3,)), "either"),
    (lambda: PruneConfig.from_ratio(0.05, (1, 2, 3)).counts(16), "leave 0 tokens"),
    (lambda: PruneConfig((1,), keep_counts=(17,)).counts(16), "exceed the 16 patches"),
    (lambda: PruneConfig((1,), (0.5,), selector="atention"), "Did you mean 'attention'"),
    (lambda: KeepRequest(selector="atention"), "Did you mean 'attention'"),
    (lambda: PruneConfig((1,), (0.5,), fuse=True), "add --selector attention"),
    (lambda: PruneConfig((0, 1), (0.5, 0.2), selector="attention"), "from 1 on"),
    (lambda: PruneConfig((2,), (0.5,), selector="structural"), "a quarter"),
    (lambda: PruneConfig((2,), None, (5,), "structural").counts(16), "leaves 4 patches"),
    (lambda: KeepRequest(selector="attention").resolve(4, None), "add --keep-ratio"),
    (lambda: KeepRequest(ratio=0.5, counts=(3,)).resolve(4, None), "only one of"),
    (lambda: KeepRequest(ratio=0.5, stages=(2, 1)).resolve(4, None), "ascend"),
    (lambda: KeepRequest(ratio=0.5, stages=(1, 9)).resolve(4, None), "0 to 3"),
    (lambda: tiny_config(image_size=(30, 32)), "multiple of the patch size 8"),
    (lambda: tiny_config(builder="vitt"), "Did you mean 'vit'"),
    (lambda: ExportConfig(input="uint9"), "Did you mean 'uint8'"),
    (lambda: LoadConfig(weights="emma"), "Did you mean 'ema'"),
    (lambda: ModelConfig.from_dict(tiny_config().to_dict() | {"widht": 3}), "Did you mean 'width'"),
    (lambda: ModelConfig.from_dict({"name": "x"}), "cannot be read"),
    (lambda: zoo.get("diet-s"), "Did you mean 'deit-s'"),
])
def test_impossible_values_are_refused_with_the_reason(make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert caught.value.exit_code == 2


def test_a_request_overrides_what_the_checkpoint_records():
    recorded = PruneConfig.from_ratio(0.7, (3, 6, 9))
    assert KeepRequest().resolve(12, recorded) == recorded
    assert KeepRequest(ratio=0.5).resolve(12, recorded) == PruneConfig.from_ratio(0.5, (3, 6, 9))
    assert KeepRequest(counts=(9, 8), stages=(2, 4)).resolve(12, recorded) == PruneConfig((2, 4), keep_counts=(9, 8))
    assert KeepRequest().resolve(12, None) is None


def test_another_image_size_keeps_the_published_crop():
    deit = zoo.get("deit-s")
    assert deit.with_image_size((192, 192)).preprocess.short_side == 219      # int(256 / 224 * 192)
    assert deit.with_image_size((384, 384)).preprocess.short_side is None     # resized straight to 384
    assert deit.with_image_size((384, 384)) .patches == 576


@pytest.mark.parametrize("patches, prefix, ratio, counts", [
    (196, 1, 0.7, (135, 95, 71)), (196, 2, 0.7, (134, 94, 70)), (64, 1, 0.5, (31, 15, 7)), (196, 1, 1.0, (196,) * 3),
    (16, 1, 0.1, (7, 7, 7)),
])
def test_aligned_counts_make_whole_multiples_with_the_prefix(patches, prefix, ratio, counts):
    prune = (PruneConfig((1, 2, 3), None, (7, 1, 1)) if ratio == 0.1
             else PruneConfig.from_ratio(ratio, (1, 2, 3)))
    found = prune.aligned(patches, prefix, 8).counts(patches)
    assert found == counts
    assert ratio == 1.0 or all((k + prefix) % 8 == 0 for k in found)


def test_a_fused_token_counts_when_tokens_are_aligned(tmp_path):
    keep = KeepRequest(ratio=0.5, selector="attention", fuse=True, align=4)
    model, _ = load_model(tiny_checkpoint(tmp_path, None), LoadConfig(keep=keep))
    assert all((1 + 1 + count) % 4 == 0 for count in model.keep_counts) and model.prefix == 1


def test_what_cannot_be_aligned_is_refused():
    with pytest.raises(ConfigError, match="leave out --align"):
        PruneConfig((2,), (0.25,), selector="structural").aligned(16, 1, 8)
    with pytest.raises(ConfigError, match="No multiple of 32 fits"):
        PruneConfig((2,), (0.5,)).aligned(16, 1, 32)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        KeepRequest(align=0)
