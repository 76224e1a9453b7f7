"""The weightless teacher: deterministic in the pixels, and light."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.answers import check_answers
from shared.errors import InputError
from shared.fake_teacher import FakeTeacher, parse_fake
from shared.teacher import load_teacher


def images(count: int, *, seed: int, size: tuple[int, int] = (8, 8)) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8))


def test_a_fake_teachers_bytes_do_not_depend_on_the_batch() -> None:
    teacher = FakeTeacher(classes=7)
    batch = [*images(5, seed=0), *images(3, seed=1, size=(3, 50)), *images(1, seed=2, size=(1, 1))]
    together = teacher.answer(batch)
    for place, image in enumerate(batch):
        alone = FakeTeacher(classes=7).answer([image])
        assert alone["logits"].tobytes() == together["logits"][place].tobytes()
        assert alone["features"].tobytes() == together["features"][place].tobytes()


def test_a_fake_teacher_tells_images_apart_and_keeps_its_contract() -> None:
    teacher = FakeTeacher(classes=10)
    answers = teacher.answer(images(64, seed=3))
    check_answers(answers, description=teacher.description, names=["image"] * 64)
    assert len(np.unique(answers["logits"], axis=0)) == 64
    assert len(set(answers["logits"].argmax(axis=1).tolist())) > 2
    assert teacher.answer([])["logits"].shape == (0, 10)
    assert teacher.description.features == answers["features"].shape[1] == 16


def test_a_flat_image_has_its_grey_level_as_every_feature() -> None:
    flat = np.full((3, 6, 3), 255, dtype=np.uint8)
    features = FakeTeacher(classes=2).answer([flat])["features"]
    np.testing.assert_allclose(features, 1.0, atol=1e-4)
    np.testing.assert_allclose(FakeTeacher(classes=2).answer([flat * 0])["features"], -1.0, atol=1e-4)


def test_fake_teachers_of_other_classes_have_other_ids() -> None:
    assert load_teacher("fake:10").id == FakeTeacher(classes=10).id
    assert load_teacher("fake:10").id != load_teacher("fake:11").id
    assert load_teacher("fake:10").id.startswith("fake-")


@pytest.mark.parametrize("text", ["", "ten", "-1", "0", "1.5", "²", "999999999"])
def test_a_fake_teacher_without_a_number_of_classes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="fake:C"):
        parse_fake(text)


def test_a_fake_teacher_loads_without_torch() -> None:
    code = (
        "import sys; from shared.teacher import load_teacher; load_teacher('fake:10'); import shared.answers; "
        "print([name for name in ('torch', 'torchvision', 'timm', 'sklearn', 'zarr', 'PIL') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
