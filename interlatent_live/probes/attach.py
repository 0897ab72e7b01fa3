"""The next version of a transcoder, with probes as its last features.

A probe that lies in a folder of its own helps nobody who watches an agent. Attached, it is encoded,
recorded, counted and shown by whatever handles features. Its name travels in ``transcoder.json``,
because a feature's number does not say what a person asked the probe to tell.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import msgspec

from interlatent_live.errors import MismatchError, UserError
from interlatent_live.probes.probe import append_probes
from interlatent_live.transcoders.native import LoadedTranscoder, ProbeFeature, save_transcoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interlatent_live.probes.probe import LinearProbe


def attach_probes(
    old: LoadedTranscoder, probes: Sequence[LinearProbe], out: Path, *, command: str = ""
) -> LoadedTranscoder:
    """Save ``old`` with one more feature per probe: F, F + 1, …, in the order given.

    The features before them, the reconstruction and the evaluation stay as they are; the identity
    is another, as it is of every version.

    Args:
        old: as loaded.
        probes: each on the same policy, reading the transcoder's own input x.
        out: directory of the new version; must not be that of the old.
        command: for the provenance.

    Raises:
        MismatchError: when a probe belongs to another policy or hook point, or ``out`` is the old
            version's directory.
        UserError: when there is no probe, a target is attached twice, or a probe reads y or the
            architecture cannot take it (see :func:`append_probes`).
    """
    provenance, first = old.provenance, old.transcoder.config.n_features
    if not probes:
        raise UserError("no probe was given; name at least one folder that `probe train` wrote")
    if out.resolve() == old.path.resolve():
        raise MismatchError(
            f"{out} holds version {provenance.version}, whose labels are in use; save the new "
            "version elsewhere"
        )
    taken = {one.target for one in provenance.probes}
    for probe in probes:
        target = str(probe.target)
        if probe.policy_hash != provenance.policy_hash:
            raise MismatchError(
                f"the probe for {target!r} was trained on policy {probe.policy_hash}, the "
                f"transcoder on {provenance.policy_hash}; train the probe on that policy"
            )
        # A span's input is the input of its first module.
        if probe.hook_point not in (provenance.hook_point, provenance.hook_point.split("..")[0]):
            raise MismatchError(
                f"the probe for {target!r} reads {probe.hook_point!r}, the transcoder encodes "
                f"{provenance.hook_point!r}; train the probe there, with --side x"
            )
        if target in taken:
            raise UserError(
                f"a probe for {target!r} is attached already; attach the new one to the version "
                "without it"
            )
        taken.add(target)
    served = append_probes(old.transcoder, probes)
    named = tuple(
        ProbeFeature(
            feature=first + position,
            name=f"probe: {probe.target}",
            target=str(probe.target),
            threshold=probe.threshold,
        )
        for position, probe in enumerate(probes)
    )
    written = msgspec.structs.replace(
        provenance,
        probes=(*provenance.probes, *named),
        version=provenance.version + 1,
        parent=old.transcoder.identity,
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    return LoadedTranscoder(served, written, save_transcoder(out, served, written))
