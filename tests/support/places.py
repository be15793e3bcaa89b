"""Where the checkout lies, and the data folder beside it that a user's machine does not have."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
