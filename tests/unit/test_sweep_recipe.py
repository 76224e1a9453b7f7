"""A recipe: what it may say, what options change, and one sentence for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.errors import InputError
from student_trainer.sweep.reading import put, read_recipe
from student_trainer.sweep.recipe import student_name

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LEAST: dict[str, Any] = {
    "name": "least",
    "dataset": "digits",
    "teacher": {"spec": "fake:10"},
    "students": ["zoo:mlp"],
    "losses": ["ce", {"loss": "kl", "set": {"temperature": 2}}],
    "budgets": [50, 100],
    "seeds": 3,
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, LEAST))
    assert recipe.seeds == [0, 1, 2]
    assert [loss.label for loss in recipe.losses] == ["ce", "kl"]
    assert [(views.teacher, views.student) for views in recipe.views] == [("0", "clean")]
    assert (recipe.select, recipe.val, recipe.lr) == (["random"], True, [0.05])


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, LEAST))
    assert read_recipe(written(tmp_path, recipe.resolved())) == recipe


def test_infinity_is_kept_as_the_text_that_options_have_for_it(tmp_path: Path) -> None:
    document = LEAST | {"losses": [{"loss": "kl", "set": {"temperature": float("inf")}}]}
    recipe = read_recipe(written(tmp_path, document))
    assert json.dumps(recipe.resolved(), allow_nan=False)
    assert recipe.losses[0].set == {"temperature": "inf"}


def test_options_change_single_keys(tmp_path: Path) -> None:
    changes = ["train.steps=500", "losses.1.set.temperature=8", "budgets=[20, 40]", "teacher.spec=zoo:resnet8"]
    recipe = read_recipe(written(tmp_path, LEAST), changes=changes, options={"seeds": 2, "teacher.weights": "w.pt"})
    assert recipe.train.steps == 500
    assert recipe.losses[1].set == {"temperature": 8}
    assert recipe.budgets == [20, 40]
    assert (recipe.teacher.spec, recipe.teacher.weights) == ("zoo:resnet8", Path("w.pt"))
    assert recipe.seeds == [0, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": 5}, "unknown key 'budget'; did you mean 'budgets'?"),
        ({"losses": ["kl", {"loss": "kl", "hyper": {}}]}, r"losses.1: unknown key 'hyper'; known: ce_weight, group"),
        ({"losses": ["kl", "kl"]}, "losses names 'kl' twice"),
        ({"losses": ["kl", {"label": "KL", "loss": "kl"}]}, "losses names 'kl' twice"),
        ({"losses": []}, "losses: List should have at least 1 item"),
        ({"losses": [{"label": "kl"}]}, "losses.0.loss is missing"),
        ({"budgets": [0]}, r"budgets.0: Input should be greater than or equal to 1 \(found 0\)"),
        ({"budgets": ["many"]}, r"budgets.0: .*valid integer.* \(found 'many'\)"),
        ({"name": "Two Words"}, "name: String should match pattern"),
        ({"teacher": {}}, "teacher: gives nothing; give one of spec"),
        ({"teacher": {"spec": "fake:10", "cache": "c"}}, "teacher: gives spec and cache; give one of"),
        ({"teacher": {"cache": "c", "weights": "w"}}, "teacher: weights and train belong to spec"),
        ({"teacher": {"spec": "x", "weights": "w", "train": {}}}, "weights and train exclude each other"),
        ({"train": {"steps": 5, "epochs": 5}}, "train: epochs and steps exclude each other"),
        ({"train": {"schedule": "sometimes"}}, "train.schedule: Input should be 'step', 'cosine' or 'plateau'"),
        ({"val": False, "lr": [0.1, 0.2]}, "val is false: without validation nothing chooses"),
        ({"lr": [0.1, 0.1]}, "lr names 0.1 twice"),
        ({"views": [{"name": "a", "student": "own"}]}, "views.0.student: Input should be 'same', 'fresh' or 'clean'"),
        ({"seeds": [1, 1]}, "seeds names 1 twice"),
        ({"outputs": ["features"]}, "outputs must have logits"),
        ({"students": ["zoo:mlp", "python:a.py:mlp"]}, "students names 'mlp' twice"),
    ],
)
def test_a_mistake_names_the_key_and_what_would_work(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        read_recipe(written(tmp_path, LEAST | change))
    assert "Value error" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "holds no keys"), ("- a", "holds no keys"), ("a: [", "is no YAML"), ("!!python/object:x.Y {}", "is no YAML")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_recipe(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the recipe .*none.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("steps", "cannot read --set 'steps'; write key.sub=value"),
        ("losses.7.loss=kl", "there is no losses.7, it is inside a list of 2"),
        ("name.first=x", "cannot set name.first: name is 'least', which has no parts"),
        ("budgets=[", "is no YAML"),
    ],
)
def test_a_wrong_change_says_so(tmp_path: Path, change: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_recipe(written(tmp_path, LEAST), changes=[change])


def test_a_change_makes_the_mappings_that_are_not_there() -> None:
    document: dict[str, Any] = {"train": None}
    put(document, key="train.steps", value=3)
    put(document, key="a.b.c", value=4)
    assert document == {"train": {"steps": 3}, "a": {"b": {"c": 4}}}


@pytest.mark.parametrize(
    ("spec", "name"),
    [("zoo:resnet8", "resnet8"), ("mlp", "mlp"), ("python:/a/b.py:Small_Net", "small_net"), ("timm:a/b", "a-b")],
)
def test_a_student_has_a_short_name(spec: str, name: str) -> None:
    assert student_name(spec) == name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_can_be_read_and_is_called_by_its_file(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.question.endswith("?")
