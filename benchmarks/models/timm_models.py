"""Networks of timm, with few channels and blocks."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.ghostnet import GhostNet
from timm.models.nfnet import NfCfg, NormFreeNet

from benchmarks.models.entry import Entry, images


def made(name: str, **options: Any) -> Any:
    """A network of timm's registry without weights of others."""
    return timm.create_model(name, pretrained=False, num_classes=3, **options)


def vit() -> Any:
    """A vision transformer with two blocks, with fused attention and dropout in it."""
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "init_values": 1e-2}
    return made("vit_tiny_patch16_224", **options, drop_rate=0.1, attn_drop_rate=0.1, proj_drop_rate=0.1)


def swin() -> Any:
    """Swin with two stages, shifted windows, and dropout in fused attention."""
    options = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2)}
    return made("swin_tiny_patch4_window7_224", **options, num_heads=(2, 4), attn_drop_rate=0.1, proj_drop_rate=0.1)


def mobilevit() -> Any:
    """MobileViT with one block of convolutions and one of attention."""
    sizes = {"transformer_dim": 16, "transformer_depth": 1, "patch_size": 2}
    blocks = (
        ByoBlockCfg("bottle", d=1, c=16, s=2, gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}),
        ByoBlockCfg("mobilevit", d=1, c=16, s=1, block_kwargs=sizes),
    )
    config = ByoModelCfg(blocks=blocks, stem_chs=8, stem_type="3x3", stem_pool="", act_layer="silu", num_features=16)
    return ByobNet(config, num_classes=3, img_size=32, drop_rate=0.1)


def ghostnet() -> Any:
    """GhostNet with two blocks, one of them with squeeze and excitation."""
    return GhostNet([[[3, 16, 16, 0, 1]], [[3, 48, 24, 0.25, 2]]], num_classes=3, drop_rate=0.1)


def nfnet() -> Any:
    """A network without normalisation, with scaled and standardised kernels."""
    config = NfCfg(depths=(1, 1), channels=(16, 16), stem_type="3x3", stem_chs=8, group_size=8, gamma_in_act=True)
    return NormFreeNet(config, num_classes=3, drop_rate=0.1)


TIMM = [
    Entry("ViT", "timm", vit, images),
    Entry("Swin", "timm", swin, images),
    Entry("MobileViT", "timm", mobilevit, images),
    Entry("GhostNet", "timm", ghostnet, images, attributes=("drop_rate",)),
    Entry("NFNet", "timm", nfnet, images),
]
