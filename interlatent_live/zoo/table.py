"""One table over the zoo, from the committed reports; a test holds the README's to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = (
    "| entry | verified, of eligible | best control | FVU | affine | return kept | same | tap |",
    "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
)


def zoo_table(folder: Path) -> str:
    """Markdown, one row per entry and hook point.

    Verified share on later episodes, beside the largest share of a control at the same densities;
    FVU beside that of an affine map; the share of the return, above what ablating the hook point
    leaves, that the policy keeps through the transcoder, and whether behaviour is shown to be the
    same (TOST); what the tap adds to a policy step.

    Raises:
        UserError: when the folder holds no report.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder} holds no report; `interlatent-live zoo report NAME` writes one")
    rows = [row for file in files for row in _rows(json.loads(file.read_text(encoding="utf-8")))]
    return "\n".join([*HEAD, *rows])


def _rows(made: dict[str, Any]) -> list[str]:
    if "judged" not in made:
        return []
    rows, live = [], made["live"]
    for hook, judged in made["judged"].items():
        claims = judged["claims"]
        controls = [one["share"] for one in claims["controls"] if one["share"] is not None]
        fidelity = made["fidelity"].get(hook)
        median = {} if fidelity is None else fidelity["median"]
        fvu, affine = median.get("fvu"), median.get("fvu_affine")
        equivalent = median.get("equivalent")
        rows.append(
            f"| [{made['name']}](docs/zoo/{made['name']}.md) `{hook}` | "
            f"{_percent(claims['share'])} of {claims['eligible']} | "
            f"{_percent(max(controls, default=None))} | {_figure(fvu)} | {_figure(affine)} | "
            f"{_percent(median.get('kept'))} | "
            f"{'–' if equivalent is None else 'yes' if equivalent else 'not shown'} | "
            f"{'–' if live is None else '{:.0f} µs'.format(live['tap_overhead_us'])} |"
        )
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
