import dataclasses

from helpers import tiny_model

from dyvit_deploy.config import PruneConfig
from dyvit_deploy.report.layers import layer_map, mac_chart


def test_layers_and_predictors_are_in_the_column_of_their_block():
    _, facts = tiny_model()
    products = {"patch_embed.proj/Conv": "int8", "blocks.0.attn.qkv/MatMul": "int8", "blocks.0.attn/MatMul": "float16",
                "blocks.0.attn/MatMul_1": "float32", "score_predictor.2.score/MatMul": "float32", "head/Gemm": "int8",
                "blocks.3.attn.q/MatMul": "int8", "strange": "int4"}
    found = layer_map(products, facts)
    assert found.columns == ("stem", "0", "3", "head", "other")
    rows = {name: [cell and cell.sign for cell in cells] for name, cells in found.rows}
    assert rows["q, k, v"] == ["8", "8", "8", "8", "?"]
    assert rows["scores, context"] == [None, "16+32", None, None, None] and rows["predictor"][2] == "32"
    assert found.kinds == ("float32", "int8", "mixed", "unknown")
    assert layer_map({}, facts) is None


def test_blocks_cost_less_after_each_stage_and_the_predictor_is_counted_before():
    _, facts = tiny_model()
    chart = mac_chart(facts.model, facts.prune, ())
    assert [bool(bar.stage) for bar in chart.bars] == [False, True, True, True]
    assert chart.bars[0].pruned == chart.bars[0].dense and all(b.pruned < b.dense for b in chart.bars[1:])
    assert all(bool(bar.predictor) == bool(bar.stage) for bar in chart.bars) and chart.pruned < chart.dense
    pooled = dataclasses.replace(facts, prune=PruneConfig((2,), (0.25,), selector="structural"))
    assert mac_chart(pooled.model, pooled.prune, ()).bars[2].stage == "stage 0: 4 of 16 patches kept"
