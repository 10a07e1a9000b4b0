"""The model card of a result: what it says, and what it must not show."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from merges import linear, merge, plan, write_two
from trials import trials
from weft.engine.card import model_card, shown_names, with_names


def parts(card: str) -> tuple[dict[str, object], str]:
    """The front matter, and what stands below it."""
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_it_names_models_and_method_and_holds_the_config(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    config = {**linear(base, other), "name": "a `strange` name"}
    merge(config, tmp_path / "out")
    front, body = parts((tmp_path / "out" / "README.md").read_text())
    assert front == {"library_name": "transformers", "tags": ["merge", "weft"]}
    assert (
        "# a `strange` name" in body and "**linear**" in body and "- base\n- other\n" in body and "hf upload ORG/NAME . ." in body
    )
    found = yaml.safe_load(body.split("```yaml\n")[1].split("\n```")[0])
    models = [{**one, "model": Path(one["model"]).name} for one in config["models"]]
    assert found == {**config, "models": models, "base_model": "base"}


def test_it_shows_no_place_on_this_machine(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    card = model_card(plan({**linear(base, other), "base_model": f"{base}/"}))
    assert str(tmp_path) not in card and "base_model: base" in card


@pytest.mark.parametrize(
    ("licences", "licence"),
    [
        (("apache-2.0", "apache-2.0"), "apache-2.0"),
        (("apache-2.0", "mit"), None),
        (("apache-2.0", None), None),
        ((None, None), None),
    ],
)
def test_a_licence_stands_in_it_where_all_models_have_it(
    tmp_path: Path, licences: tuple[str | None, str | None], licence: str | None
) -> None:
    for folder, one in zip(write_two(tmp_path), licences, strict=True):
        (folder / "README.md").write_text(f"---\nlicense: {one}\ntags: [x]\n---\n# A model\n" if one else "# A model\n")
    front, body = parts(model_card(plan(linear(tmp_path / "base", tmp_path / "other"))))
    assert front.get("license") == licence
    for one in licences:
        assert one is None or f"({one})" in body


BROKEN = ("---\nlicense: [a\n---\n", "---\nlicense: {a: b}\n---\n", "---\n", "\0", "---\nlicense: '\x1b[31m'\n---\n")


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_card_of_a_model_does_no_harm(tmp_path: Path, text: str) -> None:
    base, other = write_two(tmp_path)
    (base / "README.md").write_text(text)
    assert "license" not in parts(model_card(plan(linear(base, other))))[0]


def test_folders_of_one_name_are_told_apart() -> None:
    assert shown_names(["/a/x/model", "/a/y/model", "/a/z"]) == {"/a/x/model": "x/model", "/a/y/model": "y/model", "/a/z": "z"}
    assert shown_names(["model", "./model/", "/"]) == {"model": "model", "./model/": "model", "/": "/"}


NAMES = st.lists(st.sampled_from(["a", "b", "models", "merged-1"]), min_size=1, max_size=4)


@given(st.lists(NAMES.map(lambda steps: "/" + "/".join(["home", "me", *steps])), min_size=1, max_size=4, unique=True))
@trials(50)
def test_whatever_the_folders_are_called_no_path_is_left(paths: list[str]) -> None:
    config = {"models": [{"model": path} for path in paths], "base_model": paths[0] + "+" + paths[-1]}
    shown = with_names(yaml.safe_dump(config), shown_names(paths))
    assert "/home" not in shown
    names = [one["model"] for one in yaml.safe_load(shown)["models"]]
    assert len(set(names)) == len(paths) and all(path.endswith(f"/{name}") for name, path in zip(names, paths, strict=True))
