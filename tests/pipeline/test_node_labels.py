"""Choices of nodes by label: they mean to us what they mean to Ray."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.node_labels import ANY_NODE, NodeChoice

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_.-]{0,5}[a-z0-9])?", fullmatch=True)


@given(NAMES, st.lists(NAMES, min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_read_and_ray_takes_it(key, values, negated):
    """Ray checks selectors with its own function when an actor is made."""
    from ray._private.label_utils import validate_fallback_strategy, validate_label_selector

    text = f"team/{key}=!{values[0]}" if negated else f"team/{key}={','.join(values)}"
    choice = NodeChoice.parse(text)
    assert str(choice) == text
    options = choice.options()
    assert validate_label_selector(options["label_selector"]) is None
    assert validate_fallback_strategy(options.get("fallback_strategy")) is None
    assert validate_label_selector(choice.any_of()) is None
    preferred = [options["label_selector"], *(o["label_selector"] for o in options.get("fallback_strategy", []))]
    assert [one[f"team/{key}"] for one in preferred] == ([f"!{values[0]}"] if negated else values)
    assert choice.matches({f"team/{key}": values[0]}) is not negated
    assert choice.matches({}) is negated


def test_no_choice_is_any_node():
    assert NodeChoice.parse(None) is ANY_NODE
    assert ANY_NODE.matches({"a": "b"}) and ANY_NODE.options() == ANY_NODE.any_of() == {}


@pytest.mark.parametrize("text", ["spot", "=spot", "market=", "market=spot,", "market=!a,b", "a=b,c=d", "a b=c", "a=!"])
def test_a_choice_that_is_none_is_refused_with_the_flag(text):
    for flag, name in (("--model-nodes", "model_nodes"), ("--helper-nodes", "helper_nodes")):
        with pytest.raises(RunError, match=rf"^{flag}: .* is not KEY=VALUE, KEY=VALUE,FALLBACK or KEY=!VALUE"):
            Settings(input=("in",), output="out", **{name: text})
