"""A scene as SVG inside the page: colours are the page's CSS variables, text is text."""

from __future__ import annotations

import base64
import io
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from defend.report.figures.scene import Picture, Scene, Shape, Text


def to_svg(scene: Scene) -> Markup:
    """Return the scene as one `<svg>`, as wide as its container at most; a group where it has links, else an image."""
    size = f"{scene.width:g} {scene.height:g}"
    # what stands inside an image is hidden from screen readers, its links too
    role = "group" if any(isinstance(mark, Text) and mark.link for mark in scene.marks) else "img"
    parts = [
        f'<svg role="{role}" aria-label={quoteattr(scene.says)} viewBox="0 0 {size}" '
        f'width="{scene.width:g}" height="{scene.height:g}">'
    ]
    draw: dict[type, Any] = {Shape: _shape, Text: _text, Picture: _picture}
    parts += [draw[type(mark)](mark) for mark in scene.marks]
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 (every text in it is escaped here)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Return pixels, uint8 [H,W] or [H,W,3], as a data URI of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _shape(shape: Shape) -> str:
    points = " ".join(f"{_number(x)},{_number(y)}" for x, y in shape.points)
    style = [f'fill="{f"var(--{shape.fill})" if shape.fill else "none"}"']
    if shape.fill and shape.opacity < 1:
        style.append(f'fill-opacity="{shape.opacity:g}"')
    if shape.stroke:
        style.append(f'stroke="var(--{shape.stroke})"')
        if shape.width != 1:
            style.append(f'stroke-width="{shape.width:g}"')
    if shape.dash:
        style.append(f'stroke-dasharray="{" ".join(f"{length:g}" for length in shape.dash)}"')
    return f'<{"polygon" if shape.closed else "polyline"} points="{points}" {" ".join(style)}/>'


def _text(text: Text) -> str:
    x, y = _number(text.x), _number(text.y)
    style = [f'font-size="{text.size:g}"', f'fill="var(--{text.role})"']
    if text.anchor != "start":
        style.append(f'text-anchor="{text.anchor}"')
    if text.bold:
        style.append('font-weight="600"')
    if text.turned:
        style.append(f'transform="rotate(-90 {x} {y})"')
    shown = f'<text x="{x}" y="{y}" dy=".35em" {" ".join(style)}>{escape(text.text)}</text>'
    return f"<a href={quoteattr(f'#{text.link}')}>{shown}</a>" if text.link else shown


def _picture(picture: Picture) -> str:
    box = " ".join(f'{name}="{_number(getattr(picture, name))}"' for name in ("x", "y", "width", "height"))
    return f'<image {box} preserveAspectRatio="none" class="pixels" href="{png_uri(picture.pixels)}"/>'
