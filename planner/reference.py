"""Names of models: `path-or-org/name[@revision][+adapter[@revision]]`.

A folder's name may hold `+` and `@`, too: what exists as a folder is that folder, and only what is left is split at these signs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath

from .document import UnknownKey

LAYOUTS = ("llama",)
"""Layouts into which a model's tensors can be brought while they are read (`fused`)."""


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or Hub name, and which revision of it."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as a config names it. `layout`: read its tensors under the names and shapes of that family."""

    model: Location
    adapter: Location | None = None
    layout: str | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)


def folder_of(name: str) -> FilePath:
    """The folder that a name means, if it means one; `~` is the user's home."""
    folder = FilePath(name)
    with suppress(RuntimeError):  # "~somebody" whom this machine does not know
        folder = folder.expanduser()
    return folder


def parse_reference(value: object) -> ModelReference:
    """From text, or from the map `{model: {path, revision}, lora: {path, revision}, layout: llama}`.

    In a text, names of existing folders are whole, the longest that fits first. Raises ValueError with a message for the user,
    UnknownKey for keys that such a map does not have.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, dict):
        return _from_map(value)
    raise ValueError(f"a model is a folder or a Hub name such as org/name, not {value!r}")


def _from_text(text: str) -> ModelReference:
    text = text.strip()
    if "+" not in text or _is_folder(text):
        return ModelReference(_location(text))
    splits = list(_splits(text, "+"))
    bases = [split for split in reversed(splits) if _is_folder(split[0])]
    adapters = [split for split in splits if _is_folder(split[1])]
    model, adapter = map(_location, [*bases, *adapters, splits[0]][0])
    if any("+" in location.path and not _is_folder(location.path) for location in (model, adapter)):
        raise ValueError(f"'{text}' has more than one '+': a model takes one adapter, and there is no such folder")
    return ModelReference(model, adapter)


def _location(text: str) -> Location:
    text = _as_hub_name(text.strip())
    if "@" not in text or _is_folder(text):
        pieces = [text]
    else:
        splits = list(_splits(text, "@"))
        folders = [split for split in reversed(splits) if _is_folder(split[0])]
        pieces = list([*folders, splits[0]][0])
        if "@" in pieces[1]:
            raise ValueError(f"'{text}' has more than one '@': a model takes one revision, and there is no such folder")
    if not all(pieces):
        raise ValueError(f"'{text}' is not a model: write a folder or org/name, then perhaps @revision and +adapter")
    return Location(*pieces)


_ADDRESS = re.compile(
    r"https?://(?P<host>[^/]+)/(?P<name>[\w.-]+/[\w.-]+)(/(tree|blob|resolve)/(?P<revision>[^/?#]+)[^?#]*)?/?([?#].*)?"
)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
_DRIVE = re.compile(r"(?P<drive>[A-Za-z]):[\\/]")


def _as_hub_name(text: str) -> str:
    """What people paste for a Hub name, as such a name: a page's address, a name with a slash behind it."""
    if "://" in text:
        match = _ADDRESS.fullmatch(text)
        own = os.environ.get("HF_ENDPOINT", "").partition("://")[2].strip("/")
        if match is None or match["host"] not in (*_HOSTS, own):
            raise ValueError(
                f"'{text}' is not the address of a model on the Hub: write org/name, or download the model and name its folder"
            )
        return f"{match['name']}@{match['revision']}" if match["revision"] not in (None, "main") else match["name"]
    if _DRIVE.match(text) and not _is_folder(text):
        drive, rest = text[0].lower(), text[3:].replace("\\", "/")
        raise ValueError(f"'{text}' is a Windows path: inside WSL it is /mnt/{drive}/{rest}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+/", text) and not _is_folder(text):
        return text[:-1]
    return text


def _splits(text: str, sign: str) -> Iterator[tuple[str, str]]:
    """The text before and after each sign, the first sign first."""
    for position, character in enumerate(text):
        if character == sign:
            yield text[:position].strip(), text[position + 1 :].strip()


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and folder_of(name).is_dir()
    except (OSError, ValueError):  # too long for a name, in a folder that is closed to us, a NUL
        return False


def _from_map(value: dict[object, object]) -> ModelReference:
    says = "a model written as a map has the key 'model', and perhaps 'lora', 'layout' and 'override_architecture'"
    if "model" not in value:
        raise ValueError(says)
    if unknown := [key for key in value if key not in ("model", "lora", "layout", "override_architecture")]:
        raise UnknownKey(says, [(str(key),) for key in unknown])
    adapter, layout = value.get("lora"), value.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: expected {' or '.join(LAYOUTS)}, not {layout!r}")
    place = _location_from_map(adapter, "lora") if adapter is not None else None
    return ModelReference(_location_from_map(value["model"], "model"), place, str(layout) if layout else None)


def _location_from_map(value: object, key: str) -> Location:
    says = "write {path: folder or org/name, revision: text}"
    if isinstance(value, str):
        return _location(value)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise ValueError(says)
    if unknown := [inner for inner in value if inner not in ("path", "revision")]:
        raise UnknownKey(says, [(key, str(inner)) for inner in unknown])
    revision = value.get("revision")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(says)
    return Location(value["path"], revision)
