"""Which rows each step sees, as a function of seed and step alone.

A trainer that resumes must see the rows it would have seen, so nothing is drawn from a generator
with a history: the permutation of an epoch follows from (seed, epoch).
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowOrder:
    """Shuffled epochs over n rows, in batches.

    Args:
        n: rows.
        batch: rows per step; more than there are means drawing with replacement.
        seed: of the order.
        device: where the index lives.
    """

    def __init__(self, n: int, batch: int, seed: int, device: torch.device) -> None:
        self._n, self._batch, self._seed, self._device = n, batch, seed, device
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> Tensor:
        """Row numbers int64 [batch] of a 0-based step."""
        per_epoch = self._n // self._batch
        if per_epoch == 0:
            drawn = torch.randint(self._n, (self._batch,), generator=self._generator(step))
            return drawn.to(self._device)
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            shuffled = torch.randperm(self._n, generator=self._generator(epoch))
            self._permutation, self._epoch = shuffled.to(self._device), epoch
        return self._permutation[place * self._batch : (place + 1) * self._batch]

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed << 32) ^ (number + 1))
