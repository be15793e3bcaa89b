"""A tiny EoMT with random weights that nevertheless segments photographs, as `seeded_model` does for a Mask2Former."""

import json
from pathlib import Path

import torch

from m2f_core.checkpoints.checkpoint import save_checkpoint
from m2f_core.config.eomt import EomtConfig, PlainTransformerConfig
from m2f_core.config.eomt_dinov3 import EomtDinov3Config
from m2f_core.config.labels import Category, LabelMap
from m2f_core.model.eomt.eomt import Eomt, build_model

# Found by looking at photographs.
CLASS_SPREAD = 5.0  # standard deviation of a query's class logits
MASK_SPREAD = 6.0  # of a mask's logits over the image
MASK_LOWERED = 3.0  # smaller masks overlap less
POSITION_SPREAD = 0.3  # of what a patch's place adds, beside what its pixels are
BRANCH_SCALE = 0.3  # of what a block adds: otherwise all queries become one

SIDE = 64
CATEGORIES = tuple(Category(i, i + 1, f"class {i + 1}", isthing=i < 5) for i in range(8))


def tiny_config(**fields: object) -> EomtConfig:
    tiny = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "num_blocks": 2, "num_queries": 20}
    tiny |= {"image_size": SIDE, "patch_size": 8, "num_register_tokens": 2, "mlp_ratio": 2}
    return EomtConfig(**{**tiny, "id2label": {c.class_id: c.name for c in CATEGORIES}, **fields})


def tiny_dinov3_config() -> EomtDinov3Config:
    """On a DINOv3, with gates."""
    shared = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "num_blocks": 2, "num_queries": 20}
    own = {"intermediate_size": 64, "use_gated_mlp": True}
    names = {c.class_id: c.name for c in CATEGORIES}
    return EomtDinov3Config(**shared, **own, image_size=SIDE, patch_size=8, num_register_tokens=2, id2label=names)


def seeded_eomt(config: PlainTransformerConfig, seed: int) -> Eomt:
    """The same weights for the same seed, in eval mode; every parameter is jittered."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1 and name != "queries" and not name.startswith("tokens.regis"):
            noise *= noise[0].numel() ** -0.5
        elif tensor.dim() == 1:
            noise = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if "scale" in name:
            noise += BRANCH_SCALE
        state[name] = noise
    if "tokens.positions" in state:
        state["tokens.positions"] = POSITION_SPREAD * torch.randn(state["tokens.positions"].shape, generator=generator)
    state["mask_head.2.weight"] *= MASK_SPREAD * config.hidden_size**-0.5 * 3
    # Channel 0 of the map is nearly constant and lowers every mask.
    last = f"upscale.{config.num_upscale_blocks - 1}.norm"
    for name, value in ((last, 1.0), ("mask_head.2", -MASK_LOWERED)):
        state[f"{name}.weight"][0] *= 0.05
        state[f"{name}.bias"][0] = value
    state["class_predictor.weight"] *= CLASS_SPREAD
    state["attn_mask_probs"] = torch.zeros(config.num_blocks)
    model.load_state_dict(state, strict=True)
    return model.eval()


def make_eomt(
    folder: Path, task: str = "panoptic", seed: int = 0, config: PlainTransformerConfig | None = None
) -> None:
    """Write a checkpoint as its authors have them on the hub for this task."""
    save_checkpoint(seeded_eomt(config or tiny_config(), seed), folder, LabelMap(CATEGORIES))
    cuts = task == "semantic"
    size = {"shortest_edge": SIDE, "longest_edge": None if cuts else SIDE}
    file = {"image_processor_type": "EomtImageProcessor", "do_pad": not cuts, "do_split_image": cuts, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(file))
