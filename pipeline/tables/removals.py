"""Rows that have left the tables: which version of `segments` belongs to an older version of `images`.

Rows leave `images` first and `segments` second. A version of `images` from before that still names images whose
segments the newest version of `segments` has no more. So the commit that takes rows out of `images` notes which version
of `segments` was the newest then, and whoever reads an older version of `images` reads that version of `segments`.
"""

from deltalake import CommitProperties, DeltaTable

from pipeline.errors import RunError

_SEGMENTS_BEFORE = "m2f_segments_before"


def removal_properties(name: str, segments: DeltaTable | None) -> CommitProperties:
    """The properties of a commit that takes rows out of the table `name`. `segments` is the newest version."""
    if name != "images" or segments is None:
        return CommitProperties()
    return CommitProperties(custom_metadata={_SEGMENTS_BEFORE: str(segments.version())})


def segments_before_removal(images: DeltaTable, version: int) -> int | None:
    """The version of `segments` for a reader of this `version` of `images`, if rows have left `images` since.

    None if no rows have left: then the newest version of `segments` has all that the reader needs. `images` is the
    newest version of the table. RunError if the note of the removal is none.
    """
    commits = images.history(images.version() - version) if images.version() > version else []
    notes = [str(commit[_SEGMENTS_BEFORE]) for commit in commits if _SEGMENTS_BEFORE in commit]
    if not notes:
        return None
    if not notes[-1].isdecimal():  # the newest commit comes first
        raise RunError(f"the log of the table images has no version as {_SEGMENTS_BEFORE}: somebody has changed it")
    return int(notes[-1])
