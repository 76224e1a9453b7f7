"""Answers that somebody brought in a file, matched with the data set they are about.

Shape key: N rows, S answers, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.answer_source import AnswerBlock
from cache.batch import MAX_ABS
from cache.encoding import encode_rows
from cache.layout import COMPANIONS, ENCODED, UPLOADS, AnyArray, Bytes
from cache.provenance import TeacherFacts, class_names, describe_teacher, exported_facts, exported_history
from cache.records import dataset_from
from cache.tensor_file import TensorFile
from shared.descriptions import DatasetDescription
from shared.errors import AnswerError, IdentityError, InputError, RowRangeError
from shared.identity import KEY_BYTES, check_name, dataset_fingerprint
from shared.view_policy import DEFAULT_POLICY
from shared.views import check_view

Ints = NDArray[np.int64]
OUTPUTS = ("logits", "features")


class LabelledDataset(Protocol):
    """Images that answers are about."""

    labels: NDArray[np.int64]

    @property
    def description(self) -> DatasetDescription:
        """Name, rows, classes, fingerprint."""

    def key_of(self, row: int, view: int) -> bytes:
        """Key of a row under a view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """What the user says about the data set, where it cannot be opened."""

    name: str | None = None
    """NAME/SPLIT."""
    view_policy: str = DEFAULT_POLICY
    """Of a data set that is named so."""


class BroughtAnswers:
    """The answers of a file; raises `InputError` for arrays that do not fit each other. See `AnswerSource`."""

    def __init__(
        self,
        file: TensorFile,
        *,
        teacher: TeacherFacts,
        facts: DatasetFacts,
        dataset: LabelledDataset | None,
        view: int | None,
        dtype: str,
    ) -> None:
        """``dataset``: what the answers are about; None: the file holds keys and labels. ``view``: of all answers."""
        self.name = str(file.path)
        self._outputs = _outputs(file)
        self.num_slots = len(self._outputs["logits"])
        self._rows = _integers(file, "rows", count=self.num_slots)
        self._views = self._read_views(file, view=view)
        said = exported_facts(file)
        self.history = exported_history(file)
        """What the answers were computed with, as far as the file says it."""
        self.teacher = describe_teacher(file, said=said, facts=teacher, outputs=self._outputs)
        self.dtypes = {
            name: said.get("outputs", {}).get(name, {}).get("dtype", dtype) for name in OUTPUTS if name in self._outputs
        }
        self.dataset, self._keys, self._labels = self._match(file, dataset=dataset, facts=facts, said=said)
        self._check_distinct()
        self._first = _first_of_key(self._keys)
        """Slots with the same pixels share the first one's answer, int64 [S]."""

    @property
    def shared(self) -> int:
        """Answers about pixels that an earlier one of the file is about: that one counts."""
        return int(np.count_nonzero(self._first != np.arange(self.num_slots)))

    def keep_as(self, dtypes: Mapping[str, str]) -> None:
        """Keep the outputs of a cache that exists, in its dtypes; raises `InputError` for one that is not here."""
        missing = sorted(dtypes.keys() - self._outputs.keys())
        if missing:
            raise InputError(f"the cache keeps {', '.join(dtypes)}, and {self.name} has no {missing[0]}")
        self.dtypes = dict(dtypes)

    def keys(self, slots: Ints) -> Bytes:
        """See `AnswerSource`."""
        return self._keys[slots]

    def block(self, slots: Ints) -> AnswerBlock:
        """See `AnswerSource`."""
        return AnswerBlock(
            first=int(slots[0]) if len(slots) else 0,
            rows=self._rows[slots],
            views=self._views[slots],
            labels=self._labels[slots],
            keys=self._keys[slots],
            outputs=self._kept(self._first[slots]),
        )

    def _kept(self, slots: Ints) -> dict[str, AnyArray]:
        kept: dict[str, AnyArray] = {}
        for name, dtype in self.dtypes.items():
            values = self._outputs[name][slots]
            if dtype == ENCODED:
                names = (name, *(name + end for end in COMPANIONS))
                kept |= zip(names, encode_rows(values), strict=True)
            else:
                kept[name] = values.astype(dtype)
        return kept

    def top1(self) -> float | None:
        """Share of answers whose largest logit is their label; None where nothing has a label."""
        labelled = np.flatnonzero(self._labels >= 0)
        if not len(labelled):
            return None
        return float((self._outputs["logits"][labelled].argmax(axis=1) == self._labels[labelled]).mean())

    def _read_views(self, file: TensorFile, *, view: int | None) -> Ints:
        if file.get("views") is None:
            if view is None:
                raise InputError(f"{file.path} has no views: say which one its answers are about, such as --view 0")
            return np.full(self.num_slots, view, dtype=np.int64)
        if view is not None:
            raise InputError(f"{file.path} has views of its own: leave out --view")
        return _integers(file, "views", count=self.num_slots)

    def _match(
        self, file: TensorFile, *, dataset: LabelledDataset | None, facts: DatasetFacts, said: Mapping[str, Any]
    ) -> tuple[DatasetDescription, Bytes, Ints]:
        keys = None if file.get("keys") is None else _keys(file, count=self.num_slots)
        labels = None if file.get("labels") is None else _integers(file, "labels", count=self.num_slots)
        if dataset is not None:
            described = dataset.description
            self._check_places(described)
            self._check_policy(described, said=said)
            found = _keys_of(dataset, rows=self._rows, views=self._views)
            self._check_same(keys, found, dataset=described, what="other pixels")
            self._check_same(labels, dataset.labels[self._rows], dataset=described, what="another label")
            return described, found, dataset.labels[self._rows]
        if keys is None or labels is None:
            raise InputError(f"{file.path} has no keys and labels: say what its answers are about with --dataset")
        described = dataset_from(said["dataset"]) if "dataset" in said else self._describe(file, keys, labels, facts)
        self._check_places(described)
        return described, keys, labels

    def _describe(self, file: TensorFile, keys: Bytes, labels: Ints, facts: DatasetFacts) -> DatasetDescription:
        """The data set that the file itself holds: every row under view 0."""
        clean = np.flatnonzero(self._views == 0)
        rows = self._rows[clean]
        count = int(self._rows.max()) + 1 if self.num_slots else 0
        if facts.name is None:
            raise InputError(f"{file.path} does not name its data set: give --dataset, or --name NAME/SPLIT")
        name, _, split = facts.name.partition("/")
        check_name(name, what="data set")
        check_name(split, what="split")
        missing = np.setdiff1d(np.arange(count), rows)
        if len(missing) or not count:
            raise InputError(
                f"{file.path} lacks {len(missing)} rows under view 0, the first is {missing[:1].tolist()}: without all "
                "of them nothing can tell later whether it belongs to a data set; give --dataset"
            )
        order = clean[np.argsort(rows, kind="stable")]
        classes = class_names(file, count=self.teacher.classes)
        return DatasetDescription(
            name=facts.name,
            rows=count,
            classes=classes,
            fingerprint=dataset_fingerprint(keys_N32=keys[order], labels_N=labels[order], classes=classes),
            view_policy=facts.view_policy,
        )

    def _check_places(self, dataset: DatasetDescription) -> None:
        wrong = np.flatnonzero((self._rows < 0) | (self._rows >= (dataset.rows or np.iinfo(np.int64).max)))
        if len(wrong):
            raise RowRangeError(
                f"row {self._rows[wrong[0]]} of {self.name} is not a row of {dataset.name}: use 0 to {dataset.rows - 1}"
            )
        if dataset.name != UPLOADS:
            for view in np.unique(self._views).tolist():
                check_view(view, policy=dataset.view_policy)

    def _check_policy(self, dataset: DatasetDescription, *, said: Mapping[str, Any]) -> None:
        """Where the file says what its views are, they are these."""
        kept = said.get("dataset", {}).get("view_policy", dataset.view_policy)
        if kept != dataset.view_policy and self._views.any():
            raise IdentityError(
                f"{self.name} is about views of {kept}, {dataset.name} has those of {dataset.view_policy}: "
                f"give --view-policy {kept}; nothing was imported"
            )

    def _check_same(self, given: AnyArray | None, found: AnyArray, *, dataset: DatasetDescription, what: str) -> None:
        if given is None:
            return
        wrong = np.flatnonzero((given != found).reshape(len(given), -1).any(axis=1))
        if len(wrong):
            at = wrong[0]
            raise IdentityError(
                f"row {self._rows[at]} view {self._views[at]} has {what} in {self.name} than in {dataset.name} "
                f"({len(wrong)} of {len(given)} answers): its rows are ordered otherwise; nothing was imported"
            )

    def _check_distinct(self) -> None:
        places = np.stack([self._rows, self._views])
        _, first, counts = np.unique(places, axis=1, return_index=True, return_counts=True)
        if self.num_slots and counts.max() > 1:
            at = first[counts > 1][0]
            raise InputError(f"row {self._rows[at]} view {self._views[at]} is in {self.name} more than once")


def _first_of_key(keys: Bytes) -> Ints:
    rows = np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").reshape(-1)
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _outputs(file: TensorFile) -> dict[str, AnyArray]:
    outputs = {name: values for name in OUTPUTS if (values := file.get(name)) is not None}
    if "logits" not in outputs:
        raise InputError(f"{file.path} has no array called logits; it has {', '.join(file.names) or 'nothing'}")
    count = len(outputs["logits"]) if outputs["logits"].ndim else 0
    for name, values in outputs.items():
        if values.ndim != 2 or values.dtype.kind != "f" or len(values) != count or not values.shape[1]:
            raise InputError(
                f"{name} in {file.path} must be floats [{count}, width]; got {values.dtype} {list(values.shape)}"
            )
        wrong = np.flatnonzero(~(np.abs(values) <= MAX_ABS).all(axis=1))
        if len(wrong):
            raise AnswerError(
                f"answer {wrong[0]} of {file.path} is not finite or beyond {MAX_ABS:g} in {name}, "
                f"one of {len(wrong)}: nothing was imported"
            )
    return outputs


def _integers(file: TensorFile, name: str, *, count: int) -> Ints:
    values = file.get(name)
    if values is None:
        raise InputError(f"{file.path} has no {name}: without the row of every answer nothing can be matched")
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise InputError(
            f"{name} in {file.path} must be integers [{count}], one per answer; got {values.dtype} {list(values.shape)}"
        )
    return values.astype(np.int64)


def _keys(file: TensorFile, *, count: int) -> Bytes:
    values = file.get("keys")
    if values is None or values.shape != (count, KEY_BYTES) or values.dtype != np.uint8:
        found = "nothing" if values is None else f"{values.dtype} {list(values.shape)}"
        raise InputError(f"keys in {file.path} must be uint8 [{count}, {KEY_BYTES}]; got {found}")
    return values


def _keys_of(dataset: LabelledDataset, *, rows: Ints, views: Ints) -> Bytes:
    joined = b"".join(dataset.key_of(row, view) for row, view in zip(rows.tolist(), views.tolist(), strict=True))
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)
