"""Plots as SVG that is the same whenever the data are; matplotlib is an extra and loaded here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def svg_plots(salt: str) -> Iterator[Any]:
    """Pyplot, set up so that names within the SVG follow from ``salt`` and not from chance.

    Raises:
        UserError: when matplotlib is missing.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra

        mpl.use("svg")
        from matplotlib import pyplot as plt  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise UserError(
            "the plot needs matplotlib: pip install 'interlatent-live[plots]'"
        ) from error
    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9.0}
    with mpl.rc_context(style):
        yield plt


def save_svg(figure: Any, path: Path, plt: Any) -> None:
    """Write a figure without the date, and let go of it."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
