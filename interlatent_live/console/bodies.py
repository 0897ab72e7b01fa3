"""What people and programs may send: typed, bounded, and nothing that nobody reads."""

from __future__ import annotations

import secrets
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from interlatent_live.store import CorrectionKind

Identifier = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,56}$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: Identifier = Field(default_factory=lambda: secrets.token_hex(8))
    """Made by whoever asks: the same id twice is carried out once."""
    person: Annotated[str, Field(min_length=1, max_length=100)]


class ClaimBody(_Body):
    """A predicate typed by a person, for one feature of one run."""

    run_id: Name
    hook_point: Name
    feature: Annotated[int, Field(ge=0, lt=2**31)]
    predicate: Annotated[str, Field(min_length=1, max_length=2000)]
    label: Annotated[str, Field(max_length=200)] = ""
    description: Annotated[str, Field(max_length=2000)] = ""


class WordingBody(_Body):
    """A wish that a feature's claim be worded first."""

    run_id: Name
    hook_point: Name
    feature: Annotated[int, Field(ge=0, lt=2**31)]


class CorrectionBody(_Body):
    """A person's word on a claim."""

    claim_id: Identifier
    kind: CorrectionKind
    note: Annotated[str, Field(max_length=2000)] = ""
    label: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _label_where_it_belongs(self) -> Self:
        if (self.kind is CorrectionKind.RELABEL) != bool(self.label):
            raise ValueError("label is the new name for kind relabel, and empty otherwise")
        return self
