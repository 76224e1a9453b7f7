"""docs/losses.md: every loss with weights and needs, every golden vector tested or excepted, no option that is not."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loss_cases import SMALL, offered_by

from shared.errors import InputError
from student_trainer.losses import LOSSES, build_loss

CONTRACT = Path(__file__).parent
PAGE = (CONTRACT.parent.parent / "docs" / "losses.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| ([\d.]+), ([\d.]+) \| (.+?) \|$", re.MULTILINE)
ROWS = {match[1]: match for match in ROW.finditer(PAGE)}
EXCEPTIONS = PAGE.partition("\n## Exceptions\n")[2]


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_in_the_table_with_its_weights_and_what_it_needs_of_the_cache(name: str) -> None:
    _, _, needed, ce_weight, kd_weight, _ = ROWS[name].groups()
    loss = build_loss(name)
    assert (float(ce_weight), float(kd_weight)) == (loss.default_ce_weight, loss.default_kd_weight)
    outputs = loss.teacher_outputs(student_maps=4, offered=offered_by(SMALL))
    names = {output for some in outputs.values() for output in some}
    said = set(re.findall(r"`([\w.]+)`", needed.partition(", or ")[0]))
    assert {one.partition(".")[0] for one in said} == {one.partition(".")[0] for one in names}
    assert {one for one in said if "." in one} <= names


def test_no_loss_is_in_the_table_twice() -> None:
    assert len(ROWS) == len(ROW.findall(PAGE))


def test_every_golden_vector_is_tested_or_listed_with_a_reason(golden: Any) -> None:
    specs = {case["spec"] for case in golden.cases()}
    tested = "".join(path.read_text() for path in CONTRACT.glob("*.py") if path != Path(__file__))
    assert len(specs) > 50
    assert [
        spec for spec in sorted(specs) if not re.search(rf'"{spec}(\.npz)?"', tested) and f"`{spec}`" not in EXCEPTIONS
    ] == []
    named = set(
        re.findall(r"`(\w+\.\w+)`", "".join(row.split("|")[1] for row in EXCEPTIONS.splitlines() if "|" in row))
    )
    assert named <= specs


def test_every_option_that_the_page_shows_exists() -> None:
    commands = re.findall(r"--loss [^`\n]+", PAGE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        settings = [word.partition("=") for before, word in pairwise(words) if before == "--set"]
        build_loss(words[1], **{name: value for name, _, value in settings})
    inline = {(name, value) for name, value in re.findall(r"`([a-z_]\w*)=([\w.]+)`", PAGE)}
    assert len(inline) > 10
    assert [one for one in sorted(inline) if not is_known(*one)] == []


def is_known(name: str, value: str) -> bool:
    """Whether some loss has this hyper-parameter and takes this value."""
    for kind in LOSSES.values():
        if name in kind.limits:
            try:
                kind.read_hyper({name: value})
            except InputError:
                continue
            return True
    return False
