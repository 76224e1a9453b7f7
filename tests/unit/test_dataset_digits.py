"""The bundled digits, read without scikit-learn, against scikit-learn's own reading and split."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from shared.datasets import digits
from shared.datasets.spec import open_dataset, open_train_test
from shared.errors import InputError


def test_digits_are_scikit_learns_own_in_its_own_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    levels, labels = datasets.load_digits(return_X_y=True)
    split = selection.train_test_split(levels, labels, test_size=360, stratify=labels, random_state=0)
    for dataset, levels_NF, labels_N in zip(open_train_test("digits"), split[:2], split[2:], strict=True):
        # Python's round on exact halves and numpy's agree: both go to the even number.
        expected = [[round(level * 255 / 16) for level in row] for row in levels_NF.tolist()]
        images = np.stack(dataset.images(range(dataset.num_rows)))
        assert images.shape[1:] == (8, 8, 3)
        for channel in range(3):
            assert np.array_equal(images[..., channel].reshape(-1, 64), expected)
        assert np.array_equal(dataset.labels, labels_N)


@pytest.mark.parametrize("test_rows", [10, 57, 359])
def test_the_split_rule_is_scikit_learns_where_classes_differ_in_size(test_rows: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    labels = np.random.default_rng(test_rows).choice(5, size=400, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    expected = selection.train_test_split(np.arange(400), test_size=test_rows, stratify=labels, random_state=0)
    for ours, theirs in zip(digits.stratified_split(labels, test_rows=test_rows), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_digits_have_the_sizes_and_the_policy_of_the_contract() -> None:
    train, test = open_train_test("digits")
    assert (train.name, train.num_rows, test.name, test.num_rows) == ("digits/train", 1437, "digits/test", 360)
    assert train.classes == tuple("0123456789")
    assert train.view_policy == "crop1"
    assert train.normalisation == test.normalisation
    assert min(train.normalisation.std) > 0.3


def test_opening_digits_imports_no_heavy_library() -> None:
    code = (
        "import sys; from shared.datasets.spec import open_dataset; open_dataset('digits/train').fingerprint;"
        "print([name for name in ('torch', 'torchvision', 'sklearn', 'pandas', 'zarr') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digits.read_digits.cache_clear()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .teachonce\[trainer\]"):
        open_dataset("digits/train")


def test_an_unusual_scikit_learn_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits.read_digits.cache_clear()
    spec = ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="has no digits"):
        open_dataset("digits/train")
