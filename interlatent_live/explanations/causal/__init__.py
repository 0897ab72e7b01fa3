"""What a feature does to the action: shadow interventions, their statistics, and attribution."""

from interlatent_live.explanations.causal.attribution import (
    Ablation,
    ActionTarget,
    Attribution,
    Edge,
    LayerTrace,
    Node,
    ablate_strongest,
    attribute,
    rank_agreement,
)
from interlatent_live.explanations.causal.effects import (
    EffectReport,
    EffectSamples,
    measure_effect,
)

__all__ = [
    "Ablation",
    "ActionTarget",
    "Attribution",
    "Edge",
    "EffectReport",
    "EffectSamples",
    "LayerTrace",
    "Node",
    "ablate_strongest",
    "attribute",
    "measure_effect",
    "rank_agreement",
]
