"""What the version before this one kept opens in this one.

``previous/`` was written by ``make_previous.py`` under the code of that version; ``facts.json``
says what was in it. When a version is released, it is written anew by that version, and by no
other. The bytes of the wire are held by tests/vectors, a store of a newer schema by tests/store.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.feed.documents import ProfilesDocument
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.queries import StatisticsClient
from interlatent_live.recordings import read_recording, recording_info
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.snapshot_folder import SnapshotFolder
from interlatent_live.store import ClaimFilter, open_store
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.wire.messages import FeaturesMessage, Hello
from tests.support.correlator_service import CorrelatorProcess
from tests.support.system import System, Walker

PREVIOUS = Path(__file__).parent / "previous"
FACTS = json.loads((PREVIOUS / "facts.json").read_text(encoding="utf-8"))


@pytest.fixture
def copy(tmp_path):
    """The old files, which a newer version may change."""
    return Path(shutil.copytree(PREVIOUS, tmp_path / "previous"))


def test_a_recording_is_read_and_gives_the_statistics_that_were_live():
    info = recording_info(PREVIOUS / "recording.mcap")
    assert info.complete
    assert sum(stream.rows for stream in info.streams.values()) == FACTS["rows"]
    core = CorrelatorCore(CorrelatorConfig(), clock=time.time_ns)
    for recorded in read_recording(PREVIOUS / "recording.mcap"):
        message = recorded.message
        if isinstance(message, Hello):
            core.hello(message.manifest)
        elif isinstance(message, FeaturesMessage):
            core.features(message.batch)
    (profiles,) = core.documents({}, everything=True)
    assert isinstance(profiles, ProfilesDocument)
    assert profiles.steps == FACTS["rows"]
    found = {str(one.index): one.density for one in profiles.features}
    assert {index: found[index] for index in FACTS["density"]} == FACTS["density"]


def test_a_store_is_migrated_and_keeps_its_claims(copy):
    store = open_store(f"sqlite:///{copy}/store.sqlite3")
    try:
        kept = store.claims(ClaimFilter(run_id=FACTS["run_id"]))
        assert len(kept) == FACTS["claims"]
        assert store.history(kept[0].id)["versions"]
    finally:
        store.close()


def test_a_correlator_goes_on_from_its_snapshot(copy):
    with CorrelatorProcess(**{"correlator.snapshots": str(copy / "snapshots")}) as correlator:
        endpoint = correlator.settings.endpoints.correlator_queries
        with StatisticsClient(endpoint) as ask:
            (hook_point,) = ask.hook_points(run=FACTS["run_id"]).items
    assert hook_point.source.rows == FACTS["rows"]


def test_a_transcoder_is_loaded_and_serves(copy):
    loaded = load_transcoder(copy / "transcoders" / FACTS["hook_point"])
    assert loaded.transcoder.config.n_features >= len(FACTS["density"])
    with System(**{"encoder.transcoders": [str(copy / "transcoders")]}) as system:
        with system.tap() as tap:
            Walker(tap).walk(200)
            run_id = tap.run_id
        system.wait(lambda state: state.settled(run_id))
        assert system.state.agent(run_id).steps_encoded == 200


@pytest.mark.parametrize("schema", [0, 2, None])
def test_a_snapshot_of_another_schema_is_refused_with_what_to_do(schema):
    (state,) = SnapshotFolder(PREVIOUS / "snapshots").newest(pytest.fail)
    state.meta["schema"] = schema
    with pytest.raises(UserError, match="delete it and replay the recording"):
        CorrelatorCore(CorrelatorConfig(), clock=time.time_ns).restore(state)


def test_a_transcoder_of_another_schema_is_refused_with_what_is_read_here(copy):
    folder = copy / "transcoders" / FACTS["hook_point"]
    about = folder / "transcoder.json"
    header = json.loads(about.read_text(encoding="utf-8"))
    about.write_text(json.dumps({**header, "schema": 99}), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="schema 99; this version reads schema 1"):
        load_transcoder(folder)
