"""What a recording says of the settings it was made under, as far as a replay depends on them.

Statistics and verdicts follow from the rows *and* from how they were counted: window lengths, draws
of the null, the calibration. The recorder writes these settings into each file, and a replay uses
them unless it is told otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.config import Resolved, Settings

SETTINGS: Final = "settings"
"""Key of the provenance."""
_KEPT: Final = (
    "correlator.depth",
    "correlator.pane_steps",
    "correlator.half_lives",
    "correlator.sliding",
    "correlator.slices",
    "correlator.drift",
    "correlator.drift_reference_panes",
    "correlator.drift_panes_to_false_alarm",
    "correlator.conformal",
    "correlator.conformal_rate",
    "correlator.conformal_block_steps",
    "explainer.calibration",
    "explainer.block_steps",
    "explainer.null_draws",
    "explainer.seed",
    "explainer.narrate_every_s",
    "explainer.narrate_gap_s",
    "limits.statistics_bytes",
    "limits.evidence_bytes",
)


def settings_text(settings: Settings) -> str:
    """The settings that a replay depends on, as JSON."""
    found = {}
    for name in _KEPT:
        section, key = name.split(".")
        value = getattr(getattr(settings, section), key)
        found[name] = str(value.resolve()) if isinstance(value, Path) else value
    return json.dumps(found)


def with_recorded(resolved: Resolved, provenance: Mapping[str, str]) -> Settings:
    """The settings, with what the recording was made under where nobody chose otherwise.

    A calibration that is not there any more is left out.
    """
    try:
        recorded = json.loads(provenance.get(SETTINGS, "{}"))
    except json.JSONDecodeError:
        recorded = {}
    settings = resolved.settings
    changes: dict[str, dict[str, Any]] = {}
    for name in _KEPT:
        if resolved.origin.get(name) != "default" or name not in recorded:
            continue
        value = recorded[name]
        if name == "explainer.calibration" and value is not None:
            if not Path(value).is_file():
                continue
            value = Path(value)
        section, key = name.split(".")
        changes.setdefault(section, {})[key] = tuple(value) if isinstance(value, list) else value
    update = {
        section: type(getattr(settings, section)).model_validate(
            getattr(settings, section).model_dump() | values
        )
        for section, values in changes.items()
    }
    return settings.model_copy(update=update)
