"""OneFormer equals transformers' OneFormer, module by module and from end to end; see test_model_parity for how.

Every weight is jittered. The task is asked for by the numbers that CLIP's tokenizer gives its sentence, which cannot be
downloaded here; `test_the_tokens_are_those_of_transformers` has the part of its vocabulary that matters.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2f_core.config.labels import TASKS, Task
from m2f_core.config.oneformer import TASK_TOKENS, OneFormerConfig
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.oneformer.oneformer import OneFormer
from m2f_core.model.oneformer.task_encoder import task_row

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

from tests.parity.test_model_parity import (
    END_TO_END_TOLERANCE,
    SIZES,
    SMALL_SWIN,
    STAGES,
    SWIN,
    TOLERANCE,
    USUAL_SIZES,
    assert_close,
    check_backbone,
    check_pixel_decoder,
    image_batch,
    one_thread_no_grad,  # noqa: F401  for all tests here
)

SMALL = {"conv_dim": 64, "mask_dim": 64, "hidden_dim": 64, "num_queries": 11, "num_labels": 9, "encoder_layers": 2}
SMALL |= {"decoder_layers": 5, "dim_feedforward": 96, "encoder_feedforward_dim": 80}


def jittered(backbone: transformers.PreTrainedConfig | None = None, **fields: object) -> nn.Module:
    """A model of transformers whose every parameter differs from its initial value, with activations of order one."""
    backbone = backbone or transformers.SwinConfig(**SMALL_SWIN, out_features=STAGES)
    config = transformers.OneFormerConfig(backbone_config=backbone, **{"num_labels": 133, **fields})
    torch.manual_seed(0)
    model = transformers.OneFormerForUniversalSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.dim() < 2 else 0.5 * parameter[0].numel() ** -0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
        # The numbers of the tokens go up to 49,407, so without a norm the task drowns everything else.
        if not config.use_task_norm:
            model.model.task_encoder.task_mlp.layers[0].get_submodule("0").weight *= 1e-4
    return model


def task_inputs(task: Task, batch: int, length: int = 77) -> Tensor:
    row = [*TASK_TOKENS[task], *[0] * (length - len(TASK_TOKENS[task]))]
    return torch.tensor([row] * batch)


class Oracle:
    """transformers' model, ours with its weights, and a record of what each of its modules got and gave."""

    def __init__(self, theirs: nn.Module, folder: Path, prepared: bool = False) -> None:
        """`prepared`: ours as the job runs it."""
        self.theirs = theirs
        if not any(folder.iterdir()):
            self.theirs.save_pretrained(folder)
        ours = load_checkpoint(folder)
        assert isinstance(ours, OneFormer)
        self.ours: OneFormer = ours
        if prepared:
            prepare_for_inference(self.ours, torch.device("cpu"), "fp32")

    def run(self, pixel_values: Tensor, task: Task) -> tuple[object, dict[str, list[tuple[tuple, dict, object]]]]:
        self.ours.set_task(task)
        calls = defaultdict(list)
        parts = self.theirs.model
        decoder = parts.transformer_module.decoder
        watched = {
            "backbone": [parts.pixel_level_module.encoder],
            "pixel_decoder": [parts.pixel_level_module.decoder],
            "encoder_layer": parts.pixel_level_module.decoder.encoder.layers,
            "task": [parts.task_encoder],
            "decoder": [decoder],
            "query_layer": decoder.query_transformer.decoder.layers,
            "query_transformer": [decoder.query_transformer],
            "decoder_layer": decoder.layers,
            "class_predictor": [decoder.class_embed],
            "mask_embedder": [decoder.mask_embed],
        }
        hooks = [
            module.register_forward_hook(
                lambda _, args, kwargs, output, name=name: calls[name].append((args, kwargs, output)),
                with_kwargs=True,
            )
            for name, modules in watched.items()
            for module in modules
        ]
        output = self.theirs(pixel_values, task_inputs(task, len(pixel_values), self.ours.config.task_seq_len))
        for hook in hooks:
            hook.remove()
        return output, calls


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    def make(swin: str) -> tuple[nn.Module, Path]:
        backbone = transformers.SwinConfig(**SWIN[swin], out_features=STAGES)
        return jittered(backbone), tmp_path_factory.mktemp(swin)

    return functools.cache(make)


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(("swin_tiny", prepared), id=f"swin_tiny {prepared}") for prepared in (False, True)),
        *(
            pytest.param(("swin_base", prepared), id=f"swin_base {prepared}", marks=pytest.mark.thorough)
            for prepared in (False, True)
        ),
    ],
)
def oracle(request: pytest.FixtureRequest, models: Callable[[str], tuple[nn.Module, Path]]) -> Oracle:
    swin, prepared = request.param
    return Oracle(*models(swin), prepared)


@pytest.mark.parametrize("size", USUAL_SIZES, ids=str)
def test_modules_and_model_agree(oracle: Oracle, size: tuple[int, int]) -> None:
    """In their real sizes, with 150 queries; each size of image is asked for another task."""
    pixel_values = image_batch(*size, batch=2 if size == SIZES[0] else 1)
    theirs, calls = oracle.run(pixel_values, TASKS[SIZES.index(size)])
    check_backbone(oracle.ours, pixel_values, calls)
    check_pixel_decoder(oracle.ours, calls)
    check_task_encoder(oracle.ours, calls)
    check_query_transformer(oracle.ours, calls)
    check_decoder_layers(oracle.ours, calls)
    (queries,), _, logits = calls["class_predictor"][-1]
    assert_close(oracle.ours.class_predictor(queries), logits, TOLERANCE, "class predictor")
    (queries,), _, embeddings = calls["mask_embedder"][-1]
    assert_close(oracle.ours.transformer_decoder.mask_embedder(queries), embeddings, TOLERANCE, "mask embedder")

    ours = oracle.ours(pixel_values, output_queries=True)
    assert ours.class_queries_logits.shape[1] == 150
    assert_close(ours.queries, queries, END_TO_END_TOLERANCE, "end to end, what the class head reads")
    assert_close(ours.class_queries_logits, theirs.class_queries_logits, END_TO_END_TOLERANCE, "end to end, classes")
    assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, END_TO_END_TOLERANCE, "end to end, masks")


def check_task_encoder(ours: OneFormer, calls: dict) -> None:
    """The numbers are large, so the bound is relative."""
    ((_, _, token),) = calls["task"]
    relative = token.abs().max()
    assert_close(ours.task_encoder() / relative, token[:1] / relative, TOLERANCE, "task token")


def check_query_transformer(ours: OneFormer, calls: dict) -> None:
    ((_, kwargs, _),) = calls["decoder"]
    mask_features = kwargs["mask_features"]
    height, width = mask_features.shape[2:]
    for index, ((states, codes), kwargs, result) in enumerate(calls["query_layer"]):
        keys = (codes + kwargs["pos"]).transpose(0, 1)
        positions = kwargs["query_pos"].transpose(0, 1)[:1]
        mine = ours.query_transformer.layers[index](states.transpose(0, 1), positions, keys, height, width)
        assert_close(mine, result.transpose(0, 1), TOLERANCE, f"query transformer layer {index}")
    assert index + 1 == len(ours.query_transformer.layers)

    ((_, _, positions, _, token), _, result) = calls["query_transformer"][0]
    mine = ours.query_transformer(token[0, :1], positions, mask_features)
    assert_close(mine, result[0], TOLERANCE, "query transformer")
    start = ours.start(mask_features)
    assert_close(start[:, :-1], result[0], TOLERANCE, "start")
    assert_close(start[:, -1], token[0], TOLERANCE, "the task is the last query")


def check_decoder_layers(ours: OneFormer, calls: dict) -> None:
    ((_, outer, _),) = calls["decoder"]
    for _, kwargs, (result, *_) in calls["decoder_layer"]:
        index, queries, level = kwargs["index"], kwargs["output"], kwargs["index"] % 3
        tokens = outer["multi_stage_features"][level]
        blocked = kwargs["attention_mask"].unflatten(0, (queries.shape[1], -1))[:, 0]
        mine = ours.transformer_decoder.layers[index](
            queries.transpose(0, 1),
            kwargs["query_embeddings"].transpose(0, 1),
            (tokens + outer["multi_stage_positional_embeddings"][level]).transpose(0, 1),
            tokens.transpose(0, 1),
            ~blocked,
        )
        assert_close(mine, result.transpose(0, 1), TOLERANCE, f"transformer decoder layer {index}")
    assert index + 1 == len(ours.transformer_decoder.layers)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pre_norm": True},
        {"use_task_norm": False},
        {"query_dec_layers": 1, "num_attention_heads": 4, "decoder_layers": 2},
        {"layer_norm_eps": 0.1, "query_dec_layers": 3},
        {"task_seq_len": 10, "num_queries": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("prepared", [False, True])
def test_every_field_agrees_in_every_task(tmp_path: Path, fields: dict, prepared: bool) -> None:
    oracle = Oracle(jittered(**{**SMALL, **fields}), tmp_path, prepared)
    pixel_values, masks = image_batch(70, 90, batch=2), []
    for task in TASKS:
        expected, _ = oracle.run(pixel_values, task)
        output = oracle.ours(pixel_values)
        assert_close(output.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
        assert_close(output.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")
        masks.append(output.masks_queries_logits)
    assert (masks[0] - masks[1]).abs().max() > 0.1 < (masks[0] - masks[2]).abs().max(), "tasks give the same"


def test_a_resnet_agrees(tmp_path: Path) -> None:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 2, 1, 1]}
    oracle = Oracle(jittered(transformers.ResNetConfig(**sizes, out_features=STAGES), **SMALL), tmp_path)
    pixel_values = image_batch(100, 140)
    expected, _ = oracle.run(pixel_values, "instance")
    output = oracle.ours(pixel_values)
    assert_close(output.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
    assert_close(output.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")


def test_a_batch_of_two_is_its_images_one_by_one(tmp_path: Path) -> None:
    ours = Oracle(jittered(**SMALL), tmp_path).ours
    features = torch.randn(2, 64, 9, 13, generator=torch.Generator().manual_seed(0))
    together = ours.start(features)
    assert (together[0] - together[1]).abs().max() > 0.01
    for index in range(2):
        assert_close(ours.start(features[index : index + 1])[0], together[index], TOLERANCE, f"image {index}")


def test_files_of_a_training_load_without_their_text_mapper(tmp_path: Path) -> None:
    """Also with version 5's names in memory; all give the same weights."""
    text = {"text_encoder_width": 64, "text_encoder_num_layers": 1, "text_encoder_vocab_size": 50}
    theirs = jittered(**{**SMALL, **text, "is_training": True})
    theirs.save_pretrained(tmp_path / "hub")
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    assert any(name.startswith("model.text_mapper.") for name in hub) and "criterion.logit_scale" in hub
    assert "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight" in hub
    in_memory = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    (tmp_path / "memory").mkdir()
    theirs.config.save_pretrained(tmp_path / "memory")
    save_file(in_memory, tmp_path / "memory" / "model.safetensors")
    expected = load_checkpoint(tmp_path / "hub").state_dict()
    found = load_checkpoint(tmp_path / "memory").state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_transformers_loads_what_we_save(tmp_path: Path) -> None:
    """Every tensor but the text mapper's; the configuration says that there is none."""
    theirs = jittered(**{**SMALL, "text_encoder_width": 64, "text_encoder_num_layers": 1, "is_training": True})
    theirs.save_pretrained(tmp_path / "theirs")
    save_checkpoint(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours")
    again, info = transformers.OneFormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    # Constants of the loss, which transformers computes itself; and a norm that nothing reads.
    assert all("criterion" in key or "swin.layernorm" in key for key in info["missing_keys"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert after and all(torch.equal(after[name], before[name]) for name in after)
    left_out = ("model.text_mapper.", "criterion.")
    assert all(name.startswith(left_out) or ".layernorm." in name for name in before.keys() - after.keys())

    for module in theirs.modules():
        if hasattr(module, "is_training"):
            module.is_training = False  # or it asks for texts, and its layers drop activations, also in eval mode
    pixel_values, task = image_batch(*SIZES[0]), task_inputs("semantic", 1)
    expected, output = theirs(pixel_values, task), again.eval()(pixel_values, task)
    assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)
    assert Checkpoint(tmp_path / "ours").family.name == "OneFormer"


def test_missing_fields_have_their_defaults() -> None:
    theirs = transformers.OneFormerConfig().to_dict()
    assert OneFormerConfig.from_dict({"model_type": "oneformer"}) == OneFormerConfig.from_dict(theirs)


# Every merge of CLIP's file whose result occurs in the sentences, in the file's order, with the number of its result.
# Another merge cannot apply to them. Letters come first in the vocabulary, then letters at the end of a word.
MERGES = """
i n 512 t h 513 a n 514 th e$ 518 s t 522 i s$ 533 i c 535 t i 555 s e 567 m a 577 n o 578 a s 587 i s 595 th e 599
c e$ 629 t a 648 h e 651 o p 676 c e 685 m an 723 p a 765 h e$ 797 an ce$ 884 t ic 890 e m 908 s k 909 i c$ 1029
p an 1072 an t 1103 an c 1124 in st 1264 st a 1363 ti c$ 1550 s k$ 2058 t an 2123 st an 2203 as k$ 2765 an ti 3120
st ance$ 3542 n c 5021 an o 5617 t as 6538 op ti 6580 e ma 7002 an ce 7165 an tic 8260 se m 8645 t ask$ 10549 n t 10902
as k 11027 p t 11139 n s 12405 in s 12786 p tic$ 20670 inst a 22411 e man 24416 op tic$ 24755 man t 25122 op tic 25190
se man 29119 p ti 29375 inst ance$ 34572 tas k 39189 op t 45103 stan ce 48900
""".replace("$", "</w>").split()


@pytest.mark.parametrize("length", [77, 10])
def test_the_tokens_are_those_of_transformers(length: int) -> None:
    """Of its processor, with its tokenizer and the part of CLIP's vocabulary that matters."""
    merges = list(zip(MERGES[::3], MERGES[1::3], strict=True))
    vocabulary = {chr(code): code - ord("!") for code in range(ord("a"), ord("z") + 1)}
    vocabulary |= {f"{letter}</w>": 256 + number for letter, number in vocabulary.items()}
    vocabulary |= {"".join(merge): int(number) for merge, number in zip(merges, MERGES[2::3], strict=True)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert [int(number) for number in MERGES[2::3]] == sorted(map(int, MERGES[2::3]))
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)

    found = transformers.OneFormerProcessor._preprocess_text(
        SimpleNamespace(tokenizer=tokenizer), [f"the task is {task}" for task in TASKS], max_length=length
    )
    for task, row in zip(TASKS, found, strict=True):
        assert torch.equal(torch.from_numpy(task_row(task, length)), row.float())
        assert torch.equal(task_inputs(task, 1, length)[0], row)
