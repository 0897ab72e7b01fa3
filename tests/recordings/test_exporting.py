from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.errors import UserError
from interlatent_live.recordings import exporting
from interlatent_live.recordings.exporting import export_rows
from interlatent_live.recordings.playing import Selection
from interlatent_live.stream import Manifest, MetricSpec
from tests.recordings.test_playing import write
from tests.support.feature_stream import HOOK, START_NS, manifest

parquet = pytest.importorskip("pyarrow.parquet")


def other():
    one = manifest("rover", "boot-2", "run-2")
    metrics = (*one.metrics[:3], MetricSpec("slope", "rad"))
    values = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return Manifest(**(values | {"metrics": metrics}))


@pytest.mark.parametrize("group", [7, 65_536])
def test_every_row_is_there_with_its_metrics_flags_and_features(tmp_path, monkeypatch, group):
    monkeypatch.setattr(exporting, "GROUP_ROWS", group)
    a = write(tmp_path / "a.mcap", [0, 10, 20])
    b = write(tmp_path / "b.mcap", [0], who=other(), at_s=10)
    seen = []
    rows = export_rows([a, b], tmp_path / "out" / "rows.parquet", on_progress=seen.append)
    assert rows == 40 == seen[-1]
    table = parquet.read_table(tmp_path / "out" / "rows.parquet")
    assert table.num_rows == 40
    first = table.slice(0, 30).to_pydict()
    assert first["seq"] == [*range(30)]
    assert first["metric.height"] == [float(seq) for seq in range(30)]
    assert first["metric.slope"] == [None] * 30
    assert first["terminated"] == [seq % 25 == 24 for seq in range(30)]
    assert first["controller"] == ["policy"] * 30
    assert first[f"features.{HOOK}.index"] == [[seq % 16] for seq in range(30)]
    assert first[f"features.{HOOK}.value"] == [[0.5]] * 30
    assert np.allclose(first[f"features.{HOOK}.error"], 0.1)
    assert first["agent"] == ["lander"] * 30
    assert table["time"][0].value == START_NS
    last = table.slice(30).to_pydict()
    assert last["agent"] == ["rover"] * 10
    assert last["metric.reward"] == [None] * 10
    assert last["metric.slope"] == [float(seq % 3) for seq in range(10)]
    assert not list((tmp_path / "out").glob(".*")), "nothing half written is left"


def test_nothing_wanted_is_nothing_written(tmp_path):
    a = write(tmp_path / "a.mcap", [0])
    with pytest.raises(UserError, match="nothing was written"):
        export_rows([a], tmp_path / "rows.parquet", selection=Selection(agent="nobody"))
    assert not (tmp_path / "rows.parquet").exists()


def test_the_commands_take_folders(tmp_path):
    write(tmp_path / "a.mcap", [0, 10])
    write(tmp_path / "b.mcap", [20], at_s=10)
    out = tmp_path / "rows.parquet"
    done = CliRunner().invoke(app, ["export-rows", str(tmp_path), "--to", str(out)])
    assert done.exit_code == 0, done.output
    assert "30 rows" in done.output
    assert parquet.read_table(out).num_rows == 30
    done = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert done.exit_code == 0
    assert "2 files" in done.output
    assert "30 rows" in done.output
