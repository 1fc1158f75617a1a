"""Triton Python model: hands a request to the model with the keep ratio that its parameter `keep_ratio` names.

Without the parameter the first model answers, the one that keeps most.
"""
from __future__ import annotations

import asyncio
import json
from typing import Any

import triton_python_backend_utils as triton


class TritonPythonModel:
    """Inputs and outputs are those of the models behind it: `images`, or what their ensembles take."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        models = json.loads(parameters["models"]["string_value"])
        self._models: dict[float, str] = {float(ratio): name for ratio, name in models.items()}
        self._suffix: str = parameters["ensemble_suffix"]["string_value"]

    async def execute(self, requests: list[Any]) -> list[Any]:
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> Any:
        wanted = json.loads(request.parameters() or "{}").get("keep_ratio")
        name = self._choose(wanted)
        if name is None:
            known = ", ".join(f"{ratio:g}" for ratio in self._models)
            text = f"there is no model with keep_ratio {wanted!r}; choose one of: {known}"
            return triton.InferenceResponse(error=triton.TritonError(text, triton.TritonError.INVALID_ARG))
        tensors = request.inputs()
        if all(tensor.name() != "images" for tensor in tensors):
            name += self._suffix
        answer = await triton.InferenceRequest(
            model_name=name, requested_output_names=list(request.requested_output_names()), inputs=tensors).async_exec()
        if answer.has_error():
            return triton.InferenceResponse(error=answer.error())
        return triton.InferenceResponse(answer.output_tensors())

    def _choose(self, wanted: Any) -> str | None:
        """The model for a number or its text; None where there is none."""
        if wanted is None:
            return next(iter(self._models.values()))
        try:
            return self._models.get(float(wanted))
        except (TypeError, ValueError):
            return None
