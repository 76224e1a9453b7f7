"""How methods look in a figure: colours that colour-blind readers and grey printers tell apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

from student_trainer.reporting.grid import Panel


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours of paper and ink."""

    name: str
    paper: str
    ink: str
    soft: str
    line: str
    colours: tuple[str, ...]


# Okabe and Ito's colours without black and without yellow, which is invisible on paper; order: neighbours differ most.
LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2330",
    soft="#6b7484",
    line="#d9dee7",
    colours=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
)
DARK = Theme(
    name="dark",
    paper="#141924",
    ink="#e6eaf2",
    soft="#98a2b5",
    line="#333c4d",
    colours=("#4BA3E3", "#FF8A3D", "#2CC79A", "#E59BC4", "#F2B632", "#9AD4FF"),
)

MARKERS = "oD^svP"
CONTROL_DASHES = ((0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1.2)), (0, (9, 3)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """One line of a figure."""

    colour: str
    marker: str
    filled: bool
    dashes: str | tuple[int, tuple[float, ...]]
    width: float
    """Of the line, in points."""


def styles(panel_methods: Mapping[str, str], *, labels_only: frozenset[str], theme: Theme) -> dict[str, Style]:
    """A style per method, given their groups: losses in colour, controls grey and dashed, labels alone dotted."""
    colours = cycle([(colour, filled) for filled in (True, False) for colour in theme.colours])
    markers, dashes = cycle(MARKERS), cycle(CONTROL_DASHES)
    found = {}
    for method, group in panel_methods.items():
        marker = next(markers)
        if group == "control":
            found[method] = Style(colour=theme.soft, marker=marker, filled=False, dashes=next(dashes), width=1.1)
        elif method in labels_only:
            found[method] = Style(colour=theme.ink, marker=marker, filled=True, dashes=":", width=1.6)
        else:
            colour, filled = next(colours)
            found[method] = Style(colour=colour, marker=marker, filled=filled, dashes="-", width=1.6)
    return found


def panel_styles(panels: tuple[Panel, ...], *, theme: Theme) -> dict[str, Style]:
    """The same style for a method in every panel."""
    # Only losses can be controls: a view is one in the panel of a control, and a loss in the next.
    groups = {
        method: panel.group(method) if panel.axis == "loss" else "loss" for panel in panels for method in panel.methods
    }
    asking = {method for panel in panels for method in panel.methods if panel.asks(method)}
    return styles(groups, labels_only=frozenset(groups.keys() - asking), theme=theme)


def reference_style(theme: Theme) -> Style:
    """A line across: it has no points."""
    return Style(colour=theme.ink, marker="", filled=True, dashes="-", width=0.9)
