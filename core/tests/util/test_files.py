"""Files appear whole or not at all; what cannot be written is one line, and what is left over goes."""

import errno
import os
import time
from pathlib import Path

import pytest

from defend.errors import WriteError
from defend.util import files
from defend.util.documents import digest, parse_json
from defend.util.files import atomic, check_writable, make_folder, sweep, write_text


def test_what_cannot_be_written_names_the_path_and_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=r"^records '.*a\.txt' cannot be written: No space left on device$"):
        write_text(path, "after", "records")
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"^folder '.*file/deep' cannot be made: Not a directory$"):
        make_folder(tmp_path / "file" / "deep")
    with pytest.raises(WriteError, match="cannot be made"):
        check_writable(tmp_path / "file" / "weights.safetensors")
    check_writable(tmp_path / "new" / "weights.safetensors")
    assert list((tmp_path / "new").iterdir()) == []


def test_only_what_atomic_left_and_what_is_old_is_swept(tmp_path):
    with atomic(tmp_path / "mine") as old:
        pass
    old.write_text("half")  # as kill -9 leaves it
    others = [tmp_path / name for name in (".film.mkv.part", "notes.part", ".mine.part", "mine")]
    for each in others:
        each.write_text("somebody's")
    sweep(tmp_path)
    assert old.exists(), "it may still be being written"
    past = time.time() - files.ABANDONED - 1
    for each in (old, *others):
        os.utime(each, (past, past))
    sweep(tmp_path, of="another")
    assert old.exists()
    sweep(tmp_path, of="mine")
    assert not old.exists() and all(each.exists() for each in others)
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": NaN}', '{"a": 1e999}', b"\xff\xfe{}", "9" * 5000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text, finite=True)


def test_a_digest_is_of_the_data_not_of_its_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_file_that_goes_away_while_it_is_looked_at_is_written(tmp_path, monkeypatch, looks):
    path, stat, seen = tmp_path / "kept", Path.stat, []
    path.write_text("old")

    def look(self, **given):
        found = stat(self, **given)
        if self == path:
            seen.append(self)
            if len(seen) == looks:
                path.unlink()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", look)
        write_text(path, "new", "text")
    assert path.read_text() == "new"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_replaced(make, tmp_path):
    """A rename would take the place of a device, /dev/null for one, for everybody on the machine."""
    path = tmp_path / "there"
    make(path)
    kind = path.stat().st_mode
    for write in (lambda: check_writable(path, "checks"), lambda: write_text(path, "text", "checks")):
        with pytest.raises(WriteError, match=r"^checks '.*there' cannot be written: "):
            write()
    assert path.stat().st_mode == kind
    assert os.listdir(tmp_path) == ["there"]
