"""What a hyper-parameter of a loss may be: its kind and range, and how it is read from a value or an option's text."""

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any

from shared.errors import InputError


@dataclass(frozen=True, slots=True)
class MapChoice:
    """Which feature maps of a network are compared, by number: f0 is the first (the stem), as in RepDistiller."""

    text: str
    """``last``; numbers such as ``2`` or ``1,3``; ``1-``: all from that one on. ``same``: the numbers of the student's.

    ``last`` of a teacher is the highest number that its cache keeps, or that it has itself where it runs online.
    """

    @staticmethod
    def read(value: object) -> "MapChoice":
        """From a text, a number or a list of numbers; ValueError for anything else."""
        items = value if isinstance(value, list | tuple) else [value]
        text = ",".join(str(item).strip() for item in items).replace(" ", "")
        if not re.fullmatch(r"last|same|\d+-|\d+(,\d+)*", text):
            raise ValueError
        return MapChoice(text)

    def __str__(self) -> str:
        return self.text

    def of_teacher(self, student: tuple[int, ...], *, beside: str, highest: int | None) -> tuple[int, ...]:
        """The teacher's, beside the student's numbers, which the text ``beside`` chose.

        ``highest`` is the highest number that the teacher is known to have, None where none is known. InputError where
        they are not as many or not listed, and for ``same`` beside a ``last`` that is not the teacher's last.
        """
        if self.text == "same":
            if beside == "last" and highest is not None and highest > student[0]:
                raise InputError(
                    f"maps=last is map {student[0]} of the student, and the teacher has a map {highest}: give"
                    f" teacher_maps=last to compare the last of both, or maps={student[0]} to compare by number"
                )
            return student
        if self.text.endswith("-"):
            raise InputError(f"teacher_maps={self.text}: name the teacher's maps one by one, such as 1,2,3")
        if self.text == "last":
            numbers: tuple[int, ...] = student[-1:] if highest is None else (highest,)
        else:
            numbers = tuple(int(part) for part in self.text.split(","))
        if len(numbers) != len(student):
            raise InputError(
                f"teacher_maps={self.text} are {len(numbers)} maps, and the student's are {len(student)}"
                f" ({', '.join(map(str, student))}); name as many of both"
            )
        return numbers

    def numbers(self, count: int, *, whose: str = "the student") -> tuple[int, ...]:
        """Of ``count`` maps; InputError where one is not among them, or none is chosen."""
        if count == 0:
            raise InputError(f"{whose} has no feature maps: choose a network with stages, such as zoo:wrn_16_2")
        if self.text == "last":
            return (count - 1,)
        if self.text == "same":
            raise InputError("maps: 'same' is for teacher_maps; choose the student's by number, such as 1-")
        numbers = [int(part) for part in self.text.rstrip("-").split(",")]
        chosen = tuple(range(numbers[0], count)) if self.text.endswith("-") else tuple(numbers)
        if not chosen or max(chosen) >= count or len(set(chosen)) != len(chosen):
            raise InputError(f"maps {self.text} of {whose}: it has maps 0 to {count - 1}; name each once")
        return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The values that a hyper-parameter may take."""

    kind: type
    """``float``, ``int``, ``bool``, ``str``, or ``MapChoice`` (a text such as ``1-``)."""
    low: float = -math.inf
    """Smallest number allowed, itself included unless ``above``."""
    high: float = math.inf
    """Largest number allowed; infinity itself only with ``endless``."""
    above: bool = False
    """Whether ``low`` itself is refused."""
    choices: tuple[str, ...] = ()
    """The words allowed, for ``str``."""
    endless: bool = False
    """Whether infinity is allowed, written ``inf``."""

    def __str__(self) -> str:
        if self.kind is bool:
            return "true or false"
        if self.kind is MapChoice:
            return "maps: 'last', '2', '1,3', '1-' for all from 1 on"
        if self.choices:
            return " or ".join(self.choices)
        sign = ">" if self.above else ">="
        text = "" if self.low == -math.inf else f" {sign} {self.low:g}"
        end = ", or inf" if self.endless else "" if self.high == math.inf else f", <= {self.high:g}"
        return f"{self.kind.__name__}{text}{end}"

    def read(self, value: object) -> Any:
        """``value``, or the text of an option, as this hyper-parameter's type; ValueError where it does not fit."""
        if self.kind is bool:
            return _read_bool(value)
        if self.kind is MapChoice:
            return str(MapChoice.read(value))
        if self.kind is str:
            if value not in self.choices:
                raise ValueError
            return value
        number = _read_number(value, endless=self.endless)
        if self.kind is int and number != int(number):
            raise ValueError
        if number < self.low or number > self.high or (self.above and number == self.low):
            raise ValueError
        return self.kind(number)


def _read_number(value: object, *, endless: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise ValueError
    number = float(value)
    if math.isnan(number) or (math.isinf(number) and not (endless and number > 0)):
        raise ValueError
    return number


def _read_bool(value: object) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError
