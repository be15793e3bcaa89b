"""Pickles as the original code's `model_final_*.pkl`, made of weights under Hugging Face's names. For tests only.

The names are spelled here once more, the other way round than in m2f_core/families/mask2former_names.py: from
transformers' to the original's.
"""

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FROM_HUGGING_FACE = [
    # Swin
    (r"E\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"E\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.self\.(q)uery", r"backbone.layers.\1.blocks.\2.attn.qkv"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.self", r"backbone.layers.\1.blocks.\2.attn"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.output\.dense", r"backbone.layers.\1.blocks.\2.attn.proj"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_before", r"backbone.layers.\1.blocks.\2.norm1"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_after", r"backbone.layers.\1.blocks.\2.norm2"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.intermediate\.dense", r"backbone.layers.\1.blocks.\2.mlp.fc1"),
    (r"E\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.output\.dense", r"backbone.layers.\1.blocks.\2.mlp.fc2"),
    (r"E\.encoder\.layers\.(\d+)\.downsample", r"backbone.layers.\1.downsample"),
    (r"E\.hidden_states_norms\.stage(\d)", lambda m: f"backbone.norm{int(m[1]) - 1}"),
    # ResNet
    (r"E\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"E\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (
        r"E\.encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution",
        lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.conv{int(m[3]) + 1}",
    ),
    (
        r"E\.encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization",
        lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.conv{int(m[3]) + 1}.norm",
    ),
    (
        r"E\.encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution",
        lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.shortcut",
    ),
    (
        r"E\.encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization",
        lambda m: f"backbone.res{int(m[1]) + 2}.{m[2]}.shortcut.norm",
    ),
    # Pixel decoder
    (r"D\.input_projections", "H.pixel_decoder.input_proj"),
    (r"D\.level_embed", "H.pixel_decoder.transformer.level_embed"),
    (r"D\.encoder\.layers\.(\d+)\.fc(\d)", r"H.pixel_decoder.transformer.encoder.layers.\1.linear\2"),
    (r"D\.encoder\.layers\.(\d+)\.self_attn_layer_norm", r"H.pixel_decoder.transformer.encoder.layers.\1.norm1"),
    (r"D\.encoder\.layers\.(\d+)\.final_layer_norm", r"H.pixel_decoder.transformer.encoder.layers.\1.norm2"),
    (r"D\.encoder\.layers\.(\d+)\.self_attn", r"H.pixel_decoder.transformer.encoder.layers.\1.self_attn"),
    (r"D\.mask_projection", "H.pixel_decoder.mask_features"),
    (r"D\.(adapter|layer)_1\.0", r"H.pixel_decoder.\1_1"),
    (r"D\.(adapter|layer)_1\.1", r"H.pixel_decoder.\1_1.norm"),
    # Transformer decoder
    (r"T\.queries_features", "H.predictor.query_feat"),
    (r"T\.queries_embedder", "H.predictor.query_embed"),
    (r"T\.level_embed", "H.predictor.level_embed"),
    (r"T\.input_projections", "H.predictor.input_proj"),
    (
        r"T\.decoder\.layers\.(\d+)\.self_attn\.(q)_proj\.",
        r"H.predictor.transformer_self_attention_layers.\1.self_attn.in_proj_",
    ),
    (r"T\.decoder\.layers\.(\d+)\.self_attn\.out", r"H.predictor.transformer_self_attention_layers.\1.self_attn.out"),
    (r"T\.decoder\.layers\.(\d+)\.self_attn_layer_norm", r"H.predictor.transformer_self_attention_layers.\1.norm"),
    (r"T\.decoder\.layers\.(\d+)\.cross_attn\.", r"H.predictor.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"T\.decoder\.layers\.(\d+)\.cross_attn_layer_norm", r"H.predictor.transformer_cross_attention_layers.\1.norm"),
    (r"T\.decoder\.layers\.(\d+)\.fc(\d)", r"H.predictor.transformer_ffn_layers.\1.linear\2"),
    (r"T\.decoder\.layers\.(\d+)\.final_layer_norm", r"H.predictor.transformer_ffn_layers.\1.norm"),
    (r"T\.decoder\.layernorm", "H.predictor.decoder_norm"),
    (r"T\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"H.predictor.mask_embed.layers.\1"),
    (r"class_predictor", "H.predictor.class_embed"),
]
PREFIXES = {
    "model.pixel_level_module.encoder.": "E.",
    "model.pixel_level_module.decoder.": "D.",
    "model.transformer_module.": "T.",
}
KEY_AND_VALUE = re.compile(r"\.(self\.(key|value)|self_attn\.[kv]_proj)\.")


def original_names(
    weights: dict[str, Tensor], static_query: bool = False, old_head: bool = False, counts: bool = False
) -> dict[str, np.ndarray]:
    """Weights under the hub's names -> under the original's.

    static_query, old_head: the names of older code, for the queries' features and for the pixel decoder. counts: with
    the batch norms' num_batches_tracked, as a SyncBN has and a frozen one has not.
    """
    renamed = {}
    for name, tensor in weights.items():
        if KEY_AND_VALUE.search(name) or (name.endswith("num_batches_tracked") and not counts):
            continue
        if re.search(r"attention\.self\.query\.|layers\.\d+\.self_attn\.q_proj\.", name):
            parts = [name, name.replace("query", "key"), name.replace("query", "value")]
            if ".q_proj." in name:
                parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            tensor = torch.cat([weights[part] for part in parts])
        if not name.startswith("criterion.") and ".swin.layernorm." not in name:  # nothing reads them
            renamed[_original_name(name, static_query, old_head)] = tensor.numpy()
    renamed["criterion.empty_weight"] = np.ones(3, np.float32)
    for name in [name for name in renamed if name.endswith("relative_position_bias_table")]:
        renamed[name.removesuffix("bias_table") + "index"] = np.zeros((4, 4), np.int64)
    return renamed


def _original_name(name: str, static_query: bool, old_head: bool) -> str:
    for prefix, letter in PREFIXES.items():
        name = letter + name.removeprefix(prefix) if name.startswith(prefix) else name
    for pattern, replacement in FROM_HUGGING_FACE:
        if match := re.match(pattern + r"(?![a-z])" if not pattern.endswith(r"\.") else pattern, name):
            front = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            name = front + name[match.end() :]
            break
    else:
        raise AssertionError(f"no original name for {name}")
    if static_query:
        name = name.replace("query_feat", "static_query")
    if old_head:
        name = name.replace("H.pixel_decoder.", "H.")
    return re.sub(r"^H\.", "sem_seg_head.", name)


def write_pickle(path: Path, model: dict[str, np.ndarray], protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Bowen Cheng", "matching_heuristics": True}, protocol))
    return path
