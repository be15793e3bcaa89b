"""Under which licence a checkpoint's weights are, as far as its files say.

Not legal advice: what a file says may be wrong, and this finds out no more than that. No torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from m2f_core.checkpoint import CONFIG_FILE, find_pickle, read_config

UNKNOWN = "unknown"
ZOO_LICENSE = "CC BY-NC 4.0"  # of every checkpoint that Mask2Former's authors have published, in either format
CARD_FILE = "README.md"
PUBLISHED_ON_HUB = "facebook/mask2former-"

# The six digits in model_final_*.pkl of Mask2Former's model zoo, images only; docs/checkpoints.md says which is which.
_COCO = "94dc52 b807bd 9fd0ae a407fd 9d7f02 54b88a f07440 3c8ec9 eba159 86143f 1e7f22 f6e0f6 83d103 e5f453"
_CITYSCAPES = "4ab90c 04d286 ceba0f 23efb7 fa840f 064788 01a8ed c2b8c8 6a63f8 974824 7a3b6d dfa862"
_CITYSCAPES_SEMANTIC = "cc1b1f 257ce8 2d58d4 fa26ae 1c6b65 17c1ee"
_ADE20K = "5c90d4 e0c58e 67e945 92dae9 500878 0d68be 5274a6 011c6d 503e96 7e47bf 6b4a3a"
_MAPILLARY = "4e9874 132c71 6c66d0 90ee2d"
ZOO_FILES = frozenset(" ".join((_COCO, _CITYSCAPES, _CITYSCAPES_SEMANTIC, _ADE20K, _MAPILLARY)).split())


def is_of_zoo(pickled: Path) -> bool:
    """Whether a `.pkl` has the name of a published one."""
    digits = re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", pickled.name)
    return digits is not None and digits[1] in ZOO_FILES


def model_license(path: str | Path, name: str = "") -> str:
    """The licence of the checkpoint at `path`; `unknown` where nothing says it.

    In this order: the key `license` of config.json; the front matter of the model card README.md; that the checkpoint
    is one of the published ones, by its file's name, or by its name on the hub (`name`, or as config.json has it).
    """
    path = Path(path)
    if (pickled := find_pickle(path)) is not None:
        return ZOO_LICENSE if is_of_zoo(pickled) else UNKNOWN
    config = read_config(path) if (path / CONFIG_FILE).is_file() else {}
    entries = (config.get("license"), _of_card(path / CARD_FILE))
    stated = [entry for entry in entries if isinstance(entry, str) and entry]
    for entry in stated:
        if entry not in ("other", UNKNOWN):
            return entry
    if any(known.startswith(PUBLISHED_ON_HUB) for known in (name, str(config.get("_name_or_path", "")))):
        return ZOO_LICENSE
    return stated[0] if stated else UNKNOWN


def _of_card(card: Path) -> str | None:
    """`license_name` (where `license` is "other") or `license` of the YAML between the card's first two `---` lines."""
    try:
        lines = iter(card.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return None
    if next(lines, "").strip() != "---":
        return None
    entries: dict[str, str] = {}
    for line in lines:
        if line.strip() == "---":
            return entries.get("license_name") or entries.get("license")
        if match := re.fullmatch(r"(license|license_name)\s*:\s*(['\"]?)([^'\"#]+?)\2\s*(#.*)?", line):
            entries[match[1]] = match[3].strip()
    return None
