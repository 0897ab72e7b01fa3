"""What outlives the processes: runs, claims with their verdicts, costs, narration, corrections."""

from interlatent_live.store.port import (
    ClaimFilter,
    ClaimRow,
    ClaimStore,
    Correction,
    CorrectionKind,
    StoreError,
)
from interlatent_live.store.sql import SqlClaimStore, open_store

__all__ = [
    "ClaimFilter",
    "ClaimRow",
    "ClaimStore",
    "Correction",
    "CorrectionKind",
    "SqlClaimStore",
    "StoreError",
    "open_store",
]
