"""The ladder: what each attacker leaves, from the weakest to the strongest, without and with the defence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from defend.records.run import Results, name_row
from defend.report.figures.scene import (
    SMALL,
    LegendLine,
    Mark,
    Plot,
    Scene,
    Shape,
    Text,
    fit_text,
    legend,
    link_to,
    percent_ticks,
    rectangle,
    text_width,
)
from defend.report.text import beside, bound, percent, with_interval
from defend.values.report import LeastRow, Row
from defend.values.threats import knows_the_defence

WIDE, NARROW = 720.0, 344.0
BAR, PITCH, GAP = 9.0, 13.0, 9.0
VALUES = 124.0  # the column of figures at the right
ASIDE = "\N{DAGGER}"  # beside rows that the worst case leaves out
LABELS = (90.0, 290.0)  # the column of names at the left: at least and at most


@attrs.frozen(kw_only=True)
class Bar:
    """One accuracy, a fraction, with its 95 % interval where it has one; `loose` as of a row, `Row.is_loose`.

    `undercut_by` as of a worst case.
    """

    accuracy: float
    ci95: tuple[float, float] | None
    role: str
    loose: bool = False
    undercut_by: LeastRow | None = None

    @property
    def text(self) -> str:
        """The figure in percent; two have no room for an interval, which is drawn."""
        ci95 = None if self.undercut_by else self.ci95
        return bound(self.loose) + with_interval(self.accuracy, ci95) + beside(self.undercut_by)


@attrs.frozen(kw_only=True)
class Group:
    """Bars under one name; `heading` begins a part of the chart. `link` and `heading_link` as of a `scene.Text`."""

    name: str
    note: str
    bars: tuple[Bar, ...]
    heading: str = ""
    bold: bool = False
    link: str = ""
    heading_link: str = ""


def ladder(results: Results, narrow: bool = False, place: int = 1) -> Scene:
    """Return the ladder of the page's run number `place`; `narrow` for a phone, with the names above their bars."""
    groups = list(_groups(results, place))
    return bars(groups, name="ladder", says=_said(results), entries=_entries(results), narrow=narrow)


def _entries(results: Results) -> list[LegendLine]:
    bare = LegendLine(text="undefended", role="bare", box=0.25)
    return [bare, LegendLine(text="defended", role="defended", box=1)] if results.defended else [bare]


def _groups(results: Results, place: int) -> Iterator[Group]:
    previous = "none"
    for row in results.ladder:
        heading = row.threat if row.threat != previous else ""
        previous = row.threat
        loose = row.is_loose(results.defended)
        bare = Bar(
            accuracy=row.undefended.accuracy,
            ci95=row.undefended.ci95,
            role="bare",
            loose=loose and not results.defended,
        )
        shown = [bare]
        if results.defended:
            shown = [] if knows_the_defence(row.threat) else shown
            shown.append(Bar(accuracy=row.defended.accuracy, ci95=row.defended.ci95, role="defended", loose=loose))
        yield Group(
            name=_label(row),
            note=f"n={row.n}{'*' if row.partial else ''}",
            bars=tuple(shown),
            heading=heading,
            heading_link=link_to(row.threat, place),
        )
    worst = results.report.worst_case
    if worst is not None:
        blocked = " (blocked)" if results.report.failed else ""
        role = "defended" if results.defended else "bare"
        held = Bar(
            accuracy=worst.accuracy,
            ci95=worst.ci95,
            role=role,
            loose=bool(worst.rising),
            undercut_by=worst.undercut_by,
        )
        shown = [held]
        if results.defended:
            shown.insert(0, Bar(accuracy=worst.undefended, ci95=None, role="bare"))
        name = f"worst case{blocked}"
        yield Group(name=name, note=f"n={worst.n}", bars=tuple(shown), heading="per image", bold=True)


def _label(row: Row) -> str:
    what = f"{name_row(row)} (L2)" if row.norm == "l2" else name_row(row)
    return what if row.headline else f"{what} {ASIDE}"


def _said(results: Results) -> str:
    rows = [
        f"{_label(row)}{'' if row.threat == 'none' else f', {row.threat}'}: " + _in_words(results, row)
        for row in results.ladder
    ]
    worst = results.report.worst_case
    if worst is not None:
        rows.append(f"worst case: {bound(worst.rising)}{percent(worst.accuracy)}{beside(worst.undercut_by)}")
    return "Bar chart of accuracy in percent. " + "; ".join(rows) + "."


def _in_words(results: Results, row: Row) -> str:
    loose = bound(row.is_loose(results.defended))
    bare, defended = percent(row.undefended.accuracy), loose + percent(row.defended.accuracy)
    if not results.defended:
        return loose + bare
    return f"defended {defended}" if knows_the_defence(row.threat) else f"undefended {bare}, defended {defended}"


def bars(groups: Sequence[Group], *, name: str, says: str, entries: Sequence[LegendLine], narrow: bool) -> Scene:
    """Return a horizontal bar chart of accuracies, with their intervals as whiskers and their figures beside them."""
    width = NARROW if narrow else WIDE
    labels = 0.0
    if not narrow:
        wanted = max(text_width(f"{group.name} {group.note}", SMALL) + 16 for group in groups)
        labels = min(max(wanted, LABELS[0]), LABELS[1])
    left, right = labels + 4, width - VALUES
    marks, y = legend(entries, left, 0, width - left)
    top = y = y + 4
    drawn: list[Mark] = []
    for group in groups:
        if group.heading:
            y += GAP
            drawn.append(Text(x=0, y=y, text=group.heading, role="muted", bold=True, link=group.heading_link))
            drawn.append(Shape(points=((0, y + 9), (width, y + 9)), stroke="rule"))
            y += 18
        height = PITCH * len(group.bars)
        label = y + 6 if narrow else y + height / 2 - 1
        room = (width if narrow else labels) - text_width(group.note, SMALL) - 12
        shown = fit_text(group.name, SMALL, room)
        # bold letters are wider
        at = text_width(shown, SMALL) * (1.08 if group.bold else 1) + 6
        drawn.append(Text(x=0, y=label, text=shown, bold=group.bold, link=group.link))
        drawn.append(
            Text(
                x=at if narrow else labels - 6,
                y=label,
                text=group.note,
                role="muted",
                anchor="start" if narrow else "end",
            )
        )
        y += 17 if narrow else 0
        plot = Plot(left=left, top=y, width=right - left, height=height)
        for place, bar in enumerate(group.bars):
            drawn += _bar(plot, bar, y + PITCH * place, width, group.bold)
        y += height + GAP
    grid = Plot(left=left, top=top, width=right - left, height=y - top - 2)
    marks += _grid(grid)
    return Scene(name=name, says=says, width=width, height=y + 36, marks=(*marks, *drawn))


def _bar(plot: Plot, bar: Bar, y: float, width: float, bold: bool) -> Iterator[Mark]:
    length = plot.width * bar.accuracy
    opacity = 0.25 if bar.role == "bare" else 1
    # 0 % shows as a thin line
    yield rectangle(plot.left, y, max(length, 0.5), BAR, fill=bar.role, stroke=bar.role, opacity=opacity)
    if bar.ci95 is not None:
        low, high = (plot.left + plot.width * end for end in bar.ci95)
        middle = y + BAR / 2
        yield Shape(points=((low, middle), (high, middle)), stroke="ink", width=1.2)
        for end in (low, high):
            yield Shape(points=((end, middle - 3), (end, middle + 3)), stroke="ink", width=1.2)
    yield Text(
        x=width, y=y + BAR / 2, text=bar.text, anchor="end", bold=bold, role="muted" if bar.role == "bare" else "ink"
    )


def _grid(plot: Plot) -> Iterator[Mark]:
    for value, text in percent_ticks().items():
        x, bottom = plot.at(value, 0)
        yield Shape(points=((x, plot.top), (x, bottom)), stroke="rule")
        yield Text(x=x, y=bottom + 11, text=text, role="muted", anchor="middle")
    yield Text(x=plot.left + plot.width / 2, y=plot.top + plot.height + 27, text="accuracy in %", anchor="middle")
