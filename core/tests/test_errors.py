"""What is refused is told in one line."""

import pickle

import pytest

from defend.errors import DataError, UnknownNameError


@pytest.mark.parametrize("text", ["it holds x\ny", "it holds x\r\ny", "it holds x\x0by", "it holds x\u2028y"])
def test_an_error_is_one_line_whatever_it_quotes(text):
    assert str(DataError(text)) == "it holds x y"


def test_an_error_says_the_same_in_another_process():
    error = DataError("no such file")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "no such file"


def test_an_unknown_name_offers_the_nearest():
    assert "'blur'" in str(UnknownNameError("purifier", "blurr", ["blur", "jpeg"]))
