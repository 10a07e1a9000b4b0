"""What goes along with a model's weights: tokenizer, templates, settings, licence, and what those settings name in turn.

Most files are known by their names alone. Two kinds are named in others: modules.json (sentence-transformers) names folders, some
of which hold weights of their own, and `auto_map` in config.json and its like names Python files. These are bytes like any other:
nothing here imports them, their text is only searched for the files that it imports in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .json_text import loads
from .store import MOST_FILES, Store, inner_path

if TYPE_CHECKING:
    from .catalog import Checkpoint

TEMPLATES = "additional_chat_templates"
"""Folder in which transformers keeps chat templates with names, each a file."""

FOLDERS = (TEMPLATES, "custom_generate")
"""Folders that belong to a model without being named anywhere."""

MODULES = "modules.json"
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|tflite|ot|npz)(\.index\.json)?$", re.IGNORECASE)
_SIDE = re.compile(r"\.(json|jinja|txt|model|tiktoken|vocab|yaml|spm)$", re.IGNORECASE)
_LICENCE = re.compile(
    r"((un)?licen[cs]e|notice|copying|copyright|use[ _-]policy|third[ _-]?party[ _-]?notice)s?([ ._-].*)?", re.IGNORECASE
)
_CODE = re.compile(r"\.pyc?$", re.IGNORECASE)
_NOT_SIDE = re.compile(r"(readme\.md|\.git.*|weft\.json|config\.json|training_args\.bin|.*\.(lock|partial))", re.IGNORECASE)

_SETTINGS = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
"""Files beside config.json in which `auto_map` may stand."""

_REFERENCE = re.compile(r"(\w+)\.\w+")
_IMPORT = re.compile(
    r"^[ \t]*from[ \t]+\.(?:(?P<module>\w+)[ \t]+import\b|[ \t]+import[ \t]+(?P<modules>\([\w,\s]+|[\w, \t]+))", re.MULTILINE
)
_LONGEST_CODE = 4 << 20


def is_weights(name: str) -> bool:
    """Whether a file's ending is that of weights, or of an index of them."""
    return bool(_WEIGHTS.search(name))


def is_side_file(name: str) -> bool:
    """Whether a file that stands directly in a model goes along with it by its name."""
    if is_weights(name) or _CODE.search(name) or _NOT_SIDE.fullmatch(name):
        return False
    return bool(_SIDE.search(name)) or bool(_LICENCE.fullmatch(name))


def known_side_files(store: Store, sizes: Mapping[str, int]) -> dict[str, int]:
    """The side files that can be told without opening one, with their sizes. Raises CheckpointError as `Store.below` does."""
    found = {name: size for name, size in sizes.items() if is_side_file(name) and inner_path(name)}
    for folder in FOLDERS:
        found |= _below(store, folder)
    return found


def all_side_files(checkpoint: Checkpoint) -> dict[str, int]:
    """A model's side files and what they name, with their sizes: for the model whose files the result gets.

    Raises CheckpointError for a modules.json that cannot be read, or that names what does not lie in the model's folder.
    """
    store = checkpoint.store
    sizes, found = store.sizes(), dict(checkpoint.side_files)
    if MODULES in sizes:
        for folder, kind in _modules(store):
            found |= _below(store, folder) if folder else {}
            found |= _code(store, sizes, [kind])
    if any(name.endswith(".py") for name in sizes):
        settings = [checkpoint.config, *(_map(store, name) for name in _SETTINGS if name in sizes)]
        found |= _code(store, sizes, [reference for one in settings for reference in _references(one)])
    if len(found) > MOST_FILES:
        raise CheckpointError(
            f"{checkpoint.label}: {len(found)} files would be copied with its weights, and at most {MOST_FILES} are allowed"
        )
    return found


def notes(label: str, sizes: Mapping[str, int], copied: Mapping[str, int]) -> Iterator[str]:
    """What people should know of the side files `copied` from model `label`; `sizes` has the files directly in it."""
    code = sorted(name for name in copied if _CODE.search(name))
    left = sorted(name for name in sizes if name.endswith(".py") and name not in copied)
    if code:
        yield f"{label} brings code of its own ({_some(code)}), which is copied as it is and neither run nor checked"
    if left:
        yield f"{label} brings code of its own ({_some(left)}), which is neither run nor copied"
    odd = sorted(name for name in sizes if is_side_file(name) and not inner_path(name))
    if odd:
        yield f"{label}: not copied, for their names are too long or odd: {_some(odd)}"
    weights = sorted({name.rpartition("/")[0] + "/" for name in copied if is_weights(name)})
    if weights:
        yield f"{label}: the weights in {_some(weights)} are copied as they are, not merged"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _below(store: Store, folder: str) -> dict[str, int]:
    """What lies in a folder, but for what Python compiled there."""
    return {name: size for name, size in store.below(folder).items() if "/__pycache__/" not in name}


def _modules(store: Store) -> Iterator[tuple[str, str]]:
    """The folder of each module ("" for the model's own) and the name of its class."""
    label = f"{store.label}/{MODULES}"
    try:
        modules = loads(store.read(MODULES))
    except ValueError as error:
        raise CheckpointError(f"{label}: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{label}: not a list of modules")
    for module in modules:
        path = module.get("path", "")
        folder = path.removeprefix("./").rstrip("/") if isinstance(path, str) else None
        if folder is None or (folder not in ("", ".") and not (inner_path(f"{folder}/file") and _ours(folder))):
            raise CheckpointError(f"{label}: a module is in {path!r}, which is not a folder of a model")
        yield "" if folder == "." else folder, str(module.get("type"))


def _ours(folder: str) -> bool:
    """Whether a folder may stand in a result: it is not hidden, and has no name that weft might give to a file."""
    first = folder.split("/", maxsplit=1)[0]
    return not (first.startswith(".") or is_weights(first) or is_side_file(first) or _NOT_SIDE.fullmatch(first))


def _map(store: Store, name: str) -> Mapping[str, Any]:
    """A file of settings; nothing of one that is no map: it is copied as it is."""
    try:
        value = loads(store.read(name))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _references(value: object) -> Iterator[str]:
    """What `auto_map` and custom pipelines name, as `file.Class`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "auto_map" and isinstance(item, Mapping):
                for named in item.values():
                    yield from (name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
            elif key == "impl" and isinstance(item, str):
                yield item
            else:
                yield from _references(item)


def _code(store: Store, sizes: Mapping[str, int], references: list[str]) -> dict[str, int]:
    """The Python files that classes stand in, as `file.Class`, and those that they import from beside them."""
    waiting = [f"{match[1]}.py" for reference in references if (match := _REFERENCE.fullmatch(reference))]
    found: dict[str, int] = {}
    while waiting:
        name = waiting.pop()
        if name not in sizes or name in found:
            continue
        found[name] = sizes[name]
        if sizes[name] <= _LONGEST_CODE:
            for match in _IMPORT.finditer(store.read(name).decode("utf-8", "replace")):
                waiting += [f"{module}.py" for module in re.findall(r"\w+", match["module"] or match["modules"])]
    return found
