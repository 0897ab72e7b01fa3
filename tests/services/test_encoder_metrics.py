from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from prometheus_client import CollectorRegistry

from interlatent_live.pipeline.latency import LatencyHistogram
from interlatent_live.pipeline.stages import StageTimes
from interlatent_live.services.encoder_metrics import EncoderMetrics, VersionCounts


def test_stages_and_latencies_are_histograms_as_of_the_last_status():
    now = [0.0]
    stages = StageTimes(lambda: now[0])
    latency = LatencyHistogram()
    latency.observe(np.array([3.0, 30.0]))
    core = SimpleNamespace(latencies=lambda: {"walker": latency}, vanished=0)
    registry = CollectorRegistry()
    metrics = EncoderMetrics(registry, core, [], VersionCounts(), stages)

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    def encode(transcoder, activations):
        now[0] += 0.0015

    stages.arrived("boot")
    now[0] += 0.004
    stages.encoding(encode)("transcoder", "rows")
    stages.encoded("boot")
    stage = "interlatent_encoder_stage_seconds"
    assert value(f"{stage}_count", stage="queue") is None
    metrics.update([])
    assert value(f"{stage}_count", stage="queue") == 1
    assert value(f"{stage}_bucket", stage="queue", le="0.002") == 0
    assert value(f"{stage}_bucket", stage="queue", le="0.005") == 1
    assert value(f"{stage}_bucket", stage="encode", le="0.002") == 1
    assert value(f"{stage}_count", stage="publish") == 0
    assert value(f"{stage}_sum", stage="encode") > 0.0014
    seen = "interlatent_step_to_feature_seconds"
    assert value(f"{seen}_bucket", agent="walker", le="0.005") == 1
    assert value(f"{seen}_bucket", agent="walker", le="+Inf") == 2
