"""Which family a checkpoint belongs to."""

import pytest

from m2f_core.config.fields import ConfigError
from m2f_core.families.registry import FAMILIES, architectures, family_of, family_of_arrays, training_of


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_found_by_the_file_that_its_configuration_writes(family) -> None:
    config = family.config({"model_type": family.model_types[0]})

    assert family_of(config.to_dict()) is family
    assert family.config(config.to_dict()) == config
    if family.training is None:
        with pytest.raises(ConfigError, match=f"a {family.name} cannot be trained here, only Mask2Former"):
            training_of(config)
    else:
        assert training_of(config) is family.training


def test_an_unknown_type_is_refused_with_the_list_of_those_that_are_known() -> None:
    with pytest.raises(ConfigError) as error:
        family_of({"model_type": "detr"})

    assert "'detr'" in str(error.value)
    assert all(f'"{name}"' in str(error.value) for family in FAMILIES for name in family.model_types)


def test_no_two_families_share_a_type_or_a_size() -> None:
    types = [name for family in FAMILIES for name in family.model_types]
    sizes = [name for family in FAMILIES if family.training for name in family.training.architectures]

    assert len(types) == len(set(types))
    assert len(sizes) == len(set(sizes)) == len(architectures())


def test_arrays_of_no_head_belong_to_no_family() -> None:
    assert family_of_arrays(["backbone.patch_embed.proj.weight"]) is None
