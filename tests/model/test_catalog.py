from dyvit_deploy.model import zoo
from dyvit_deploy.model.catalog import RATIOS, list_models


def test_the_zoo_is_listed_with_falling_cost():
    catalog = list_models()
    assert [entry.name for entry in catalog.entries] == list(zoo.MODELS)
    for entry in catalog.entries:
        gmacs = [entry.gmacs[str(ratio)] for ratio in RATIOS]
        assert gmacs == sorted(gmacs, reverse=True) and gmacs[0] > gmacs[-1]


def test_timm_models_are_counted_on_demand():
    [entry] = list_models(["timm:vit_tiny_patch16_224"]).entries
    assert entry.patches == 196 and entry.stages == (3, 6, 9)
