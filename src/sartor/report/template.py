# SPDX-License-Identifier: Apache-2.0
"""How pages are made: one HTML file that holds styles, figures and scripts, and the words for its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sartor.report.diagram import spoken
from sartor.report.palette import DARK, LIGHT

Figures = Mapping[str, Mapping[str, Any]]


def rendered(
    template: str,
    figures: Figures,
    *,
    package: str = "sartor.report",
    light: Mapping[str, str] | None = None,
    dark: Mapping[str, str] | None = None,
    **values: Any,
) -> str:
    """Return the page that `template` of `package` gives; it extends `base.html.jinja`.

    figures: Plotly values by the id of the element that they are drawn in; colours are roles, written "@role".
    light, dark: roles beside those of the palette.
    values: what the template uses by name.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(one, ".") for one in dict.fromkeys([package, "sartor.report"])]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(
        figures=figures,
        light=LIGHT | {**(light or {})},
        dark=DARK | {**(dark or {})},
        plotly=Markup(get_plotlyjs()),
        **values,
    )


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def _signed(value: float, digits: int = 2) -> str:
    # A zero carries no sign, and a minus is as wide as a plus.
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "\N{MINUS SIGN}")


def _significant(value: float, digits: int = 3) -> str:
    """Return `value` with so many significant digits and no exponent."""
    if not value:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:,.{decimals}f}"


def _scaled(value: float) -> str:
    """Return a large count as 12.3 k, 4.56 M or 1.20 G."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{_significant(value / scale)} {unit}"
    return f"{value:.0f}"


def _amount(value: int) -> str:
    """Return a count in words: 1.35 billion; beyond what has a common name, as a power of ten."""
    for scale, name in ((10**15, ""), (10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if value >= scale and not name:
            return f"10{str(len(str(value)) - 1).translate(SUPERSCRIPT)}"
        if value >= scale:
            return f"{_significant(value / scale)} {name}"
    return f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


SUPERSCRIPT = str.maketrans("0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
FILTERS = {
    "percent": _percent,
    "signed": _signed,
    "sig": _significant,
    "scaled": _scaled,
    "amount": _amount,
    "duration": _duration,
    "spoken": spoken,
}
