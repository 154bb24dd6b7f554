"""One process at a time in a folder."""

import errno
import fcntl
import multiprocessing
import os

import pytest

from defend.errors import BusyError, DefendError
from defend.util.lock import NAME, hold


def test_a_second_one_is_refused_and_told_by_whom(tmp_path):
    with (
        hold(tmp_path, "run folder 'r'", "name another"),
        pytest.raises(BusyError, match=rf"run folder 'r' is in use by process {os.getpid()} on .* since .*: name anot"),
        hold(tmp_path, "run folder 'r'", "name another"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_dead_process_left_is_no_lock(tmp_path):
    held = multiprocessing.get_context("fork").Process(target=_die_holding, args=(tmp_path,))
    held.start()
    held.join()
    assert (tmp_path / NAME).exists()
    with hold(tmp_path, "it", "wait"):
        assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    assert not list(tmp_path.iterdir())


def _die_holding(folder):
    with hold(folder, "it", "wait"):
        os._exit(1)


def test_it_is_free_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold(tmp_path, "it", "wait"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="it cannot be locked here"), hold(tmp_path, "it", "wait"):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    what = "folder 'x'"
    (tmp_path / NAME).mkdir()
    with pytest.raises(DefendError, match=f"{what} cannot be written to: Is a directory"), hold(tmp_path, what, ""):
        pass
