"""What a terminal would obey is written out, and all else stays."""

from hypothesis import given
from hypothesis import strategies as st

from defend.util.printable import escape


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text):
    said = escape(text)
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or one in "\u202a\u202e\u2066\u2028" for one in said)
    said.encode()
    assert escape(said) == said


def test_what_people_write_stays():
    for text in ("résumé.png", "مرحبا", "\U0001f469\u200d\U0001f52c", "r[/b]", "a\\b"):
        assert escape(text) == text
    assert (
        escape("a\x1b[31m\u202eb\udcff\n") == r"a\x1b[31m\u202eb\udcff\n" and escape("a\n\x07", keep="\n") == "a\n\\x07"
    )
