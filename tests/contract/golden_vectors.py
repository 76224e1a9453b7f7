"""How a loss is compared with a golden vector: tolerances, gradients, the rows that are stored."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Outputs = dict[str, Tensor]
"""What was computed of a case, by the name under which the authors' result is recorded."""
TEMPERATURES = ("T", "temperature", "tau", "temp", "kd_T")
"""What the authors call it."""
BLOWN_UP = 1e9
"""Gradients above are the authors' division by 1e-12 where samples coincide; ours are 0 there."""


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def tolerance(case: dict[str, Any], output: str, expected: np.ndarray) -> tuple[float, Any]:
    """(rtol, atol) as the README of the vectors asks."""
    if case["dtype"] == "float32":
        return 0.0, 4 * case["float32_roundoff_vs_float64"][output] + 1e-6 * np.abs(expected)
    scale = max(1.0, float(np.abs(expected).max()))
    if case["scenario"] == "offset_1e3" and "rkd" in case["spec"]:
        return 1e-9, 1e-9 * scale  # the authors' |a|^2 + |b|^2 - 2ab loses that much at 1e3 from the origin
    tau = max(float(case["hyperparams"].get(name) or 0) for name in TEMPERATURES)
    return 1e-9, max(1e-12 * scale, 1e-13 * tau**2)


def check(case: dict[str, Any], output: str, found: np.ndarray, expected: np.ndarray) -> None:
    if case["dtype"] == "float32" and output in case.get("ill_conditioned_float32", ()):
        return
    rtol, atol = tolerance(case, output, expected)
    error = np.abs(found - expected)
    assert np.all(error <= atol + rtol * np.abs(expected)), (
        f"{case['id']} {output}: off by {error.max()}, allowed {np.max(atol)}"
    )


def as_tensors(inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in inputs.items()}


def check_output(case: dict[str, Any], output: str, found: np.ndarray, expected: np.ndarray) -> None:
    if output.startswith("grad_") and np.abs(expected).max() > BLOWN_UP:
        assert np.abs(found).max() < 10
        return
    if output.startswith("grad_") and case.get("grad_rows_stored"):
        rows = case["grad_rows_stored"]
        found = found[: len(rows) if isinstance(rows, list) else int(rows)]
    check(case, output, found, expected)


def beside_zeros(values: Tensor) -> Tensor:
    """As many zeros after the samples."""
    return torch.cat([values, torch.zeros_like(values)])


def beside(count: int) -> Tensor:
    """Each sample compared with its zeros."""
    return torch.stack([torch.arange(count), torch.arange(count, 2 * count)], dim=1)
