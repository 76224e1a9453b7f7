"""Comparisons of groups of samples, and means over all of a batch or over drawn ones.

Shape key: B batch, F numbers of a sample (classes, features, or a whole map), P comparisons, G samples of one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from student_trainer.losses.kl import softened_kl

NUMBERS_AT_ONCE = 2**16
"""Size of the tensors in which all pairs are gone through, in numbers: as many pairs at once as fit, at least one."""
Targets = list[tuple[float, Tensor]]
"""What one side of the student is compared with, each [B, F], with the weights of the errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """How samples are compared: the mean of ``pos`` of them minus the mean of ``neg`` others."""

    pos: int
    """Samples of the first group; 1 or more."""
    neg: int
    """Samples of the second; 1 or more."""
    added: bool = False
    """Half the sum of the two means in the place of their difference."""

    @property
    def size(self) -> int:
        """G."""
        return self.pos + self.neg

    @property
    def weights(self) -> list[float]:
        """Of each sample of a comparison; they sum to 0, or to 1 where groups are added."""
        scale, sign = (0.5, 1) if self.added else (1.0, -1)
        return [scale / self.pos] * self.pos + [sign * scale / self.neg] * self.neg

    def draw(self, batch_size: int, *, seed: int) -> Tensor:
        """As many comparisons of distinct samples as the batch has samples, int64 [B, G]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch_size, batch_size, generator=generator).topk(self.size, dim=1).indices

    def of(self, values: Tensor, indices_PG: Tensor) -> Tensor:
        """The comparisons of ``values`` [B, ...] at ``indices_PG``, [P, ...]."""
        weights, columns = self.weights, indices_PG.to(values.device).unbind(dim=1)
        total = values.index_select(0, columns[0])
        total = total if weights[0] == 1 else total.mul_(weights[0])
        for weight, column in zip(weights[1:], columns[1:], strict=True):
            total.add_(values.index_select(0, column), alpha=weight)
        return total

    def add_back(self, total: Tensor, gradient: Tensor, *, indices_PG: Tensor) -> None:
        """Add the gradient [P, ...] of comparisons to that of their samples [B, ...], in place."""
        for weight, column in zip(self.weights, indices_PG.to(total.device).unbind(dim=1), strict=True):
            total.index_add_(0, column, gradient, alpha=weight)

    def mean_square(self, error_BF: Tensor, *, indices_PG: Tensor | None) -> Tensor:
        """Mean square of the errors' comparisons at ``indices_PG``; None: over every ordered one of disjoint groups.

        Over all it is ``sum(w^2) * sum |e - mean e|^2 / ((B - 1) F)`` with w the `weights`: the square of a weighted
        sum of samples drawn without replacement. Where weights sum to 1, a part of ``|mean e|^2`` comes on top.
        """
        if indices_PG is not None:
            return self.of(error_BF, indices_PG).square().mean()
        count, width = error_BF.shape
        # Held constant, the mean still gives the exact gradient: the errors around it sum to zero.
        mean_F = error_BF.detach().mean(dim=0)
        variance = functional.mse_loss(error_BF, mean_F.expand_as(error_BF), reduction="sum") / (count - 1)
        squares = sum(weight**2 for weight in self.weights)
        if not self.added:
            return squares * variance / width
        return ((squares - 1 / count) * variance + error_BF.mean(dim=0).square().sum()) / width

    def divergence(
        self, student_BF: Tensor, targets: Targets, *, temperature: float, indices_PG: Tensor | None
    ) -> Tensor:
        """Weighted sum of mean ``T^2 KL`` from the targets' softened comparisons to the student's.

        At ``indices_PG``; None: over all ordered pairs, in O(B^2 F) time.
        """
        count, width = student_BF.shape
        total = count * (count - 1) if indices_PG is None else len(indices_PG)
        at_once = max(1, NUMBERS_AT_ONCE // width)
        parts = ordered_pairs(count, at_once=at_once) if indices_PG is None else torch.split(indices_PG, at_once)

        def error(student_PF: Tensor, part_PG: Tensor) -> Tensor:
            kl = [
                weight * softened_kl(student_PF, self.of(target_BF, part_PG), temperature=temperature)
                for weight, target_BF in targets
            ]
            return torch.stack(kl).sum() * (len(part_PG) * temperature**2 / total)

        value: Tensor = _PartByPart.apply(student_BF, self, parts, error)
        return value


class _PartByPart(torch.autograd.Function):
    """The sum of an error over parts of the comparisons: each part's gradient is taken at once, and nothing is held."""

    @staticmethod
    def forward(
        ctx: Any,
        values_BF: Tensor,
        groups: Groups,
        parts: Iterable[Tensor],
        error: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        total, gradient_BF = values_BF.new_zeros(()), torch.zeros_like(values_BF)
        for part_PG in parts:
            compared_PF = groups.of(values_BF, part_PG).requires_grad_()
            with torch.enable_grad():
                value = error(compared_PF, part_PG)
            groups.add_back(gradient_BF, *torch.autograd.grad(value, compared_PF), indices_PG=part_PG)
            total += value.detach()
        ctx.save_for_backward(gradient_BF)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BF,) = ctx.saved_tensors
        return factor * gradient_BF, None, None, None


def ordered_pairs(count: int, *, at_once: int) -> Iterator[Tensor]:
    """All (i, j) of ``count`` samples with i != j, int64 [P, 2] with P up to ``at_once``."""
    for numbers_P in torch.split(torch.arange(count * (count - 1)), at_once):
        first_P, second_P = numbers_P // (count - 1), numbers_P % (count - 1)
        yield torch.stack([first_P, second_P + (second_P >= first_P)], dim=1)


def squared_errors(groups: Groups, student_BF: Tensor, targets: Targets, *, indices_PG: Tensor | None) -> Tensor:
    """The weighted sum of `Groups.mean_square` of the student minus each target.

    Computed as ``a |s - t|^2 + b |s - y|^2 = (a + b) |s - m|^2 + a b / (a + b) |t - y|^2`` with m the weighted mean of
    both, which holds under any square form: one error carries gradient, not one for each target.
    """
    weight, target_BF = targets[0]
    apart = student_BF.new_zeros(())
    for other_weight, other_BF in targets[1:]:
        share = other_weight / (weight + other_weight)
        apart = apart + weight * share * groups.mean_square(target_BF - other_BF, indices_PG=indices_PG)
        target_BF = torch.lerp(target_BF, other_BF, share)
        weight += other_weight
    return apart + weight * groups.mean_square(student_BF - target_BF, indices_PG=indices_PG)
