"""The documented configuration classes: mutable, with every key of a `config.json`, over the checked ones.

`core()` gives the checked, frozen configuration from which models are built. Every change is checked there.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from m2f_core.checkpoints.checkpoint import CONFIG_FILE, Checkpoint
from m2f_core.checkpoints.hub import HUB_ID, fetch_from_hub
from m2f_core.config import backbones, mask2former
from m2f_core.config.class_names import read_id2label
from m2f_core.config.fields import ConfigError, excerpt
from m2f_core.config.mask2former import LEGACY_NAMES
from m2f_core.whole_files import written_whole

# Arguments of `from_pretrained` that are about fetching, not about the checkpoint.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# Fields that every configuration of transformers has, with their defaults.
_GENERAL = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}


def locate(path: str | Path, options: dict[str, Any]) -> Checkpoint:
    """The checkpoint in a folder, in a `.pkl` file of the original code, or on the hub under this id.

    Takes the options about fetching out of `options`. Raises CheckpointError.
    """
    hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    here = Path(path).expanduser()
    if here.exists() or not HUB_ID.fullmatch(str(path)):
        return Checkpoint(here)
    return Checkpoint(fetch_from_hub(str(path), **{name: v for name, v in hub_options.items() if v is not None}))


def check_no_method(cls: type, given: Mapping[str, Any]) -> None:
    """ConfigError for a key of a file that would take the place of a method of the object that holds the keys."""
    for name in given:
        if callable(getattr(cls, name, None)):
            raise ConfigError(f"{excerpt(name)} is a method of {cls.__name__} and cannot be a field")


class _Config:
    """Keyword arguments as attributes, completed and checked by `core_class`."""

    model_type: ClassVar[str]
    core_class: ClassVar[type[Any]]

    def __init__(self, /, **given: Any):
        check_no_method(type(self), given)
        self.__dict__.update(given)
        checked = self.core()
        for field in fields(checked):
            setattr(self, field.name, getattr(checked, field.name))

    def core(self) -> Any:
        """The checked configuration. ConfigError, which names the field, if it is wrong."""
        return self.core_class.from_dict({"model_type": self.model_type, **self._given()})

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json`, also with the keys that this code does not know."""
        known = self.core().to_dict()
        others = {name: value for name, value in self._given().items() if name not in known}
        return {**others, **known}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _given(self) -> dict[str, Any]:
        """The attributes in JSON's types."""
        return {name: _plain(value) for name, value in self.__dict__.items()}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class SwinConfig(_Config):
    """A Swin Transformer as backbone; see `m2f_core.config.backbones.SwinConfig` for the fields."""

    model_type = "swin"
    core_class = backbones.SwinConfig


class ResNetConfig(_Config):
    """A ResNet as backbone; see `m2f_core.config.backbones.ResNetConfig` for the fields."""

    model_type = "resnet"
    core_class = backbones.ResNetConfig


_BACKBONES: dict[type[Any], type[_Config]] = {config.core_class: config for config in (SwinConfig, ResNetConfig)}


class Mask2FormerConfig(_Config):
    """The documented configuration; see `m2f_core.config.mask2former.Mask2FormerConfig` for the fields.

    `backbone_config` may be a dictionary with `model_type`, or one of the classes above. `num_labels` alone names the
    classes LABEL_0, LABEL_1, ... Keys that this code does not know are kept and written. ConfigError names a wrong
    field.
    """

    model_type = "mask2former"
    core_class = mask2former.Mask2FormerConfig

    backbone_config: Any
    id2label: dict[int, str]
    output_attentions: bool
    output_auxiliary_logits: bool | None
    output_hidden_states: bool
    return_dict: bool
    use_auxiliary_loss: bool

    def __init__(self, /, **given: Any):
        given = {LEGACY_NAMES.get(name, name): value for name, value in given.items() if name != "model_type"}
        super().__init__(**{**_GENERAL, **given})
        backbone = given.get("backbone_config")
        if isinstance(backbone, _Config):
            self.backbone_config = backbone
        else:
            keys = backbone if isinstance(backbone, Mapping) else self.backbone_config.to_dict()
            self.backbone_config = _BACKBONES[type(self.backbone_config)](**keys)
        # A name that two classes share keeps the last of them, as in a file.
        self.label2id = {name: class_id for class_id, name in self.id2label.items()}
        for name in ("num_labels", "backbone", "backbone_kwargs"):
            self.__dict__.pop(name, None)  # the two fields above now hold what they said

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "backbone_config": _plain(self.backbone_config)}

    @property
    def num_labels(self) -> int:
        """Number of classes, "no object" not counted. A new number gives all classes new names."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if number != len(self.id2label):
            self.id2label = read_id2label({"num_labels": number})
            self.label2id = {name: class_id for class_id, name in self.id2label.items()}

    @property
    def hidden_size(self) -> int:
        """transformers' other name of `hidden_dim`."""
        return int(self.__dict__["hidden_dim"])

    @property
    def num_hidden_layers(self) -> int:
        """transformers' other name of `decoder_layers`."""
        return int(self.__dict__["decoder_layers"])

    @property
    def use_return_dict(self) -> bool:
        """transformers' other name of `return_dict`."""
        return bool(self.__dict__["return_dict"])

    @classmethod
    def from_backbone_config(cls, backbone_config: Any, **fields: Any) -> Self:
        return cls(backbone_config=backbone_config, **fields)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **others: Any) -> Self:
        """The content of a `config.json`; `others` replace its keys."""
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ConfigError(f'model_type must be "{cls.model_type}", not {config_dict["model_type"]!r}')
        if "num_labels" in others and "id2label" not in others:  # the file's names are for another number
            names = read_id2label(config_dict)
            config_dict = {name: value for name, value in config_dict.items() if name not in ("id2label", "label2id")}
            if len(names) == others["num_labels"]:
                config_dict["id2label"] = names
        elif "id2label" in others:
            config_dict = {name: value for name, value in config_dict.items() if name not in ("num_labels", "label2id")}
        return cls(**{**config_dict, **others})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> Self:
        """The configuration of a checkpoint: a folder, a `.pkl` file of the original code or a hub id.

        `others` replace keys of the file. CheckpointError and ConfigError name the file and the field.
        """
        return cls.from_dict(locate(pretrained_model_name_or_path, others).config_dict, **others)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / CONFIG_FILE) as file:
            file.write_text(self.to_json_string(), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, _Config):
        return value.to_dict()
    if hasattr(value, "to_dict"):  # a configuration of transformers, or a checked one of ours
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
