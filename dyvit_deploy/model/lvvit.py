"""LV-ViT as a timm VisionTransformer: its stem, halved residual branches and auxiliary head.

Jiang et al., "All Tokens Matter: Token Labeling for Training Better Vision Transformers", 2021.
Tensor names are those of the published checkpoints.
"""
from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..config import ModelConfig


class GridStem(nn.Module):
    """Base of patch embeddings for timm's VisionTransformer, which reads the grid from them."""

    def __init__(self, img_size: tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]


class LVStem(GridStem):
    """Three convolutions at half resolution, then patches of half the patch size (8x8 for 16x16)."""

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int,
                 **_timm_options: Any) -> None:
        super().__init__(img_size, patch_size)
        convolution = partial(nn.Conv2d, out_channels=64, bias=False)
        self.conv1 = convolution(in_chans, kernel_size=7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = convolution(64, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = convolution(64, kernel_size=3, padding=1)
        self.bn3 = nn.BatchNorm2d(64)
        self.proj = nn.Conv2d(64, embed_dim, kernel_size=patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, height, width] -> [B, N, C]."""
        x = self.bn1(self.conv1(images)).relu()                            # [B, 64, height/2, width/2]
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)           # [B, N, C]
        return tokens


class Halve(nn.Module):
    """Divides a residual branch by 2, as LV-ViT does with every one (`skip_lam` in its code)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class LVViT(VisionTransformer):
    """The LV-ViT backbone; only its stem, residual scale and head differ from timm's ViT."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            img_size=config.image_size, patch_size=config.patch_size, num_classes=config.classes,
            embed_dim=config.width, depth=config.depth, num_heads=config.heads, mlp_ratio=config.mlp_ratio,
            qkv_bias=False, norm_layer=partial(nn.LayerNorm, eps=1e-5), embed_layer=LVStem,
        )
        for block in self.blocks:
            block.ls1, block.ls2 = Halve(), Halve()
        self.aux_head = nn.Linear(config.width, config.classes)

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits of the class token, plus half the maximum of the patch tokens' auxiliary logits.

        Args:
            x: float [B, 1 + K, C], normalised tokens, class token first.

        Returns:
            float [B, classes].
        """
        return self.join_heads(x[:, 0], self.aux_head(x[:, 1:]))

    def join_heads(self, class_token: Tensor, auxiliary: Tensor) -> Tensor:
        """[B, C] and [B, K, classes] -> [B, classes]."""
        logits: Tensor = self.head(class_token) + 0.5 * auxiliary.amax(dim=1)
        return logits
