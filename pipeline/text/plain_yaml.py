"""YAML files of users: names and values as they are spelled, each name once, nothing that stands for more."""

from collections import Counter
from pathlib import Path
from typing import Any

_MOST_BYTES = 2**16


def read_plain_yaml(file: Path) -> dict[Any, Any]:
    """The names and values of a small YAML file; an empty file has none.

    ValueError with one line if the file cannot be read, is no YAML, holds a name twice or something else than names.
    """
    import yaml  # imported here, because --help should not wait for it

    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"the file has more than {_MOST_BYTES:,} bytes")
        values = yaml.load(data, Loader=_plain_loader())
    except RecursionError:
        raise ValueError("the file holds values within values; write names and values") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"the file must hold names and values, not a {type(values).__name__}")
    return values


def _plain_loader() -> type:
    """A YAML loader that knows only null and true/false: `1:8` is not a number in base 60, and a date is its text.

    A name twice is refused, and so are aliases: a few lines of them stand for gigabytes.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"write out the value of *{self.peek_event().anchor}")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise ValueError(f"{twice[0]} is there twice")
            return super().construct_mapping(node, deep)

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":bool"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return PlainLoader
