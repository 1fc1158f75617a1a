"""DynamicViT: a ViT backbone, and one selector per stage, which decides which patches are kept."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig, PruneConfig, check_stages
from ..errors import ConfigError
from . import vit
from .build import build_backbone
from .pruning import (
    ATTENTION_EPS,
    TokenFuser,
    TokenSelector,
    sample_keep,
    sample_top_k,
    straight_through,
    top_k_mask,
)
from .selectors import BY_POSITION, EXACT, make_selectors
from .vit import Attended


class PrunedOutput(NamedTuple):
    """The result of the inference path.

    logits: float [B, classes].
    kept: per stage int64 [B, K_s], indices of the kept patches in the original grid, best first.
    scores: per stage float [B, N] over the original grid; -inf for a patch that an earlier stage
        dropped. If the stage drops nothing, all other scores are zero.

    After structural pooling `kept` and `scores` are empty, because no patch is kept.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]


class MaskedOutput(NamedTuple):
    """The result of the training path.

    logits: float [B, classes].
    tokens: float [B, N, C], patch tokens after the final norm, including dropped ones.
    decisions: per stage float [B, N], 1 for the patches kept so far.

    After structural pooling, `tokens` are the N/4 pooled ones and `decisions` is empty.
    """

    logits: Tensor
    tokens: Tensor
    decisions: tuple[Tensor, ...]


class DynamicViT(nn.Module):
    """A ViT that drops tokens; with `prune` None the dense backbone, without selectors.

    `forward` and `forward_pruned` are the inference path, which removes tokens. `forward_masked`
    is the training path, which keeps all tokens and masks the dropped ones.
    """

    def __init__(self, config: ModelConfig, prune: PruneConfig | None) -> None:
        super().__init__()
        self.config, self.prune = config, prune
        self.backbone = build_backbone(config)
        # A file may name a model of timm and claim other sizes than that has.
        if (sizes := (len(self.backbone.blocks), self.backbone.embed_dim)) != (config.depth, config.width):
            raise ConfigError(f"The model {config.name} has {sizes[0]} blocks of width {sizes[1]}, not "
                              f"{config.depth} of width {config.width}.")
        self.prefix: int = self.backbone.num_prefix_tokens
        stages = prune.stages if prune else ()
        check_stages(stages, config.depth)
        self.keep_counts = prune.counts(config.patches) if prune else ()
        self.stage_of = {block: stage for stage, block in enumerate(stages)}
        # The attribute names the tensors, so it has the name used in published checkpoints.
        self.score_predictor = make_selectors(config, prune)
        self.selector = nn.ModuleList(TokenSelector() for _ in stages)
        self.fuser = nn.ModuleList(TokenFuser() for _ in stages) if prune and prune.fuse else None
        self._pools = prune is not None and prune.selector == "structural"
        self._attends = prune is not None and prune.selector == "attention"
        self._needs_position = prune is not None and prune.selector in BY_POSITION
        for block in stages if self._attends else ():
            vit.check_attention(self.backbone.blocks[block - 1])

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, height, width], normalised -> logits [B, classes].

        Unlike `forward_pruned` it omits kept patches and scores, which take four kernel launches per stage on a GPU.
        """
        return self._forward(images, with_tokens=False).logits

    def forward_pruned(self, images: Tensor) -> PrunedOutput:
        """Inference with tokens removed.

        A stage that keeps all patches is skipped, including its selector, so keep ratio 1 gives
        the output of the dense backbone bit for bit.

        Args:
            images: float [B, 3, height, width], normalised.
        """
        return self._forward(images, with_tokens=True)

    def _forward(self, images: Tensor, with_tokens: bool) -> PrunedOutput:
        """See `forward_pruned`; kept patches and scores are computed only `with_tokens`."""
        if self._pools:
            return PrunedOutput(self.backbone.forward_head(self._pooled(images)), (), ())
        tokens = vit.embed(self.backbone, images)                          # [B, P + N, C]
        batch, patches = tokens.shape[0], tokens.shape[1] - self.prefix
        position = None
        if with_tokens or self._needs_position:
            position = torch.arange(patches, device=tokens.device).expand(batch, -1)  # [B, N]
        kept, scores, attended, count = [], [], None, patches
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                before, score = position, None
                if self.keep_counts[stage] < count:
                    tokens, chosen, score = self._drop(stage, tokens, count, position, attended)
                    count = self.keep_counts[stage]
                    position = None if position is None else position.gather(1, chosen)  # [B, K]
                if with_tokens:
                    assert before is not None and position is not None
                    kept.append(position)
                    score = tokens.new_zeros(before.shape) if score is None else score  # [B, N_s]
                    # Attention scores are float32 in every precision.
                    scores.append(score.new_full((batch, patches), -torch.inf).scatter(1, before, score))
            tokens, attended = self._observed(index, partial(block, tokens))
        logits = self.backbone.forward_head(self.backbone.norm(tokens))
        return PrunedOutput(logits, tuple(kept), tuple(scores))

    def _drop(self, stage: int, tokens: Tensor, count: int, position: Tensor | None, attended: Attended | None,
              ) -> tuple[Tensor, Tensor, Tensor]:
        """Removes tokens: [B, P + N, C] -> [B, P + K, C], the positions [B, K] of the kept tokens, the scores [B, N].

        `count` is N. With fusion, F fused tokens (0 or 1) follow the prefix: [B, P + F + N, C] -> [B, P + 1 + K, C].
        """
        left, keep = tokens[:, self.prefix:], self.keep_counts[stage]      # [B, F + N, C]
        score = self.score_predictor[stage].scores(left, position, attended)
        if self.fuser is None:
            return (*self.selector[stage](tokens, score, keep, self.prefix), score)
        fused = left.shape[1] - count
        patches, chosen = self.selector[stage](left[:, fused:], score[:, fused:], keep)
        rest = self.fuser[stage](left, score / self.config.patches, chosen + fused)  # [B, 1, C]
        return torch.cat([tokens[:, :self.prefix], rest, patches], dim=1), chosen, score[:, fused:]

    def _observed(self, index: int, run: Callable[[], Tensor], kept: Tensor | None = None,
                 ) -> tuple[Tensor, Attended | None]:
        """The result of `run`, which runs block `index`, and its attention if the next stage scores by attention."""
        if self._attends and index + 1 in self.stage_of:
            return vit.observe_attention(self.backbone, self.backbone.blocks[index], run, kept)
        return run(), None

    def _pooled(self, images: Tensor) -> Tensor:
        """Tokens after the final norm, float [B, P + N/4, C], of a model with structural pooling."""
        tokens = vit.embed(self.backbone, images)                          # [B, P + N, C]
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                pooled = self.score_predictor[stage](tokens[:, self.prefix:])
                tokens = torch.cat([tokens[:, :self.prefix], pooled], dim=1)  # [B, P + N/4, C]
            tokens = block(tokens)
        normed: Tensor = self.backbone.norm(tokens)
        return normed

    def forward_masked(self, images: Tensor, samples: Sequence[Tensor] | None = None, eps: float = ATTENTION_EPS, *,
                       noise: Sequence[Tensor] | None = None, keep: Tensor | None = None) -> MaskedOutput:
        """Training forward: every block processes all tokens, with dropped ones masked.

        Attention and random selectors keep exactly the scheduled number of patches. The others sample each patch
        independently unless `keep` is given. Structural pooling samples nothing and pools as at inference.

        Args:
            images: float [B, 3, height, width], normalised.
            samples: per stage float [B, N], 1 where the stage keeps; None draws them. Given
                samples pass their gradient to the keep probabilities.
            eps: smoothing of the masked softmax; with 0, masking equals removing.
            noise: per stage float [B, N, 2], see `gumbel_noise`; None draws it.
            keep: int64 [B, S], the exact number of patches that each image keeps after each stage.

        Raises:
            ConfigError: the model is dense or fuses tokens, or its blocks or pooling have no masked form.
        """
        if not self.score_predictor:
            raise ConfigError("A dense model has no predictors to train; give it a keep ratio below 1.")
        if self.fuser is not None:
            raise ConfigError("Fused tokens have no training form; leave out --fuse, and give it to dyvit export.")
        if self._pools:
            tokens = self._pooled(images)
            return MaskedOutput(self.backbone.forward_head(tokens), tokens[:, self.prefix:], ())
        tokens = vit.embed(self.backbone, images)                          # [B, P + N, C]
        decision = tokens.new_ones(tokens.shape[0], tokens.shape[1] - self.prefix)  # [B, N]
        # Prefix tokens are never dropped.
        always = tokens.new_ones(tokens.shape[0], self.prefix)             # [B, P]
        decisions, attended = [], None
        for index, block in enumerate(self.backbone.blocks):
            if (stage := self.stage_of.get(index)) is not None:
                sample = samples[stage] if samples is not None else None
                drawn = self._sample(stage, tokens[:, self.prefix:], decision, attended, sample,
                                     noise[stage] if noise is not None else None,
                                     keep[:, stage] if keep is not None else None)
                decision = decision * drawn
                decisions.append(decision)
            kept = torch.cat([always, decision], dim=1)                    # [B, P + N]
            tokens, attended = self._observed(index, partial(vit.masked_block, block, tokens, kept, eps), kept)
        tokens = self.backbone.norm(tokens)
        logits = vit.masked_head(self.backbone, tokens, decision)
        return MaskedOutput(logits, tokens[:, self.prefix:], tuple(decisions))

    def _sample(self, stage: int, patches: Tensor, decision: Tensor, attended: Attended | None,
                given: Tensor | None, noise: Tensor | None, keep: Tensor | None) -> Tensor:
        """float [B, N], 1 for the patches that the stage keeps; see `forward_masked`."""
        selector: Any = self.score_predictor[stage]
        assert self.prune is not None
        if keep is None and self.prune.selector in EXACT:
            keep = torch.full(decision.shape[:1], self.keep_counts[stage], device=decision.device)  # [B]
        if attended is not None:
            return given if given is not None else top_k_mask(selector.scores(patches, None, attended), decision, keep)
        log_probs = selector(patches, decision)                            # [B, N, 2]
        if given is not None:
            return straight_through(given, log_probs.exp()[..., 0])
        return sample_keep(log_probs, noise) if keep is None else sample_top_k(log_probs, decision, keep, noise)
