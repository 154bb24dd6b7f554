"""The codes that `defend` exits with; 0 is done."""

INTERNAL, WRONG_INPUT, GATE, INTERRUPTED = 1, 2, 3, 130
