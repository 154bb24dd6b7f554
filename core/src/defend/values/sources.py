"""A data set as the user names it: by its own name, as a folder or a file, or from the hub. Without torch."""

from __future__ import annotations

import os

from defend.errors import ConfigError

FOLDER, ARRAYS, HUB = "imagefolder", "arrays", "hf"
TABLES = (".csv",)
ARRAY_FILES = (".npz", ".npy")


def name_source(name: str | os.PathLike[str], data_dir: str | None = None) -> tuple[str, str | None]:
    """Return a data set's own name, and where its files lie, for what the user typed.

    A folder (with a separator in it, "./pets" too, or "." or "~") and a .csv are an `imagefolder`, .npz and .npy are
    `arrays`, "hf:NAME" is `hf`; anything else is a name. What comes back comes back unchanged.

    Raises:
        ConfigError: a folder or file, and another one beside it; or neither a text nor a path.
    """
    if isinstance(name, os.PathLike):
        name = os.path.join(".", os.fspath(name))
    if not isinstance(name, str):
        raise ConfigError(
            f"dataset is {type(name).__name__}, expected a name or a path: hand images over as run(..., dataset=...)"
        )
    if name.startswith(f"{HUB}:"):
        kind, place = HUB, name.removeprefix(f"{HUB}:")
        if not place:
            raise ConfigError(f"dataset {name!r} names nothing: expected hf:NAME, for example hf:ylecun/mnist")
    elif not is_path(name) or name.rpartition(":")[0].endswith(".py"):  # a reference, see `defend.values.references`
        return name, data_dir
    else:
        kind, place = ARRAYS if name.lower().endswith(ARRAY_FILES) else FOLDER, os.path.expanduser(name)
    if data_dir is not None and data_dir != place:
        raise ConfigError(f"dataset {name!r} says where its images are, and --data-dir {data_dir!r} too: leave one out")
    return kind, place


def is_path(name: str) -> bool:
    """Whether what was named as a data set is a folder or a file."""
    separators = {os.sep, os.altsep or os.sep}
    return (
        any(each in name for each in separators)
        or name.startswith((".", "~"))
        or name.lower().endswith(TABLES + ARRAY_FILES)
    )
