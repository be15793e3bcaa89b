"""Pickles as MaskFormer's original `model_final_*.pkl`, made of weights under Hugging Face's names. For tests only.

The names of the decoders are spelled here once more, the other way round than in m2f_core/families/maskformer/names.py.
"""

import re

import numpy as np
import torch
from torch import Tensor

from tests.support import detectron2_pickles

_ENCODER = "model.pixel_level_module.encoder."
_DECODERS = [
    (r"P\.fpn\.stem\.0", "H.pixel_decoder.layer_4"),
    (r"P\.fpn\.stem\.1", "H.pixel_decoder.layer_4.norm"),
    (r"P\.fpn\.layers\.(\d)\.proj\.0", lambda m: f"H.pixel_decoder.adapter_{3 - int(m[1])}"),
    (r"P\.fpn\.layers\.(\d)\.proj\.1", lambda m: f"H.pixel_decoder.adapter_{3 - int(m[1])}.norm"),
    (r"P\.fpn\.layers\.(\d)\.block\.0", lambda m: f"H.pixel_decoder.layer_{3 - int(m[1])}"),
    (r"P\.fpn\.layers\.(\d)\.block\.1", lambda m: f"H.pixel_decoder.layer_{3 - int(m[1])}.norm"),
    (r"P\.mask_projection", "H.pixel_decoder.mask_features"),
    (r"T\.queries_embedder", "H.predictor.query_embed"),
    (r"T\.input_projection", "H.predictor.input_proj"),
    (r"T\.decoder\.layernorm", "H.predictor.transformer.decoder.norm"),
    (r"T\.decoder\.layers\.(\d+)\.self_attn_layer_norm", r"H.predictor.transformer.decoder.layers.\1.norm1"),
    (r"T\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm", r"H.predictor.transformer.decoder.layers.\1.norm2"),
    (r"T\.decoder\.layers\.(\d+)\.final_layer_norm", r"H.predictor.transformer.decoder.layers.\1.norm3"),
    (r"T\.decoder\.layers\.(\d+)\.fc(\d)", r"H.predictor.transformer.decoder.layers.\1.linear\2"),
    (r"T\.decoder\.layers\.(\d+)\.self_attn\.out", r"H.predictor.transformer.decoder.layers.\1.self_attn.out"),
    (r"T\.decoder\.layers\.(\d+)\.encoder_attn\.out", r"H.predictor.transformer.decoder.layers.\1.multihead_attn.out"),
    (r"mask_embedder\.(\d)\.0", r"H.predictor.mask_embed.layers.\1"),
    (r"class_predictor", "H.predictor.class_embed"),
]
_PREFIXES = {"model.pixel_level_module.decoder.": "P.", "model.transformer_module.": "T."}


def original_names(weights: dict[str, Tensor], old_head: bool = False) -> dict[str, np.ndarray]:
    """Weights under the hub's names -> under the original's. old_head: those of older code."""
    backbone, renamed = {}, {}
    for name, tensor in weights.items():
        if name.startswith(_ENCODER):
            name = name.replace(_ENCODER + "model.", _ENCODER)
            name = re.sub(r"(hidden_states_norms)\.(\d)", lambda m: f"{m[1]}.stage{int(m[2]) + 1}", name)
            if ".encoder.layernorm." not in name and not name.endswith("relative_position_index"):
                backbone[name] = tensor
        elif match := re.search(r"^(.*layers\.\d+)\.(self|encoder)_attn\.q_proj\.(\w+)$", name):
            parts = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            layer = match[1].replace("model.transformer_module.", "sem_seg_head.predictor.transformer.")
            theirs = {"self": "self_attn", "encoder": "multihead_attn"}[match[2]]
            renamed[f"{layer}.{theirs}.in_proj_{match[3]}"] = torch.cat(parts).numpy()
        elif not re.search(r"attn\.[kv]_proj\.", name) and not name.startswith("criterion."):
            renamed[_original_name(name)] = tensor.numpy()
    if old_head:
        renamed = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): a for name, a in renamed.items()}
    return {**detectron2_pickles.original_names(backbone), **renamed}


def _original_name(name: str) -> str:
    for prefix, letter in _PREFIXES.items():
        name = letter + name.removeprefix(prefix) if name.startswith(prefix) else name
    for pattern, replacement in _DECODERS:
        if match := re.match(pattern + r"(?![a-z])" if not pattern.endswith("out") else pattern, name):
            front = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            return re.sub(r"^H\.", "sem_seg_head.", front + name[match.end() :])
    raise AssertionError(f"no original name for {name}")
