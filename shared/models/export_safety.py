"""Reads an archive of ``torch.export`` before torch does, and refuses what could run code when it is loaded.

torch unpickles sample inputs, tensor subclasses and custom objects without restriction, evaluates size expressions and
guards as source code, and looks operators up by name. What passes here is plain tensors and known operators.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import torch

from shared.errors import InputError

OPERATOR = re.compile(r"torch\.ops\.(aten|prims|higher_order|torchvision|quantized_decomposed)\.[a-zA-Z]\w*(\.\w+)?")
"""Operators that only compute; also compared in full, so that no attribute can be reached through them."""
PLAIN_OPERATOR = re.compile(r"(_operator|math)\.[a-z]\w*")
EXPRESSION = re.compile(r"(?:Symbol\('\w+'|[A-Z]\w*\(|\b[a-z]\w*\b(?!\()|\b\d+\b|\b(?:True|False)\b|[-+*/%(), <>=])*")
"""Arithmetic of size symbols, written as sympy's classes: no attributes, no brackets, no text but a symbol's name."""
CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict"}
PLAIN_ENTRY = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|version|\.format_version|\.storage_alignment)"
)


def vetted_archive(data: bytes, *, name: str) -> bytes:
    """The archive rewritten from its vetted entries only; `InputError` names the first entry that could run code."""
    findings: list[str] = []
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as vetted:
        # Rewritten so that torch's own zip reader cannot see another archive in the same bytes.
        names = archive.namelist()
        pickled = _entries_marked_as_pickle(archive)
        findings += [f"{entry} twice" for entry in sorted({entry for entry in names if names.count(entry) > 1})]
        for entry in dict.fromkeys(names):
            content = archive.read(entry)
            findings += [f"{entry}: {reason}" for reason in _reasons(entry, content=content, pickled=pickled)]
            vetted.writestr(entry, _without_guards(content) if _is_program(entry) else content)
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise InputError(
            f"{name} holds content that runs code when loaded ({findings[0]}{more}); "
            "use --trust-export if you made the file yourself, or export the model again with plain tensors"
        )
    return written.getvalue()


def _inside(entry: str) -> str:
    """The entry's place below the archive's own folder."""
    return "/".join(PurePosixPath(entry).parts[1:])


def _is_program(entry: str) -> bool:
    return _inside(entry).startswith("models/") and entry.endswith(".json")


def _entries_marked_as_pickle(archive: zipfile.ZipFile) -> set[str]:
    """Places (below the archive's folder) that the archive's own lists call pickled."""
    marked = set()
    for entry in archive.namelist():
        place = PurePosixPath(_inside(entry))
        if place.name.endswith("_config.json") and str(place.parent) in {"data/weights", "data/constants"}:
            config = json.loads(archive.read(entry)).get("config", {})
            marked |= {str(place.parent / item["path_name"]) for item in config.values() if item.get("use_pickle")}
    return marked


def _reasons(entry: str, *, content: bytes, pickled: set[str]) -> Iterator[str]:
    place = _inside(entry)
    if place in pickled or re.match(r"data/constants/(custom_obj|opaque_obj)", place):
        yield "a pickled object"
    elif re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+", place):
        pass
    elif re.fullmatch(r"data/(sample_inputs|weights|constants)/[\w.-]+\.pt", place):
        if not _holds_tensors_only(content):
            yield "a pickle of more than tensors"
    elif _is_program(entry):
        yield from _program_reasons(json.loads(content))
    elif not (re.fullmatch(r"data/(weights|constants)/[\w.-]+_config\.json", place) or PLAIN_ENTRY.fullmatch(place)):
        yield "an entry that a plain program does not have"


def _holds_tensors_only(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, TypeError, KeyError):
        return False
    return True


def _program_reasons(document: Any) -> Iterator[str]:
    for key, value in _fields(document):
        if key == "target" and isinstance(value, str):
            if not (OPERATOR.fullmatch(value) or PLAIN_OPERATOR.fullmatch(value)):
                yield f"the operator {value[:60]!r}"
        elif key == "expr_str" and not EXPRESSION.fullmatch(str(value)):
            yield f"the size expression {str(value)[:60]!r}"
        elif key == "range_constraints" and not all(EXPRESSION.fullmatch(symbol) for symbol in value):
            yield "a size symbol that is source code"
        elif key in {"in_spec", "out_spec"} and isinstance(value, str):
            types = set(re.findall(r'"type":\s*"([^"]*)"', value))
            if types - CONTAINERS:
                yield f"the container {sorted(types - CONTAINERS)[0][:60]!r}"


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _fields(item)
    elif isinstance(value, list):
        for item in value:
            yield from _fields(item)


def _without_guards(content: bytes) -> bytes:
    """The program without its guards (source code that checks sizes) and without names of the author's own modules."""
    document = json.loads(content)
    document["guards_code"] = []
    for key, value in list(_fields(document)):
        if key == "nodes" and isinstance(value, list):
            for node in value:
                node["metadata"] = {}
    return json.dumps(document).encode()
