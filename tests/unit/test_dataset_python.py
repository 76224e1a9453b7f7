"""Users' own data sets, and what their mistakes look like."""

from pathlib import Path

import pytest

from shared.datasets.spec import open_dataset, open_splits
from shared.errors import DatasetFailedError, InputError, RowRangeError

GOOD = """
import numpy as np
from PIL import Image

class Stripes:
    classes = ["flat", "upright"]
    view_policy = "crop2"

    def __init__(self, split):
        self.count = 6 if split == "train" else 4

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        pixels = np.zeros((4, 4), dtype=np.uint8)
        if row % 2:
            pixels[:, row % 4] = 200
        else:
            pixels[row % 4] = 100
        return (Image.fromarray(pixels) if row < 2 else pixels), np.int64(row % 2)

def stripes(split):
    return Stripes(split)

def pairs(split):
    return [(np.full((2, 2, 3), row, np.uint8), row // 2) for row in range(6)]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_sets.py"
    path.write_text(GOOD)
    return path


def test_a_users_set_of_pil_images_and_arrays_is_opened(file: Path) -> None:
    train, test = open_splits(f"python:{file}:stripes")
    assert (train.name, train.num_rows, test.name, test.num_rows) == ("stripes/train", 6, "stripes/test", 4)
    assert train.classes == ("flat", "upright")
    assert train.view_policy == "crop2"
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    for row in range(6):
        assert train.image(row).shape == (4, 4, 3)
        assert train.image(row).max() == (200 if row % 2 else 100)
    assert test.normalisation == train.normalisation


def test_a_list_of_pairs_is_a_data_set_with_numbered_classes(file: Path) -> None:
    dataset = open_dataset(f"python:{file}:pairs/anything")
    assert dataset.classes == ("0", "1", "2")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [int(image[0, 0, 0]) for image in dataset.images([5, 0])] == [5, 0]


def test_kept_labels_that_differ_from_those_given_are_not_used(file: Path) -> None:
    file.write_text(
        GOOD + "\ndef lying(split):\n    made = Stripes(split)\n    made.targets = [1] * 6\n    return made\n"
    )
    assert open_dataset(f"python:{file}:lying/train").labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(split)\n", r"failed with SyntaxError"),
        ("import no_such_library\n", r"\(line 1\) failed with ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys\nsys.exit(3)\n", r"\(line 2\) failed with SystemExit: 3"),
        ("other = 1\n", r"has no function make; write one: make\(split\)"),
        ("def make(split):\n    return {}[split]\n", r"\(line 2\) failed with KeyError: 'train'"),
        ("def make(split):\n    return 3\n", r"failed with TypeError"),
        ("def make(split):\n    return []\n", r"has no images"),
        ("def make(split):\n    return [(0, 'cat')]\n", r"row 0 has a label of <U3 \[\]; expected one whole number"),
        ("def make(split):\n    return [(0, 0.5)]\n", r"row 0 has a label of float64"),
        ("def make(split):\n    return [(0, -1)]\n", r"has labels from -1 to -1"),
    ],
)
def test_a_mistake_in_the_users_file_is_one_line_that_names_it(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mistake.py"
    path.write_text(body)
    with pytest.raises(InputError, match=message) as raised:
        open_dataset(f"python:{path}:make/train")
    assert "\n" not in str(raised.value)
    assert "mistake.py" in str(raised.value) or "make/train" in str(raised.value)


def test_a_bad_image_of_the_users_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "mistake.py"
    path.write_text("import numpy as np\ndef make(split):\n    return [(np.zeros((2, 2, 3)), 0)] * 3\n")
    dataset = open_dataset(f"python:{path}:make/train")
    with pytest.raises(InputError, match=r"mistake\.py: row 2: an image must be uint8 .*got float64 \[2, 2, 3\]"):
        dataset.image(2)


def test_a_row_that_the_users_code_fails_on_is_told_without_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mistake.py"
    path.write_text(
        "from pathlib import Path\n"
        "class Set(list):\n"
        "    def __getitem__(self, row):\n"
        "        if Path(__file__).with_name('gone').exists(): raise OSError(f'{__file__} is gone')\n"
        "        return None, 0\n"
        "def make(split):\n    return Set([1, 2])\n"
    )
    dataset = open_dataset(f"python:{path}:make/train")
    (tmp_path / "gone").touch()
    with pytest.raises(DatasetFailedError) as raised:
        dataset.image(1)
    assert raised.value.status == 500
    assert str(raised.value) == "mistake.py: row 1 failed with OSError; the log says where"
    assert f"{path} (line 4) failed with OSError: {path} is gone" in caplog.text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py: no such file"):
        open_dataset(f"python:{tmp_path}/nowhere.py:make/train")


def test_rows_are_checked_before_the_users_code_sees_them(file: Path) -> None:
    with pytest.raises(RowRangeError, match="row 6 is out of range: stripes/train has rows 0 to 5"):
        open_dataset(f"python:{file}:stripes/train").image(6)
