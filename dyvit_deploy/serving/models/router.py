"""Triton Python model: forwards a request to the model with the keep ratio in its parameter `keep_ratio`.

Without the parameter, the request goes to the first model, the one with the highest keep ratio.
"""
from __future__ import annotations

import asyncio
import json
from typing import Any

import triton_python_backend_utils as triton


class TritonPythonModel:
    """Its inputs and outputs are those of its models: `images`, or the inputs of their ensembles."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        models = json.loads(parameters["models"]["string_value"])
        self._models: dict[float, str] = {float(ratio): name for ratio, name in models.items()}
        self._suffix: str = parameters["ensemble_suffix"]["string_value"]

    async def execute(self, requests: list[Any]) -> list[Any]:
        return await asyncio.gather(*(self._forward(request) for request in requests))

    async def _forward(self, request: Any) -> Any:
        ratio = json.loads(request.parameters() or "{}").get("keep_ratio")
        name = self._choose(ratio)
        if name is None:
            known = ", ".join(f"{own:g}" for own in self._models)
            text = f"there is no model with keep_ratio {ratio!r}; choose one of: {known}"
            return triton.InferenceResponse(error=triton.TritonError(text, triton.TritonError.INVALID_ARG))
        tensors = request.inputs()
        if all(tensor.name() != "images" for tensor in tensors):
            name += self._suffix
        response = await triton.InferenceRequest(
            model_name=name, requested_output_names=list(request.requested_output_names()), inputs=tensors).async_exec()
        if response.has_error():
            return triton.InferenceResponse(error=response.error())
        return triton.InferenceResponse(response.output_tensors())

    def _choose(self, ratio: Any) -> str | None:
        """The name of the model for a keep ratio, a number or its text; None if there is none."""
        if ratio is None:
            return next(iter(self._models.values()))
        try:
            return self._models.get(float(ratio))
        except (TypeError, ValueError):
            return None
