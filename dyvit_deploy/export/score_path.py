"""Checks that the nodes which compute and rank keep scores have the names by which they stay float32.

These names come from the module paths that torch's exporter records. If it recorded something else, a lower precision
would round the scores, in silence: they would tie, and every backend breaks ties differently.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from ..graph.names import on_score_path
from ..graph.read import PRODUCTS

if TYPE_CHECKING:
    from ..model.dynamicvit import DynamicViT

# Selectors whose scores are those of a matrix product. The scores of the others are constants.
BY_PRODUCT = ("prediction", "attention")


def check_score_path(graph: Any, model: DynamicViT) -> None:
    """Checks the names in an onnx-ir `graph` of `model`, which is in the form that was traced.

    Raises:
        ExportError: a stage that drops patches has no TopK, or more than one, with the name of one; its scores do not
            come from exactly one product with the name of one; or a linear layer of a predictor has lost its name.
    """
    before = (model.config.patches, *model.keep_counts)
    stages = [] if model.prune is None or not model.prune.keeps_patches else [
        stage for stage, (more, less) in enumerate(zip(before, model.keep_counts)) if less < more]
    tops = [node for node in graph if node.op_type == "TopK"]
    if len(tops) != len(stages) or not all(on_score_path(node.name) for node in tops):
        raise _renamed(f"{len(stages)} stages drop patches, and it ranks scores in "
                       f"{', '.join(node.name for node in tops) or 'no node'}")
    by_product = model.prune is not None and model.prune.selector in BY_PRODUCT
    for node in tops:
        sources = _products_above(node.inputs[0])
        if len(sources) != by_product or not all(on_score_path(name) for name in sources):
            raise _renamed(f"{node.name} ranks what {' and '.join(sorted(sources)) or 'no product'} computes")
    named = {node.name.split("/")[0] for node in graph if node.op_type in PRODUCTS}
    for stage in stages if by_product else ():
        for name in _layers(model.score_predictor[stage]):
            if f"score_predictor.{stage}.{name}" not in named:
                raise _renamed(f"no product has the name of layer {name} of predictor {stage}")


def _layers(predictor: Any) -> list[str]:
    """The names of its linear layers. `KeepScore` computes the last one, with both of its classes at once."""
    found = [name for name, module in predictor.named_modules() if type(module).__name__ == "Linear"]
    return found[:-1]


def _products_above(value: Any) -> set[str]:
    """The names of the nearest products that `value` is computed from."""
    found, seen, waiting = set(), set(), [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            found.add(node.name)
        else:
            waiting += [source for source in node.inputs if source is not None]
    return found


def _renamed(what: str) -> ExportError:
    return ExportError(f"The nodes of the graph are not named by the modules of the model ({what}), so a lower "
                       "precision would round keep scores; try another torch version, or report this to us.")
