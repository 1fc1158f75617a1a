import pytest

from dyvit_deploy.config import PruneConfig, default_stages
from dyvit_deploy.model import zoo
from dyvit_deploy.model.forms import FORMS
from dyvit_deploy.model.macs import count_costs

# The "exact GMACs of the graph" column of the published-numbers table, per keep ratio.
EXACT = {
    "deit-256": {0.7: 1.375},
    "deit-s": {1.0: 4.599, 0.9: 4.041, 0.8: 3.463, 0.7: 2.981},
    "deit-b": {1.0: 17.564, 0.7: 11.476},
    "lvvit-s": {1.0: 6.551, 0.7: 4.650, 0.5: 3.790},
    "lvvit-m": {1.0: 12.678, 0.7: 8.593},
    "deit-s-384": {1.0: 15.490, 0.7: 9.652, 0.5: 7.187},
}
PARAMETERS = {"deit-256": 10_304_942, "deit-s": 22_774_414, "deit-b": 89_452_846, "lvvit-s": 26_875_574,
              "lvvit-m": 57_115_030}
BACKBONES = {"deit-256": 9_982_184, "deit-s": 22_050_664, "deit-b": 86_567_656, "lvvit-s": 26_151_824,
             "lvvit-m": 55_830_544}


@pytest.mark.parametrize("name", EXACT)
def test_gmacs_and_parameters_are_the_published_ones(name):
    config = zoo.get(name)
    prunes = [PruneConfig.from_ratio(ratio, default_stages(config.depth)) for ratio in EXACT[name]]
    *pruned, dense = count_costs(config, [*prunes, None])
    for cost, exact in zip(pruned, EXACT[name].values()):
        assert cost.gmacs == pytest.approx(exact, rel=0.005)
    if name in PARAMETERS:
        assert pruned[0].parameters == PARAMETERS[name] and dense.parameters == BACKBONES[name]


@pytest.mark.parametrize("forms", [(), tuple(FORMS)])
def test_blocks_and_selectors_make_up_most_of_the_gmacs(forms):
    config = zoo.get("digits-s")
    prune = PruneConfig.from_ratio(0.7, (1, 3, 4))
    [dense], [pruned] = count_costs(config, [None]), count_costs(config, [prune], forms)
    assert len(dense.blocks) == 6 and len(set(dense.blocks)) == 1 and dense.selectors == ()
    assert pruned.blocks[0] == dense.blocks[0] > pruned.blocks[1] == pruned.blocks[2] > pruned.blocks[3]
    assert len(pruned.selectors) == 3 and sorted(pruned.selectors, reverse=True) == list(pruned.selectors)
    # The rest is stem and head.
    rest = [cost.gmacs - sum(cost.blocks) - sum(cost.selectors) for cost in (dense, pruned)]
    assert 0 < rest[1] <= rest[0] < 0.1 * dense.gmacs
