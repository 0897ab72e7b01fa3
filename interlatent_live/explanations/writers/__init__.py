"""Writers: who finds the words. All behind one port; none is trusted, the stream decides."""

from interlatent_live.explanations.writers.builtin import BUILT_IN, BuiltInWriter, state_rule
from interlatent_live.explanations.writers.factory import WriterKind, make_writer
from interlatent_live.explanations.writers.llm import Capability, LlmWriter
from interlatent_live.explanations.writers.port import Draft, Usage, Writer

__all__ = [
    "BUILT_IN",
    "BuiltInWriter",
    "Capability",
    "Draft",
    "LlmWriter",
    "Usage",
    "Writer",
    "WriterKind",
    "make_writer",
    "state_rule",
]
