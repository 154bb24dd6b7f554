"""A test that a model is robust enough: for a user's own suite, with pytest or without."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defend.session.evaluate import Evaluation


def assert_robust(model: Any, data: Any, *, at_least: float, **settings: Any) -> Evaluation:
    """Attack a model and require that its worst case leaves enough; what could not be measured is not robust.

    Take a budget at which the model loses images: where an attack on a bare model finds nothing, nobody knows whether
    it works, and a check fails.

    Args:
        model, data: as in `defend.evaluate`.
        at_least: the share of images that must be right in every row, for example 0.3.
        settings: all else that `defend.evaluate` takes: purifier=..., eps="8/255", threats="ladder", limit=200, ...

    Returns:
        The evaluation.

    Raises:
        AssertionError: less is left, a check failed, or the evaluation was cut off; the message has the table.
        UserWarning: enough is left, by a figure that more steps would plainly lower, or to attackers who did
            not know of the defence.
        ConfigError: `at_least` is no share, or a setting is not accepted, as checks="none".
    """
    from defend.errors import ConfigError
    from defend.session.evaluate import evaluate
    from defend.values.floors import BOUND, left_of_worst

    if isinstance(at_least, bool) or not isinstance(at_least, (int, float)) or not 0 <= at_least <= 1:
        raise ConfigError(f"at_least={at_least!r} is not a share: expected 0 to 1, for example 0.3")
    if settings.get("checks") == "none":
        raise ConfigError(
            "checks='none': without checks an attack that does not work passes for a model that is robust"
        )
    found = evaluate(model, data, **{"progress": False, **settings})
    worst = found.worst_case
    why = ""
    if found.partial:
        why = "the evaluation was cut off"
    elif found.failed:
        why = f"a check failed ({', '.join(f'{check.number} {check.name}' for check in found.failed)})"
    elif worst is None:
        why = "no attack was run that counts"
    else:
        left = left_of_worst(worst)
        said = f"the worst case leaves {left.against(at_least)}"
        if left.accuracy < at_least:
            why = said
        elif doubts := [*[BOUND] * left.loose, *found.report.caveats]:
            warnings.warn(f"{said}: {', and '.join(doubts)}", stacklevel=2)
    if why:
        raise AssertionError(f"{why}\n\n{found}")
    return found
