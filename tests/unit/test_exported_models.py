"""Programs of torch.export: their features, their fixed sizes, and archives that would run code."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from shared.errors import InputError
from shared.models.build import build_model
from shared.models.exported import fixed_sizes, load_exported
from shared.models.features import LogitsAndFeatures

Edit = Callable[[str, bytes], bytes | None]


def export(model: nn.Module, path: Path, *, batch: Dim | None = None, size: int = 16) -> Path:
    program = torch.export.export(
        model.eval(), (torch.rand(2, 3, size, size),), dynamic_shapes=({0: batch},) if batch else None
    )
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model("zoo:wrn_10_1", classes=5, seed=4)
    return export(model, tmp_path_factory.mktemp("export") / "wrn.pt2", batch=Dim("batch"))


def edited(path: Path, *, into: Path, edit: Edit) -> Path:
    """A copy of an archive with entries changed, or left out where ``edit`` gives None."""
    target = into / "edited.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as written:
        for name in source.namelist():
            content = edit(name, source.read(name))
            if content is not None:
                written.writestr(name, content)
    return target


def test_an_exported_program_answers_as_the_model_it_was(exported: Path) -> None:
    original = LogitsAndFeatures(build_model("zoo:wrn_10_1", classes=5, seed=4)).eval()
    loaded = LogitsAndFeatures(build_model(f"export:{exported}", classes=1))
    images = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        for found, expected in zip(loaded(images), original(images), strict=True):
            torch.testing.assert_close(found, expected)
    assert (loaded.classes, loaded.feature_width) == (5, 64)
    assert fixed_sizes(load_exported(exported)) == (None, 16, 16)


def test_a_convolutional_head_is_found_in_a_program(tmp_path: Path) -> None:
    model = build_model("torchvision:squeezenet1_1", classes=3, seed=0).eval()
    path = export(model, tmp_path / "squeeze.pt2", batch=Dim("batch"), size=32)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        logits, features = LogitsAndFeatures(load_exported(path))(images)
        expected = LogitsAndFeatures(model)(images)
    torch.testing.assert_close(logits, expected[0])
    torch.testing.assert_close(features, expected[1])


class TwoHeads(nn.Module):
    def __init__(self, *, summed: bool) -> None:
        super().__init__()
        self.summed, self.one, self.two = summed, nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled = x.mean(dim=(2, 3))
        one, two = self.one(pooled), self.two(pooled)
        return one + two if self.summed else (one, two)


@pytest.mark.parametrize(("summed", "said"), [(True, "come from add"), (False, "gives 2 outputs")])
def test_a_program_with_two_heads_is_refused(tmp_path: Path, summed: bool, said: str) -> None:
    path = export(TwoHeads(summed=summed), tmp_path / "two.pt2")
    with pytest.raises(InputError, match=said):
        LogitsAndFeatures(load_exported(path))


class LinearEnd(nn.Module):
    """A linear layer, then what the test says."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end, self.stem, self.head = end, nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        if self.end == "squeezed":
            squeezed: Tensor = self.head(maps.mean(dim=(2, 3))[:, None, None]).squeeze(1).squeeze(1)
            return squeezed
        averaged: Tensor = self.head(maps.flatten(2).transpose(1, 2)).mean(dim=1)
        return averaged


def test_a_program_whose_linear_layer_has_empty_dimensions_gives_vectors(tmp_path: Path) -> None:
    model = LinearEnd("squeezed").eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        loaded = LogitsAndFeatures(load_exported(export(model, tmp_path / "x.pt2")))
        logits, features = loaded(images)
        torch.testing.assert_close(features, model.stem(images).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, model(images))
    assert loaded.feature_width == 6


def test_a_program_that_averages_a_linear_layer_over_places_is_refused(tmp_path: Path) -> None:
    path = export(LinearEnd("averaged"), tmp_path / "x.pt2")
    with pytest.raises(InputError, match="come from linear"):
        LogitsAndFeatures(load_exported(path))


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("PICKLE RAN",))


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_program(old: bytes, new: bytes) -> Edit:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        assert old in content
        return content.replace(old, new)

    return edit


ATTACKS: dict[str, Edit] = {
    "a pickle of more than tensors": lambda n, c: torch_saved(RunsCode()) if "sample_inputs" in n else c,
    "a pickled object": lambda n, c: c.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
    "the operator 'torch.os.system'": in_program(b"torch.ops.aten.relu.default", b"torch.os.system"),
    "the operator 'torch.ops.aten.__class__'": in_program(b"torch.ops.aten.relu.default", b"torch.ops.aten.__class__"),
    "the size expression": in_program(b"Symbol('s", b"__import__('os').system('s"),
    "the container": in_program(b'\\"type\\": \\"builtins.tuple\\"', b'\\"type\\": \\"collections.defaultdict\\"'),
}


@pytest.mark.parametrize("found", ATTACKS)
def test_an_archive_that_could_run_code_is_refused_saying_what_was_found(
    found: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(exported, into=tmp_path, edit=ATTACKS[found])
    with pytest.raises(InputError, match=r"runs code when loaded.*--trust-export") as caught:
        load_exported(path)
    assert found in str(caught.value)
    assert "PICKLE RAN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data/constants/custom_obj_0", "a pickled object"),
        ("data/constants/opaque_obj_0", "a pickled object"),
        ("data/aotinductor/m.so", "an entry that a plain program does not have"),
    ],
)
def test_entries_that_plain_programs_do_not_have_are_refused(
    exported: Path, tmp_path: Path, name: str, said: str
) -> None:
    path = edited(exported, into=tmp_path, edit=lambda _name, content: content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{name}", pickle.dumps(RunsCode()))
    with pytest.raises(InputError, match=f"{said}.*trust-export"):
        load_exported(path)


def test_guards_in_the_file_are_not_run(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = b'"guards_code": ["print(\'GUARD RAN\') or True"]'
    path = edited(exported, into=tmp_path, edit=in_program(b'"guards_code": []', guard))
    LogitsAndFeatures(load_exported(path))(torch.rand(2, 3, 16, 16))
    assert "GUARD RAN" not in capsys.readouterr().out


def test_a_trusted_archive_is_loaded_as_torch_does(exported: Path, tmp_path: Path) -> None:
    path = edited(exported, into=tmp_path, edit=ATTACKS["a pickle of more than tensors"])
    model = LogitsAndFeatures(load_exported(exported, trust_export=True))
    assert model(torch.rand(2, 3, 16, 16))[0].shape == (2, 5)
    with pytest.raises(InputError, match="not a program"):
        load_exported(path, trust_export=True)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all"])
def test_files_that_are_no_programs_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(InputError, match="is not a program") as caught:
        load_exported(tmp_path / "x.pt2")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        load_exported(tmp_path / "absent.pt2")


def test_a_program_cut_short_is_refused(exported: Path, tmp_path: Path) -> None:
    path = edited(exported, into=tmp_path, edit=lambda n, c: None if n.endswith("weights/weight_3") else c)
    with pytest.raises(InputError, match="is not a program"):
        load_exported(path)
