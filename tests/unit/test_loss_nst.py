"""NST: the same value by either Gram matrix, and none larger than needed."""

import pytest
import torch
from torch.nn import functional

from student_trainer.losses.nst import discrepancy, mean_kernel


@pytest.mark.parametrize("shapes", [((7, 5), (4, 5)), ((9, 2), (5, 2)), ((2, 40), (50, 40)), ((1, 1), (30, 1))])
def test_the_mean_of_the_kernel_is_that_over_every_pair_of_channels(shapes: tuple[tuple[int, int], ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    pairs = [
        float(torch.dot(first[sample, one], second[sample, other])) ** 2
        for sample in range(3)
        for one in range(first.shape[1])
        for other in range(second.shape[1])
    ]
    assert float(mean_kernel(first, second)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


@pytest.mark.parametrize(("channels", "side"), [(40, 3), (3, 7)])
def test_it_is_the_distance_of_the_mean_outer_products_of_channels(channels: int, side: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, channels, side, side)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    means = []
    for maps in (student, teacher):
        units = functional.normalize(maps.flatten(2), dim=2)
        means.append(torch.einsum("bcp,bcq->bpq", units, units) / channels)
    expected = (means[0] - means[1]).square().sum(dim=(1, 2)).mean()
    torch.testing.assert_close(discrepancy(student, teacher), expected, rtol=1e-10, atol=1e-12)
