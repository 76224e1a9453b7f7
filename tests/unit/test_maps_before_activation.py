"""Maps before their last activation, held to what the layers in front of it give.

Shape key: B images, C channels, H height, W width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from shared.errors import InputError
from shared.models.activations import ActivationWatch
from shared.models.build import build_model
from shared.models.maps import MapRecorder

SIDE = 32


def build(spec: str) -> nn.Module:
    """An untrained network whose norms and convolutions are not all alike."""
    model = build_model(spec, classes=5, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        assert parameter.requires_grad, name
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def recorder_of(model: nn.Module) -> MapRecorder:
    return MapRecorder(model, image_size=(SIDE, SIDE), free_size=True)


def calls_of(model: nn.Module, x: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """(last input, last output) of every module by name, as they were before anything changed them in place."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    taken: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _m, arguments: taken.update({name: arguments[0].clone()}))
        module.register_forward_hook(lambda _m, _a, output: found.update({name: (taken[name], output.clone())}))

    watched = copy.deepcopy(model)
    for name, module in watched.named_modules():
        watch(name, module)
    with torch.no_grad():
        watched(x)
    return found


Calls = Mapping[str, tuple[Tensor, Tensor]]


def before_of_resnet(calls: Calls, model: nn.Module) -> list[Tensor]:
    found = [calls["bn1"][1]]
    for stage in ("layer1", "layer2", "layer3"):
        last = f"{stage}.{len(model.get_submodule(stage)) - 1}"  # type: ignore[arg-type]  # a Sequential
        shortcut = calls.get(f"{last}.downsample", calls[last])
        found.append(calls[f"{last}.bn2"][1] + (shortcut[1] if f"{last}.downsample" in calls else shortcut[0]))
    return found


def before_of_wrn(calls: Calls, _model: nn.Module) -> list[Tensor]:
    # As RepDistiller's preact=True, save for map 0, which its list keeps as it is and which no loss of it compares.
    return [calls[name][1] for name in ("block1.layer.0.bn1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")]


def before_of_vgg(calls: Calls, _model: nn.Module) -> list[Tensor]:
    return [calls[f"block{number}"][1] for number in range(5)]


def before_of_mobilenet(calls: Calls, _model: nn.Module) -> list[Tensor]:
    # Linear bottlenecks: what a stage ends with was never activated.
    return [calls["conv1.1"][1], *(calls[f"blocks.{stage}"][1] for stage in (1, 2, 4, 6))]


def before_of_shuffle_v1(calls: Calls, _model: nn.Module) -> list[Tensor]:
    last = [f"layer1.{3}", f"layer2.{7}", f"layer3.{3}"]
    return [calls["bn1"][1], *(calls[name][0] + calls[f"{name}.bn3"][1] for name in last)]


def before_of_shuffle_v2(calls: Calls, _model: nn.Module) -> list[Tensor]:
    found = [calls["bn1"][1]]
    for name in ("layer1.3", "layer2.7", "layer3.3"):
        kept_BCHW, worked_BCHW = calls[name][0].chunk(2, dim=1)[0], calls[f"{name}.bn3"][1]
        found.append(torch.stack([kept_BCHW, worked_BCHW], dim=2).flatten(1, 2))
    return found


def before_of_mlp(calls: Calls, _model: nn.Module) -> list[Tensor]:
    return [calls[name][1][:, :, None, None] for name in ("fc1", "fc2")]


def before_of_torchvision_resnet(calls: Calls, _model: nn.Module) -> list[Tensor]:
    # A block's ReLU, which works in place, is called twice: the second time it takes the sum.
    return [calls["relu"][0], *(calls[f"layer{stage}.1.relu"][0] for stage in range(1, 5))]


BY_HAND: Mapping[str, Callable[[Calls, nn.Module], Sequence[Tensor]]] = {
    "zoo:resnet8": before_of_resnet,
    "zoo:resnet14": before_of_resnet,
    "zoo:wrn_10_1": before_of_wrn,
    "zoo:vgg8": before_of_vgg,
    "zoo:MobileNetV2": before_of_mobilenet,
    "zoo:ShuffleV1": before_of_shuffle_v1,
    "zoo:ShuffleV2": before_of_shuffle_v2,
    "zoo:mlp": before_of_mlp,
    "torchvision:resnet18": before_of_torchvision_resnet,
}


@pytest.mark.parametrize("spec", BY_HAND)
def test_a_map_before_its_activation_is_what_the_layer_in_front_of_it_gives(spec: str) -> None:
    model = build(spec).eval()
    recorder = recorder_of(model)
    with torch.inference_mode(), recorder.recording() as maps, recorder.recording(before_activation=True) as before:
        logits = model(images())
    expected = BY_HAND[spec](calls_of(model, images()), model)
    assert len(before) == len(maps) == len(expected)
    for one, other in zip(before, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(logits, model(images()), rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["zoo:resnet8", "zoo:vgg8", "zoo:ShuffleV1", "torchvision:resnet18"])
def test_relu_of_it_is_the_map_where_that_is_activated(spec: str) -> None:
    model = build(spec).eval()
    recorder = recorder_of(model)
    with torch.no_grad(), recorder.recording(before_activation=True) as before, recorder.recording() as maps:
        model(images())
    pairs = list(zip(before, maps, strict=True))
    assert all(torch.equal(relu(one), other) and not torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("spec", ["zoo:resnet8", "zoo:wrn_10_1", "torchvision:resnet18"])
def test_gradients_of_a_student_in_training_flow_through_it(spec: str, copies: bool) -> None:
    # float64: batch norm of few places is a lever for rounding.
    student = build(spec).double().train().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(student)
    weights = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    with recorder_of(student).recording(before_activation=True, copies=copies) as before:
        logits = student(images().double())
    (sum((one * weights[: one.shape[-1]]).mean() for one in before) + logits.square().mean()).backward()

    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in plain.named_modules():
        module.register_forward_hook(lambda _m, arguments, output, n=name: calls.update({n: (arguments[0], output)}))
    answered = plain(images().double())
    expected = BY_HAND[spec](calls, plain)
    (sum((one * weights[: one.shape[-1]]).mean() for one in expected) + answered.square().mean()).backward()
    for one, other in zip(before, expected, strict=True):
        assert one.stride() == other.stride()
    for (name, one), other in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for one, other in zip(student.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spec", ["zoo:resnet8", "torchvision:resnet18"])
def test_recording_changes_nothing_in_a_network_in_training(spec: str) -> None:
    student = build(spec).train()
    modes = [module.training for module in student.modules()]
    kept = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    random = torch.get_rng_state()
    with recorder_of(student).recording(before_activation=True):
        pass
    assert all(torch.equal(tensor, kept[name]) for name, tensor in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert "maps" not in vars(student)


def test_under_autocast_it_is_as_wide_as_the_layers_in_front_of_it() -> None:
    student = build("torchvision:resnet18").train()
    with torch.autocast("cpu", dtype=torch.bfloat16), recorder_of(student).recording(before_activation=True) as before:
        logits = student(images())
    assert logits.dtype == torch.bfloat16
    assert all(one.isfinite().all() and one.requires_grad and (one < 0).any() for one in before)


def test_each_forward_pass_gives_maps_of_its_own_though_others_record_too() -> None:
    model = build("zoo:resnet8").eval()
    recorder = recorder_of(model)
    with torch.no_grad(), recorder.recording() as maps:
        # Looked at for the first time in here: that pass is no one's.
        with recorder.recording(before_activation=True) as before:
            relu(torch.zeros(1))
            model(images(2))
            relu(torch.zeros(1))
            model(images(3))
        model(images(1))
    assert [len(one) for one in maps] == [2] * 4 + [3] * 4 + [1] * 4
    assert [len(one) for one in before] == [2] * 4 + [3] * 4
    assert all(torch.equal(relu(one), other) for one, other in zip(before, maps, strict=False))


def test_only_what_maps_are_made_of_is_held() -> None:
    watch = ActivationWatch(steps=frozenset({1}))
    x = torch.tensor([-1.0, 2.0])
    with watch:
        first = relu(x)
        second = relu(first - 3)
    assert watch.made(first) is None
    made = watch.made(second)
    assert made is not None
    torch.testing.assert_close(made.tensor, torch.tensor([-3.0, -1.0]))


def test_what_is_changed_in_place_is_no_longer_an_activations_result() -> None:
    watch = ActivationWatch()
    x, given_BC = torch.tensor([-1.0, 2.0]), torch.ones(2, 3)
    with watch:
        summed = relu(x)
        summed += 1
        norm_BC = nn.functional.batch_norm(given_BC, torch.zeros(3), torch.ones(3))
        norm_BC.add_(1)
        scaled = relu(x)
        scaled[0] = 5.0
        relu(norm_BC)
    assert watch.made(summed) is None
    assert watch.made(scaled) is None
    assert watch.taken(given_BC) is None


def test_of_channels_that_were_passed_on_the_activation_is_not_the_last() -> None:
    watch = ActivationWatch()
    x_BC = torch.tensor([[-1.0, -2.0, 3.0, 4.0]])
    with watch:
        first_BC = relu(x_BC)
        kept_BC, worked_BC = first_BC[:, :2], relu(first_BC[:, 2:] - 3.5)
        joined_BC = torch.cat([kept_BC, worked_BC], dim=1)
        both_BC = torch.cat([first_BC, worked_BC], dim=1)
    passed, branches = watch.made(joined_BC), watch.made(both_BC)
    assert passed is not None
    assert branches is not None
    torch.testing.assert_close(passed.tensor, torch.tensor([[0.0, 0.0, -0.5, 0.5]]))
    torch.testing.assert_close(branches.tensor, torch.tensor([[-1.0, -2.0, 3.0, 4.0, -0.5, 0.5]]))


class Changing(nn.Module):
    """Runs an activation that only training has, before its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        first = relu(self.conv(x))
        return first, relu(first - 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.maps(relu(x) if self.training else x)[-1].mean(dim=(2, 3)))
        return logits


def test_a_network_whose_activations_change_is_refused_rather_than_misread() -> None:
    model = Changing()
    recorder = recorder_of(model)
    with (
        pytest.raises(InputError, match="Changing runs other activations"),
        recorder.recording(before_activation=True),
    ):
        model(images())
    with recorder.recording(before_activation=True) as before:
        model.eval()(images())
    assert [tuple(one.shape) for one in before] == [(3, 4, SIDE, SIDE)] * 2
