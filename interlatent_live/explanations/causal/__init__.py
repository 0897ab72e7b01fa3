"""What a feature does to the action: shadow interventions, their statistics, and attribution."""

from interlatent_live.explanations.causal.attribution import (
    ActionTarget,
    Attribution,
    Edge,
    LayerTrace,
    Node,
    attribute,
    rank_agreement,
)
from interlatent_live.explanations.causal.effects import (
    EffectReport,
    EffectSamples,
    measure_effect,
)

__all__ = [
    "ActionTarget",
    "Attribution",
    "Edge",
    "EffectReport",
    "EffectSamples",
    "LayerTrace",
    "Node",
    "attribute",
    "measure_effect",
    "rank_agreement",
]
