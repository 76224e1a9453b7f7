"""Many small students at once: does one stack of k students (`torch.func.vmap`) train faster than the k in turn?

    python benchmarks/stacked.py [--students mlp,resnet8] [--stack 5,15] [--side 8] [--pairs 15] [--threads 1]

Both sides take bare steps (forward, cross-entropy, backward, SGD with momentum) on one device, from the same weights,
each student on batches of its own. The ratio of speeds is taken pair by pair, in alternating order; the losses of both
sides are compared first. Above 1 the stack pays.
"""

import argparse
import copy
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from shared.models.build import build_model

CLASSES = 10
WARM_UP = 3
Step = Callable[[Tensor, Tensor], Tensor]
"""Images [K, B, 3, H, W], labels [K, B] -> losses [K] before the step. K students, B images each."""


def optimizer_of(parameters: Sequence[Tensor]) -> SGD:
    """As the training loop's."""
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def in_turn(students: Sequence[nn.Module]) -> Step:
    """A step of each student, one after the other."""
    optimizers = [optimizer_of(list(student.parameters())) for student in students]

    def step(images_KB3HW: Tensor, labels_KB: Tensor) -> Tensor:
        losses = []
        for student, optimizer, images, labels in zip(students, optimizers, images_KB3HW, labels_KB, strict=True):
            loss = cross_entropy(student(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def stacked(students: Sequence[nn.Module]) -> Step:
    """A step of all students together: their weights are one tensor each, [K, ...]."""
    parameters, buffers = stack_module_state(list(students))
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    optimizer = optimizer_of(list(leaves.values()))
    form = copy.deepcopy(students[0]).to("meta")

    def one(
        weights: dict[str, Tensor], statistics_: dict[str, Tensor], images_B3HW: Tensor, labels_B: Tensor
    ) -> Tensor:
        logits_BC = functional_call(form, (weights, statistics_), (images_B3HW,))
        return cross_entropy(logits_BC, labels_B)

    every = vmap(one, randomness="different")

    def step(images_KB3HW: Tensor, labels_KB: Tensor) -> Tensor:
        losses_K = every(leaves, buffers, images_KB3HW, labels_KB)
        optimizer.zero_grad()
        losses_K.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        optimizer.step()
        detached: Tensor = losses_K.detach()
        return detached

    return step


def seconds(step: Step, *, images: Tensor, labels: Tensor, steps: int) -> float:
    """Wall-clock seconds of some steps."""
    began = time.perf_counter()
    for _ in range(steps):
        step(images, labels)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(name: str, *, count: int, options: argparse.Namespace) -> None:
    """Measure one student in one number, and print a line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    students = [build_model(f"zoo:{name}", classes=CLASSES, seed=seed).train().to(device) for seed in range(count)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, options.batch, 3, options.side, options.side, generator=generator).to(device)
    labels = torch.randint(0, CLASSES, (count, options.batch), generator=generator).to(device)
    # The stack copies the weights, so both sides begin alike.
    sides = {"stacked": stacked(students), "in turn": in_turn(students)}
    for _ in range(WARM_UP):
        first, second = (step(images, labels) for step in sides.values())
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for pair in range(options.pairs):
        # The order changes from pair to pair: a machine that slows down favours neither side.
        for side, step in sides.items() if pair % 2 == 0 else reversed(sides.items()):
            found[side].append(seconds(step, images=images, labels=labels, steps=options.steps))
    ratios = sorted(turn / stack for turn, stack in zip(found["in turn"], found["stacked"], strict=True))
    images_done = count * options.batch * options.steps
    speeds = {side: images_done / statistics.median(times) for side, times in found.items()}
    print(
        f"{name:10s} k = {count:3d}  in turn {speeds['in turn']:10,.0f}  stacked {speeds['stacked']:10,.0f} images/s"
        f"   stacked / in turn {statistics.median(ratios):6.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", default="mlp,resnet8")
    parser.add_argument("--stack", default="5,15", help="numbers of students, between commas")
    parser.add_argument("--side", type=int, default=8, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of every student per pair")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"command: {shlex.join(['python', *sys.argv])}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(
        f"{device}, torch {torch.__version__}, {options.threads} threads, batch {options.batch},"
        f" {options.side} x {options.side} pixels, n = {options.pairs} pairs; median (smallest to largest)"
    )
    for name in options.students.split(","):
        for count in options.stack.split(","):
            compare(name, count=int(count), options=options)


if __name__ == "__main__":
    main()
