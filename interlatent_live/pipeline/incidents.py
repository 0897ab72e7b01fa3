"""Incidents in a recording: the analysis that a running explainer offers, without one.

A recording has rows but no claims; what is said of its features comes from whoever has kept it, by
address, since a transcoder's hash is part of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError
from interlatent_live.explanations.incident import KnownClaim, analyse_incident, small_enough
from interlatent_live.pipeline.calibration import load_calibration
from interlatent_live.store import ClaimFilter
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.store import ClaimRow, ClaimStore

PAGE = 500


def recorded_incidents(
    file: Path,
    episode: int,
    *,
    env: int = 0,
    steps: Callable[[float | None], int] = lambda _: 100,
    hook_point: str = "",
    store: ClaimStore | None = None,
) -> dict[str, Any]:
    """What was unusual at the end of an episode, as the console's ``/incidents`` tells it.

    Args:
        file: a recording of features.
        episode: its number within the copy.
        env: copy of the environment.
        steps: how many steps before the end to look at, given the control rate in Hz.
        hook_point: only this one; empty: all in the file.
        store: where claims are kept; ``None``: nothing is known of the features.

    Raises:
        UserError: when file, hook point or episode are not there, or nothing is left to compare.
    """
    recorded = load_calibration(file)
    if hook_point:
        names = ", ".join(one.evidence.hook_point for one in recorded)
        recorded = [one for one in recorded if one.evidence.hook_point == hook_point]
        if not recorded:
            raise UserError(f"{file} has no hook point {hook_point!r}; it has {names}")
    manifest = recorded[0].manifest
    window = steps(manifest.control_hz)
    found = []
    for one in recorded:
        evidence = small_enough(one.evidence, env=env, episode=episode)
        known = {} if store is None else _known(store, manifest.run_id, evidence)
        incident = analyse_incident(evidence, env=env, episode=episode, claims=known, window=window)
        found.append(incident.to_json())
    return {"run_id": manifest.run_id, "control_hz": manifest.control_hz, "items": found}


def _known(store: ClaimStore, run_id: str, evidence: Evidence) -> Mapping[int, KnownClaim]:
    """What this very run's claims say, or else the newest of any run with the same transcoder."""
    found: dict[int, ClaimRow] = {}
    for wanted in (
        ClaimFilter(run_id=run_id, hook_point=evidence.hook_point),
        ClaimFilter(hook_point=evidence.hook_point),
    ):
        after = ""
        while rows := store.claims(wanted, after=after, limit=PAGE):
            after = rows[-1].id
            for row in rows:
                address = FeatureAddress.parse(row.address)
                if address.transcoder_hash != evidence.transcoder_hash:
                    continue
                older = found.get(row.feature)
                if older is None or row.updated_ns > older.updated_ns:
                    found[row.feature] = row
        if found:
            break
    return {
        feature: KnownClaim(row.document["label"], row.verdict, row.document["predicate"])
        for feature, row in found.items()
        if row.verdict != "abstained"
    }
