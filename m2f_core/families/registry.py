"""Every family of models, and how the family of a checkpoint is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from m2f_core.config.fields import ConfigError, excerpt
from m2f_core.families import mask2former, oneformer
from m2f_core.families.eomt import family as eomt
from m2f_core.families.family import Family, TrainingParts
from m2f_core.families.maskformer import family as maskformer

if TYPE_CHECKING:
    from m2f_core.config.model_config import ModelConfig

FAMILIES: tuple[Family, ...] = (
    mask2former.FAMILY,
    maskformer.FAMILY,
    oneformer.FAMILY,
    eomt.FAMILY,
    eomt.DINOV3_FAMILY,
)
# Of the models of runs whose records do not name it, because the program knew no other.
FIRST_MODEL_TYPE = mask2former.FAMILY.model_types[0]


def family_of(config_dict: Mapping[str, Any]) -> Family:
    """The family of a config.json, by its `model_type`. ConfigError names the types that are known."""
    model_type = config_dict.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f'"{name}"' for family in FAMILIES for name in family.model_types)
    raise ConfigError(f"model_type must be one of {known}, not {excerpt(model_type)}: this is another architecture")


def read_config(config_dict: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of any family. Raises ConfigError."""
    return family_of(config_dict).config(config_dict)


def family_of_type(model_type: str) -> Family:
    """The family of a `model_type`. Raises ConfigError."""
    return family_of({"model_type": model_type})


def architectures() -> dict[str, Callable[..., ModelConfig]]:
    """Published sizes by name, of every family that can be trained; each is a function that takes `id2label`."""
    return {
        name: make for family in FAMILIES if family.training for name, make in family.training.architectures.items()
    }


def training_of(config: ModelConfig) -> TrainingParts:
    """How a model with this configuration is trained. ConfigError if it cannot be trained here."""
    family = family_of(config.to_dict())
    if family.training is None:
        known = ", ".join(family.name for family in FAMILIES if family.training)
        raise ConfigError(f"a {family.name} cannot be trained here, only {known}")
    family.training.check(config)
    return family.training


def family_of_arrays(names: Sequence[str]) -> Family | None:
    """The family whose authors' files have arrays of these names."""
    return next((family for family in FAMILIES if family.original and family.original.recognises(names)), None)
