"""Which training rows a contrastive loss holds against each sample: rows of other classes, drawn at random.

Shape key: B batch, N training rows, K negatives of a sample.
"""

import torch
from torch import Tensor, nn

from shared.errors import InputError


class Negatives(nn.Module):
    """Positions of rows, and how often each training row is a negative of each sample of a batch."""

    labels: Tensor
    """Class of each row by number, 0.., int64 [N] as the next ones."""
    sizes: Tensor
    """Rows of its class."""
    ends: Tensor
    """Where its class ends when rows stand by class."""
    ranks: Tensor
    """Where it stands itself."""

    def __init__(self, *, rows_N: Tensor, labels_N: Tensor, count: int) -> None:
        """``rows_N`` int64, each once, with their ``labels_N``; ``count`` is K. InputError for a single class."""
        super().__init__()
        self._rows_N, self._positions_N = rows_N.cpu().sort()
        self._count = count
        _, class_N, sizes = torch.unique(labels_N, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise InputError(f"negatives are rows of other classes, but all {len(rows_N)} rows have one; train on more")
        self._distinct = bool(len(rows_N) - sizes.max() >= count)
        tables = {
            "labels": class_N,
            "sizes": sizes[class_N],
            "ends": sizes.cumsum(dim=0)[class_N],
            "ranks": class_N.argsort(stable=True).argsort(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def positions(self, rows_B: Tensor) -> Tensor:
        """Where ``rows_B`` stand among the training rows, int64 [B] on their device; InputError for an unknown row."""
        rows_on_host_B = rows_B.to("cpu", torch.int64)
        found_B = torch.searchsorted(self._rows_N, rows_on_host_B).clamp(max=len(self._rows_N) - 1)
        unknown_B = self._rows_N[found_B] != rows_on_host_B
        if unknown_B.any():
            row = int(rows_on_host_B[unknown_B][0])
            raise InputError(
                f"row {row} is not among the {len(self._rows_N)} training rows that start() was told;"
                " give every row of the training in TrainingFacts(rows=..., labels=...)"
            )
        return self._positions_N[found_B].to(rows_B.device)

    def draw(self, positions_B: Tensor, *, seed: int) -> Tensor:
        """K negatives of each sample as counts, float32 [B, N]: distinct ones if each class leaves K, else repeated."""
        generator = torch.Generator(self.ranks.device).manual_seed(seed)
        if self._distinct:
            return self._draw_distinct(positions_B, generator)
        return self._draw_repeated(positions_B, generator)

    def _draw_distinct(self, positions_B: Tensor, generator: torch.Generator) -> Tensor:
        keys_BN = torch.rand(len(positions_B), len(self.ranks), generator=generator, device=generator.device)
        keys_BN[self.labels[positions_B, None] == self.labels] = 2.0
        chosen_BK = keys_BN.topk(self._count, dim=1, largest=False, sorted=False).indices
        return torch.zeros_like(keys_BN).scatter_(1, chosen_BK, 1.0)

    def _draw_repeated(self, positions_B: Tensor, generator: torch.Generator) -> Tensor:
        count, device = len(self.ranks), generator.device
        others_B = count - self.sizes[positions_B]
        uniform_BK = torch.rand(len(positions_B), self._count, generator=generator, device=device, dtype=torch.float64)
        chosen_BK = uniform_BK.mul_(others_B[:, None]).long()
        # Number c of the other classes' rows is the c-th after the end of the own class, by class and around.
        counts_BN = torch.zeros(len(positions_B), count, device=device)
        counts_BN.scatter_add_(1, chosen_BK, torch.ones((), device=device).expand_as(chosen_BK))
        return counts_BN.gather(1, (self.ranks - self.ends[positions_B, None]) % count)
