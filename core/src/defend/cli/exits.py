"""The codes that `defend` exits with; 0 is done."""

from defend.util.interrupts import INTERRUPTED as INTERRUPTED

INTERNAL, WRONG_INPUT, GATE = 1, 2, 3
