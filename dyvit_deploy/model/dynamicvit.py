"""DynamicViT: a ViT backbone, and a predictor per stage that decides which patches go on."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig, PruneConfig, check_stages
from ..errors import ConfigError
from . import vit
from .predictor import ScorePredictor
from .pruning import ATTENTION_EPS, TokenSelector, sample_keep, straight_through


class PrunedOutput(NamedTuple):
    """What inference knows.

    logits: float [B, classes].
    kept: per stage int64 [B, K_s], surviving patches in the original grid, best first.
    scores: per stage float [B, N] over the original grid; -inf where a patch was gone before the
        stage, otherwise zeros when the stage drops nothing.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]


class MaskedOutput(NamedTuple):
    """What training needs.

    logits: float [B, classes].
    tokens: float [B, N, C], patch tokens after the final norm, dropped ones included.
    decisions: per stage float [B, N], 1 for the patches kept so far.
    """

    logits: Tensor
    tokens: Tensor
    decisions: tuple[Tensor, ...]


class DynamicViT(nn.Module):
    """A prunable ViT. `prune` None makes the dense backbone, without predictors.

    `forward` and `forward_pruned` are the inference path, which removes tokens; `forward_masked`
    is the training path, which keeps all of them and hides the dropped ones.
    """

    def __init__(self, config: ModelConfig, prune: PruneConfig | None) -> None:
        super().__init__()
        self.config, self.prune = config, prune
        self.backbone = vit.build_backbone(config)
        self.prefix: int = self.backbone.num_prefix_tokens
        stages = prune.stages if prune else ()
        check_stages(stages, config.depth)
        self.keep_counts = prune.counts(config.patches) if prune else ()
        self.stage_of = {block: stage for stage, block in enumerate(stages)}
        self.score_predictor = nn.ModuleList(ScorePredictor(config.width) for _ in stages)
        self.selector = nn.ModuleList(TokenSelector() for _ in stages)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, height, width], normalised -> logits [B, classes]."""
        return self.forward_pruned(images).logits

    def forward_pruned(self, images: Tensor) -> PrunedOutput:
        """Inference with tokens removed.

        A stage that keeps everything is skipped, predictor and all: keep ratio 1 is the dense
        backbone bit for bit.

        Args:
            images: float [B, 3, height, width], normalised.
        """
        tokens = vit.embed(self.backbone, images)                          # [B, P + N, C]
        batch, patches = tokens.shape[0], tokens.shape[1] - self.prefix
        position = torch.arange(patches, device=tokens.device).expand(batch, -1)  # [B, N]
        kept, scores = [], []
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                before, score = position, tokens.new_zeros(position.shape)     # [B, N_s]
                if self.keep_counts[stage] < position.shape[1]:
                    left = tokens[:, self.prefix:]
                    score = self.score_predictor[stage].scores(left)
                    left, chosen = self.selector[stage](left, score, self.keep_counts[stage])
                    position = position.gather(1, chosen)                  # [B, K]
                    tokens = torch.cat([tokens[:, :self.prefix], left], dim=1)  # [B, P + K, C]
                kept.append(position)
                scores.append(tokens.new_full((batch, patches), -torch.inf).scatter(1, before, score))
            tokens = block(tokens)
        logits = self.backbone.forward_head(self.backbone.norm(tokens))
        return PrunedOutput(logits, tuple(kept), tuple(scores))

    def forward_masked(self, images: Tensor, samples: Sequence[Tensor] | None = None,
                       eps: float = ATTENTION_EPS) -> MaskedOutput:
        """Training forward: every block sees all tokens, dropped ones are masked.

        Args:
            images: float [B, 3, height, width], normalised.
            samples: per stage float [B, N], 1 where the stage keeps; None draws them. Given
                samples pass their gradient to the keep probabilities.
            eps: smoothing of the masked softmax; 0 makes masked equal to removed.
        """
        if not self.score_predictor:
            raise ConfigError("A dense model has no predictors to train; give it a keep ratio below 1.")
        tokens = vit.embed(self.backbone, images)                          # [B, P + N, C]
        decision = tokens.new_ones(tokens.shape[0], tokens.shape[1] - self.prefix)  # [B, N]
        always = tokens.new_ones(tokens.shape[0], self.prefix)             # prefix tokens are never dropped
        decisions = []
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                log_probs = self.score_predictor[stage](tokens[:, self.prefix:], decision)  # [B, N, 2]
                if samples is None:
                    sample = sample_keep(log_probs)                        # [B, N]
                else:
                    sample = straight_through(samples[stage], log_probs.exp()[..., 0])
                decision = decision * sample
                decisions.append(decision)
            tokens = vit.masked_block(block, tokens, torch.cat([always, decision], dim=1), eps)
        tokens = self.backbone.norm(tokens)
        logits = vit.masked_head(self.backbone, tokens, decision)
        return MaskedOutput(logits, tokens[:, self.prefix:], tuple(decisions))
