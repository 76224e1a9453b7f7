"""Batches at the edge of what a loss must bear: huge, constant, equal and zero outputs, of one side or both."""

import torch
from loss_cases import Recipe

LARGEST = 1e4
"""What losses must bear, of either side."""


def extreme(kind: str) -> Recipe:
    """Both sides huge, constant over a sample, the same for all samples, zero, or the same as each other."""
    return {
        "huge": Recipe(student=lambda shape, g: (LARGEST * torch.randn(shape, generator=g)).clamp(-LARGEST, LARGEST)),
        "largest": Recipe(student=lambda shape, g: LARGEST * torch.randn(shape, generator=g).sign()),
        "constant": Recipe(
            student=lambda shape, g: torch.randn(shape[0], generator=g).view(per_row(shape)).expand(shape)
        ),
        "constant student": Recipe(
            student=lambda shape, g: torch.full(shape, 2.0), teacher=lambda shape, g: torch.randn(shape, generator=g)
        ),
        "identical": Recipe(student=lambda shape, g: torch.randn(shape[1:], generator=g).expand(shape)),
        "identical student": Recipe(
            student=lambda shape, g: torch.randn(shape[1:], generator=g).expand(shape),
            teacher=lambda shape, g: torch.randn(shape, generator=g),
        ),
        "zeros": Recipe(student=lambda shape, g: torch.zeros(shape)),
        "zero student": Recipe(
            student=lambda shape, g: torch.zeros(shape), teacher=lambda shape, g: torch.randn(shape, generator=g)
        ),
        "same": Recipe(same=True),
        "huge same": Recipe(student=lambda shape, g: LARGEST * torch.randn(shape, generator=g), same=True),
    }[kind]


def per_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *(1 for _ in shape[1:]))


KINDS = (
    "huge",
    "largest",
    "constant",
    "constant student",
    "identical",
    "identical student",
    "zeros",
    "zero student",
    "same",
    "huge same",
)
