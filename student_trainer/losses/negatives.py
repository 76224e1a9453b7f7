"""Which training rows a contrastive loss holds against each sample: rows of other classes, drawn at random.

Shape key: B batch, N training rows, K negatives of a sample.
"""

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import InputError


class Negatives(nn.Module):
    """Positions of rows, and how often each training row is a negative of each sample of a batch."""

    labels: Tensor
    """Class of each row by number, 0.., int64 [N] as the others."""
    enough: Tensor
    """bool [N]: whether its class leaves K rows."""
    sizes: Tensor
    """Rows of its class."""
    starts: Tensor
    """Where its class begins when rows stand by class."""
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
        enough = len(rows_N) - sizes >= count
        self._all_distinct, self._any_distinct = bool(enough.all()), bool(enough.any())
        tables = {
            "labels": class_N,
            "enough": enough[class_N],
            "sizes": sizes[class_N],
            "starts": (sizes.cumsum(dim=0) - sizes)[class_N],
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
        """K negatives of each sample as counts, float32 [B, N]: distinct ones if its class leaves K, else repeated."""
        if self._all_distinct:
            return self._draw_distinct(positions_B, seed=seed)
        repeated_BN = self._draw_repeated(positions_B, seed=seed)
        if not self._any_distinct:
            return repeated_BN
        # Both for all, and no look at which are needed: that would wait for an accelerator.
        distinct_BN = self._draw_distinct(positions_B, seed=seed)
        return torch.where(self.enough[positions_B, None], distinct_BN, repeated_BN)

    def _draw_repeated(self, positions_B: Tensor, *, seed: int) -> Tensor:
        sizes_B, rows = self.sizes[positions_B], len(self.ranks)
        draw = repeated_by_row if sizes_B.device.type == "cpu" else repeated_by_draw
        counts_BN = draw(sizes_B, rows=rows, count=self._count, seed=seed)
        # Those stand by class, beginning with the own one and going on from the start at the end.
        return counts_BN.gather(1, (self.ranks - self.starts[positions_B, None]) % rows)

    def _draw_distinct(self, positions_B: Tensor, *, seed: int) -> Tensor:
        device = self.ranks.device
        generator = torch.Generator(device).manual_seed(seed)
        keys_BN = torch.rand(len(positions_B), len(self.ranks), generator=generator, device=device)
        keys_BN[self.labels[positions_B, None] == self.labels] = 2.0
        chosen_BK = keys_BN.topk(self._count, dim=1, largest=False, sorted=False).indices
        return torch.zeros_like(keys_BN).scatter_(1, chosen_BK, 1.0)


def repeated_by_row(sizes_B: Tensor, *, rows: int, count: int, seed: int) -> Tensor:
    """How often each of ``rows`` places but the first ``sizes_B`` is hit by ``count`` draws, float32 [B, N].

    One binomial number a row: 0.5, 10 and 19 ms for B = 64, K = 16,384 and N = 100, 1,600 and 4,800 on a CPU.
    """
    is_other_BN = np.arange(rows) >= sizes_B.numpy()[:, None]
    shares_BN = is_other_BN / is_other_BN.sum(axis=1, keepdims=True)
    return torch.from_numpy(np.random.default_rng(seed).multinomial(count, shares_BN)).float()


def repeated_by_draw(sizes_B: Tensor, *, rows: int, count: int, seed: int) -> Tensor:
    """The same draw by draw, as accelerators like it; 16 ms for any N on that CPU."""
    device = sizes_B.device
    generator = torch.Generator(device).manual_seed(seed)
    uniform_BK = torch.rand(len(sizes_B), count, generator=generator, device=device, dtype=torch.float64)
    chosen_BK = sizes_B[:, None] + (uniform_BK * (rows - sizes_B[:, None])).long()
    return occurrences(chosen_BK, rows=rows)


def occurrences(chosen_BK: Tensor, *, rows: int) -> Tensor:
    """How often each of ``rows`` places is among each sample's ``chosen_BK``, float32 [B, N]."""
    ones_BK = torch.ones(chosen_BK.shape, device=chosen_BK.device)
    return ones_BK.new_zeros(len(chosen_BK), rows).scatter_add_(1, chosen_BK, ones_BK)
