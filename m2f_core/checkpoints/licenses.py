"""The licence of a checkpoint's weights, as stated in its files.

This is not legal advice: a file's statement may be wrong, and this code only reads it. Does not import torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from m2f_core.checkpoints.checkpoint import CONFIG_FILE, Checkpoint
from m2f_core.checkpoints.zoo import zoo_task
from m2f_core.families import mask2former
from m2f_core.families.registry import FAMILIES

UNKNOWN = "unknown"
ZOO_LICENSE = mask2former.FAMILY.license  # of all files that `zoo_task` knows, MaskFormer's included
CARD_FILE = "README.md"
# What is read of a card. Its front matter comes first; longer lines are none of ours, and would cost the pattern time.
CARD_CHARACTERS, LINE_CHARACTERS = 65_536, 500
# "*+" does not try again with fewer characters: a line of spaces took time in proportion to its third power.
_ENTRY = re.compile(r"(license|license_name)\s*+:\s*+(['\"]?)([^'\"#]+)\2\s*+(#.*)?")


def model_license(checkpoint: Checkpoint, name: str = "") -> str:
    """The licence of a checkpoint; `unknown` if no source states it.

    The sources, in this order: the key `license` of config.json; the front matter of the model card README.md; the list
    of published checkpoints, matched by the file's name or the name on the hub (`name`, or the one in config.json).
    """
    if checkpoint.pickle is not None:
        return UNKNOWN if zoo_task(checkpoint.pickle) is None else ZOO_LICENSE
    config = checkpoint.config_dict if (checkpoint.path / CONFIG_FILE).is_file() else {}
    entries = (config.get("license"), _of_card(checkpoint.path / CARD_FILE))
    stated = [entry for entry in entries if isinstance(entry, str) and entry]
    for entry in stated:
        if entry not in ("other", UNKNOWN):
            return entry
    of_type = [family for family in FAMILIES if config.get("model_type") in family.model_types]
    for known in (name, str(config.get("_name_or_path", ""))):
        for family in of_type or FAMILIES:
            if known.startswith(family.hub_names):
                return family.license
    return stated[0] if stated else UNKNOWN


def _of_card(card: Path) -> str | None:
    """`license_name` (if `license` is "other") or `license` in the YAML between the card's first two `---` lines."""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            lines = iter(file.read(CARD_CHARACTERS).splitlines())
    except OSError:
        return None
    if next(lines, "").strip() != "---":
        return None
    entries: dict[str, str] = {}
    for line in lines:
        if line.strip() == "---":
            return entries.get("license_name") or entries.get("license")
        if len(line) <= LINE_CHARACTERS and (match := _ENTRY.fullmatch(line)):
            entries[match[1]] = match[3].strip()
    return None
