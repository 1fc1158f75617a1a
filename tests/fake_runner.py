"""A runner without a model, for tests of parity, bench, evaluation and predict."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.runners.base import Outputs, Runner, TensorSpec


class FakeRunner(Runner):
    """Answers every batch with what the function `answer` returns for it."""

    def __init__(self, answer: Callable[[NDArray[Any]], Outputs], input: TensorSpec, *,
                 facts: ArtifactFacts | None = None, name: str = "fake") -> None:
        self.name, self.backend, self.device, self.facts, self.input = name, "fake", "cpu", facts, input
        self._answer = answer

    def _infer(self, feed: NDArray[Any]) -> Outputs:
        return self._answer(feed)
