"""The documented model classes over `m2f_core.model`: forward's parameters and outputs, loading and saving.

Weights have our own names in `state_dict()`; `save_pretrained` writes transformers' names.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import CONFIG_FILE, CheckpointError, save_checkpoint
from m2f_core.hf.config import Mask2FormerConfig, locate
from m2f_core.hf.outputs import Mask2FormerForUniversalSegmentationOutput, Mask2FormerModelOutput
from m2f_core.model.mask2former import Decoded, Mask2Former, build_criterion
from m2f_core.training.initial_weights import initial_model
from m2f_core.whole_files import written_whole

logger = logging.getLogger(__name__)

# Arguments of transformers' `from_pretrained` that change how a checkpoint is read there and nothing about the result.
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "trust_remote_code")


class Mask2FormerPreTrainedModel(nn.Module):
    """The base of both models: configuration, device, loading and saving."""

    config_class: ClassVar[type[Mask2FormerConfig]] = Mask2FormerConfig
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "pixel_values"

    def __init__(self, config: Mask2FormerConfig):
        """Initial weights as in the original code, drawn with torch's global generator, in training mode."""
        super().__init__()
        self.config = config
        self.network = initial_model(config.core(), seed=int(torch.randint(2**31, ())))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """transformers counts the same tensors, except those of batch norms, which are buffers here."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        config: Mask2FormerConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **others: Any,
    ) -> Self:
        """The model of a checkpoint (a folder, a `.pkl` file of the original code or a hub id), in eval mode.

        `others` replace fields of the configuration, for example `id2label` for training on other classes; options of
        the hub are those of `Mask2FormerConfig.from_pretrained`. With `ignore_mismatched_sizes`, weights that do not
        fit the configuration, such as the class head for other classes, get initial values, and a warning names them.
        CheckpointError names weights that are missing or do not fit.
        """
        for name in _WITHOUT_EFFECT:
            others.pop(name, None)
        checkpoint = locate(pretrained_model_name_or_path, others)
        if config is None:
            config = cls.config_class.from_dict(checkpoint.config_dict, **others)
        else:
            for name, value in others.items():
                setattr(config, name, value)
        core, stored = config.core(), checkpoint.load()
        if not isinstance(stored, Mask2Former):
            raise CheckpointError(f"{checkpoint.path}: is a {checkpoint.family.name}, not a Mask2Former")
        model = cls._empty(config)
        if core == stored.config:
            model.network = stored
        else:
            model.network = initial_model(core, seed=int(torch.randint(2**31, ())))
            changed = list(_copy_weights(stored, model.network))
            if changed and not ignore_mismatched_sizes:
                raise CheckpointError(
                    f"{checkpoint.path}: {changed[0]}; for another class head or architecture, pass "
                    "ignore_mismatched_sizes=True, and these weights get initial values"
                )
            if changed:
                logger.warning("%s: initial values for %s; train the model", checkpoint.path, "; ".join(changed))
        wanted = dtype or torch_dtype
        if isinstance(wanted, str) and wanted != "auto":
            wanted = getattr(torch, wanted.removeprefix("torch."))
        return model.to(wanted).eval() if isinstance(wanted, torch.dtype) else model.eval()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers and `from_pretrained` load."""
        core = self.config.core()
        if core.num_labels != self.network.config.num_labels:
            raise CheckpointError(
                f"config has {core.num_labels} classes, but the model has {self.network.config.num_labels}"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.network, folder)
        with written_whole(folder / CONFIG_FILE) as file:  # with the keys and names that only `config` knows
            architectures = {"architectures": ["Mask2FormerForUniversalSegmentation"]}
            content = Mask2FormerConfig.from_dict(self.config.to_dict(), **architectures)
            file.write_text(content.to_json_string(), encoding="utf-8")

    @classmethod
    def _empty(cls, config: Mask2FormerConfig) -> Self:
        """Without a network."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.config = config
        return model

    def _decode(
        self, pixel_values: Tensor, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> tuple[Decoded, dict[str, Any]]:
        """What the network computes, and the fields that both outputs have."""
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        decoded = self.network.decode(pixel_values, every_prediction=True, with_attention=bool(output_attentions))
        predictions = decoded.predictions
        states: dict[str, Any] = {
            "encoder_last_hidden_state": decoded.features[-1],
            "pixel_decoder_last_hidden_state": decoded.mask_features,
            "transformer_decoder_last_hidden_state": predictions[-1].states.transpose(0, 1),
        }
        if output_hidden_states:
            states |= {
                "encoder_hidden_states": tuple(decoded.features),
                "pixel_decoder_hidden_states": tuple(decoded.maps),
                "transformer_decoder_hidden_states": tuple(p.states for p in predictions),
            }
        if output_attentions:
            states["attentions"] = tuple(p.attention for p in predictions[1:])
        return decoded, states

    def _in_form(self, output: Any, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class Mask2FormerModel(Mask2FormerPreTrainedModel):
    """Mask2Former without its class head. It loads the same checkpoints."""

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerModelOutput | tuple[Any, ...]:
        """pixel_values: float [B, 3, H, W], normalised RGB. `pixel_mask` has no effect, as in transformers: the network
        does not mask padding. None for the others means the configuration's value.
        """
        decoded, states = self._decode(pixel_values, output_hidden_states, output_attentions)
        if "encoder_hidden_states" in states:
            states["transformer_decoder_intermediate_states"] = tuple(
                prediction.queries.transpose(0, 1) for prediction in decoded.predictions
            )
        output = Mask2FormerModelOutput(
            **states, masks_queries_logits=tuple(prediction.mask_logits for prediction in decoded.predictions)
        )
        return self._in_form(output, return_dict)


class Mask2FormerForUniversalSegmentation(Mask2FormerPreTrainedModel):
    """Mask2Former with its class head, for panoptic, instance and semantic segmentation."""

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerForUniversalSegmentationOutput | tuple[Any, ...]:
        """pixel_values: float [B, 3, H, W], normalised RGB. `pixel_mask` has no effect, as in transformers: the network
        does not mask padding.

        With `mask_labels` ([N, H, W] of 0 and 1 for each image) and `class_labels` (int64 [N]) there is a loss; points
        are drawn with torch's global generator in transformers' order. None for the others means the configuration's
        value.
        """
        decoded, states = self._decode(pixel_values, output_hidden_states, output_attentions)
        *earlier, last = [self.network.logits(prediction) for prediction in decoded.predictions]
        loss = None
        if mask_labels is not None and class_labels is not None:
            losses = build_criterion(self.config.core())(
                **last,
                auxiliary_predictions=earlier if self.config.use_auxiliary_loss else [],
                mask_labels=[labels.to(pixel_values.device) for labels in mask_labels],
                class_labels=[labels.to(pixel_values.device) for labels in class_labels],
            )
            first, *others = losses.values()
            loss = sum(others, start=first)
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.config.output_auxiliary_logits
        output = Mask2FormerForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=last["class_queries_logits"],
            masks_queries_logits=last["masks_queries_logits"],
            auxiliary_logits=earlier if output_auxiliary_logits else None,
            **states,
        )
        return self._in_form(output, return_dict)

    @property
    def class_predictor(self) -> nn.Module:
        """The class head."""
        return self.network.class_predictor

    @property
    def model(self) -> SimpleNamespace:
        """The parts under transformers' names, for example `model.model.pixel_level_module.encoder` to freeze it."""
        pixel_level_module = SimpleNamespace(encoder=self.network.backbone, decoder=self.network.pixel_decoder)
        return SimpleNamespace(
            pixel_level_module=pixel_level_module, transformer_module=self.network.transformer_decoder
        )


def _copy_weights(source: Mask2Former, target: Mask2Former) -> Iterator[str]:
    """Copy the weights that fit, in place, and say which do not."""
    theirs = source.state_dict()
    for name, tensor in target.state_dict().items():
        if name not in theirs:
            yield f"{name} is missing"
        elif theirs[name].shape != tensor.shape:
            yield f"{name} has shape {tuple(theirs[name].shape)}, but the configuration needs {tuple(tensor.shape)}"
        else:
            tensor.copy_(theirs[name])
