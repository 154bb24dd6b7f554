"""What may stand in the place of a weights file: the name of an edition, or "bare". Imports no torch."""

from __future__ import annotations

EDITION = "+"  # before the name of an edition: weights of the same stage and data set, trained with other options
BARE = "bare"  # a victim that was tuned alone, though it stands behind a purifier now


def edition_of(explicit: str | None) -> str:
    """Return the edition that "+EDITION" or "bare+EDITION" asks for in the place of a file, "" for anything else."""
    before, _, edition = (explicit or "").partition(EDITION)
    return edition if before in ("", BARE) else ""


def is_bare(explicit: str | None) -> bool:
    """Whether "bare" or "bare+EDITION" asks for a victim that was tuned alone."""
    return (explicit or "").partition(EDITION)[0] == BARE


def is_file(explicit: str | None) -> bool:
    """Whether what is asked for is a file, and no kind of weights: "+EDITION", "bare", "bare+EDITION"."""
    return explicit is not None and explicit != BARE and not edition_of(explicit)


def tuned_behind(purifier: str | None, explicit: str | None) -> str | None:
    """Return what stood before the victim while it was tuned: the purifier, or nothing where "bare" is asked for."""
    return None if is_bare(explicit) else purifier
