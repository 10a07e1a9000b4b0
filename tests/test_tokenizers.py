"""Merged vocabularies, through the command: what the files say, what transformers makes of them, and every row exactly."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import llama_config, llama_tensors, write_model
from cli.command import Outcome, finished_looking, weft
from golden.compare import load
from vocabularies import word_tokenizer
from weft.engine import executor
from weft.engine.pool import Pool
from weft.planner.chat_templates import TEMPLATES

MODELS = Path(__file__).parent / "golden" / "models"
TEXTS = ["solve 12 + 30", "", "  two  spaces\n\ttab", "日本語 naïve – 🙂", "def merge(model): return model"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Given = tuple[str | None, str | int, bool]
"""An override: a model, its token or id, and whether it is forced; no model: zeros."""


class DirtyPool(Pool):
    """Memory that is NaN wherever nothing was read or written."""

    def __init__(self, nbytes: int, *, pinned: bool = False) -> None:
        super().__init__(nbytes, pinned=pinned)
        self._bytes.fill_(0xFF)


@pytest.fixture(autouse=True)
def memory_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "Pool", DirtyPool)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden models beside others that are made of them here."""
    root = tmp_path_factory.mktemp("zoo")
    for name in ("llama-base", "llama-chatml", "llama-tools", "qwen2-base"):
        shutil.copytree(MODELS / name, root / name)
    changed(root, "llama-tools", "llama-bf16", dtype=torch.bfloat16)
    swapped(root)
    with_tokens(root, "llama-chatml", "llama-padded", [], pad_to_multiple_of=64)
    with_tokens(root, "qwen2-base", "qwen2-tools", ["<|tool|>", "<|result|>"])
    unresized(root)
    return root


def changed(root: Path, name: str, new: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A copy of a model with other weights."""
    shutil.copytree(root / name, root / new)
    random = torch.Generator().manual_seed(len(new))
    tensors = {k: (t + 0.1 * torch.randn(t.shape, generator=random)).to(dtype) for k, t in load(root / name).items()}
    save_file(tensors, root / new / "model.safetensors")
    return tensors


def swapped(root: Path) -> None:
    """The chat model with its two tokens the other way around, one of which ends a text."""
    changed(root, "llama-chatml", "llama-swapped")
    folder = root / "llama-swapped"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["id"] = {288: 289, 289: 288}.get(token["id"], token["id"])
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, value in (("config.json", 288), ("generation_config.json", [2, 288])):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": value}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_end|>", "<|im_start|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def with_tokens(root: Path, name: str, new: str, tokens: list[str], **how: Any) -> None:
    """A model with more tokens, as transformers adds them."""
    torch.manual_seed(len(new))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(root / name), AutoTokenizer.from_pretrained(root / name)
    tokenizer.add_tokens(tokens, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), **how)
    model.save_pretrained(root / new)
    tokenizer.save_pretrained(root / new)


def unresized(root: Path) -> None:
    """A model whose tokenizer has a token for which there is no row, as people forget to make one."""
    shutil.copytree(root / "llama-tools", root / "llama-unresized")
    tokenizer = AutoTokenizer.from_pretrained(root / "llama-tools")
    tokenizer.add_tokens(["<|forgotten|>"], special_tokens=True)
    tokenizer.save_pretrained(root / "llama-unresized")


@pytest.fixture(autouse=True)
def in_zoo(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs name the models as folders beside each other."""
    monkeypatch.chdir(zoo)


def mix(weights: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """A weighted average. Of the weights 1 and 0, it is one model's tensors as they were laid out."""
    return {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": w}} for m, w in weights.items()], **more}


def run(config: Mapping[str, Any], out: Path, *arguments: str) -> Outcome:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    outcome = weft("run", path, out, *(arguments or ("--ram", "256MiB")))
    assert outcome.code == 0, outcome.err
    return outcome


def refused(config: Mapping[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    line = weft("run", path, tmp_path / "bad").line
    assert finished_looking(tmp_path / "bad") == []
    return line


def ids_of(folder: Path) -> dict[str, int]:
    """Every token that has a row, with its id, by transformers."""
    rows = len(load(folder)[EMBEDDING])
    return {token: number for token, number in AutoTokenizer.from_pretrained(folder).get_vocab().items() if number < rows}


def laid_out(
    names: Sequence[str],
    place: int,
    base: str | None,
    tokens: Mapping[str, int],
    size: int,
    given: Mapping[str, Given],
    name: str,
) -> Tensor:
    """One model's rows by the new vocabulary: the rules, one token at a time."""
    tables = [load(Path(n)).get(name, load(Path(n))[EMBEDDING]) for n in names]
    ids = [ids_of(Path(n)) for n in names]
    rows = torch.full((size, tables[place].shape[1]), float("nan"))
    for token, new in tokens.items():
        have = [i for i in range(len(names)) if token in ids[i]]
        force = token in given and given[token][2]
        if place in have and not force:
            donors = [(place, ids[place][token])]
        elif token in given:
            model, wanted, _ = given[token]
            donors = []
            if model is not None:
                i = names.index(model)
                donors = [(i, ids[i][wanted] if isinstance(wanted, str) else wanted)]
        elif base in [names[i] for i in have]:
            donors = [(names.index(base), ids[names.index(base)][token])] if base else []
        else:
            donors = [(i, ids[i][token]) for i in have]
        total = torch.zeros(rows.shape[1])
        for i, old in donors:
            total = total + tables[i][old].float()
        rows[new] = (total / max(len(donors), 1)).to(tables[place].dtype).float()
    rows[len(tokens) :] = rows[: len(tokens)].double().mean(0).float()
    return rows


def sound(out: Path) -> Any:
    """The tokenizer of a result that transformers can use, and in which nothing contradicts anything else."""
    config, tensors = json.loads((out / "config.json").read_text()), load(out)
    rows = config["vocab_size"]
    assert all(len(tensors[name]) == rows for name in (EMBEDDING, HEAD) if name in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.get_vocab()
    assert sorted(ids.values()) == list(range(len(tokenizer))) and len(tokenizer) <= rows
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(rows)[:, None])[0]).all()
        made = model.generate(torch.tensor([[1, 5]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert int(made.max()) < rows
    for text in TEXTS:
        written = tokenizer(text).input_ids
        assert max(written, default=0) < rows
        assert tokenizer.decode(written, skip_special_tokens=True) == text
    for token in tokenizer.all_special_tokens:
        assert tokenizer(token, add_special_tokens=False).input_ids == [ids[token]], "one token, whole"
    generation = json.loads((out / "generation_config.json").read_text())
    for name in ("bos", "eos", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        for settings in (config, generation):
            said = settings.get(f"{name}_token_id")
            assert number in (said if isinstance(said, list) else [said]), (name, said, number)
            assert all(i < len(tokenizer) for i in (said if isinstance(said, list) else [said]))
    return tokenizer


CASES: dict[str, tuple[list[str], str | None, dict[str, Any], dict[str, Given]]] = {
    "union": (["llama-chatml", "llama-tools"], None, {"tokenizer_source": "union"}, {}),
    "union, the other way": (["llama-tools", "llama-chatml"], None, {"tokenizer": {"source": "union"}}, {}),
    "union with a base that has few": (
        ["llama-chatml", "llama-tools", "llama-base"], "llama-base", {"tokenizer_source": "union"}, {},
    ),
    "union with a base that has them": (
        ["llama-tools", "llama-swapped", "llama-chatml"], "llama-chatml", {"tokenizer_source": "union"}, {},
    ),
    "means of those that have a token": (
        ["llama-tools", "llama-swapped", "llama-chatml"], None, {"tokenizer_source": "union"}, {},
    ),
    "base": (["llama-chatml", "llama-base"], "llama-base", {"tokenizer_source": "base"}, {}),
    "base with more than others": (["llama-base", "llama-swapped"], "llama-swapped", {"tokenizer_source": "base"}, {}),
    "a model": (["llama-chatml", "llama-tools"], None, {"tokenizer_source": "llama-tools"}, {}),
    "a model and a base": (
        ["llama-chatml", "llama-tools", "llama-base"], "llama-base", {"tokenizer": {"source": "llama-chatml"}}, {},
    ),
    "models longer than their tokenizers": (["llama-padded", "llama-tools"], None, {"tokenizer_source": "union"}, {}),
    "tokenizers longer than their models": (["llama-unresized", "llama-chatml"], None, {"tokenizer_source": "union"}, {}),
    "two element types": (["llama-chatml", "llama-bf16"], None, {"tokenizer_source": "union"}, {}),
    "padding": (
        ["llama-chatml", "llama-tools"], None, {"tokenizer": {"source": "union", "pad_to_multiple_of": 64}}, {},
    ),
    "a row of another model": (
        ["llama-tools", "llama-swapped", "llama-chatml"],
        None,
        {"tokenizer": {"tokens": {"<|im_start|>": {"source": "llama-chatml"}}}},
        {"<|im_start|>": ("llama-chatml", "<|im_start|>", False)},
    ),
    "a forced row": (
        ["llama-tools", "llama-swapped", "llama-chatml"],
        None,
        {"tokenizer": {"tokens": {"<|im_start|>": {"source": "llama-chatml", "force": True}}}},
        {"<|im_start|>": ("llama-chatml", "<|im_start|>", True)},
    ),
    "another token's row": (
        ["llama-chatml", "llama-tools"],
        None,
        {"tokenizer": {"tokens": {
            "<|im_end|>": {"source": {"kind": "model_token", "model": "llama-chatml", "token": "</s>"}, "force": True},
            "<|tool|>": {"source": {"kind": "model_token", "model": "llama-tools", "token_id": 7}},
        }}},
        {"<|im_end|>": ("llama-chatml", "</s>", True), "<|tool|>": ("llama-tools", 7, False)},
    ),
    "zeros and a token that nobody has": (
        ["llama-chatml", "llama-tools"],
        None,
        {"tokenizer": {"source": "union", "pad_to_multiple_of": 8, "tokens": {
            "<|im_end|>": {"source": {"kind": "zero"}},
            "<|tool|>": {"source": {"kind": "zero"}, "force": True},
            "<|new|>": {"source": {"kind": "model_token", "model": "llama-chatml", "token": "<|im_start|>"}},
        }}},
        {"<|im_end|>": (None, "", False), "<|tool|>": (None, "", True), "<|new|>": ("llama-chatml", "<|im_start|>", False)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_row_of_every_model(case: str, tmp_path: Path) -> None:
    """Each model alone comes out of the merge with exactly the rows that it should have."""
    names, base, keys, given = CASES[case]
    more = {**keys, "dtype": "float32"} | ({"base_model": base} if base else {})
    for place, name in enumerate(names):
        out = tmp_path / name
        run(mix({n: float(n == name) for n in names}, **more), out)
        tokens = {token: number for token, number in AutoTokenizer.from_pretrained(out).get_vocab().items()}
        got = load(out)
        for kind in (EMBEDDING, HEAD):
            want = laid_out(names, place, base, tokens, len(got[kind]), given, kind)
            assert torch.equal(got[kind][: len(tokens)], want[: len(tokens)]), kind
            assert torch.allclose(got[kind][len(tokens) :], want[len(tokens) :], rtol=1e-5, atol=1e-7), kind
    sound(out)
    multiple = (keys.get("tokenizer") or {}).get("pad_to_multiple_of", 1)
    assert len(got[EMBEDDING]) == -(-len(tokens) // multiple) * multiple


def test_which_tokens_there_are(tmp_path: Path) -> None:
    chatml, tools, base = (ids_of(Path(name)) for name in ("llama-chatml", "llama-tools", "llama-base"))
    wanted = {"union": chatml | tools, "base": base, "llama-tools": tools}
    for source, tokens in wanted.items():
        out = tmp_path / source
        run(mix({"llama-chatml": 0.5, "llama-tools": 0.5}, base_model="llama-base", tokenizer_source=source), out)
        ids = sound(out).get_vocab()
        assert ids.keys() == tokens.keys()
        assert base.items() <= ids.items(), "the base's tokens keep their ids"


@pytest.mark.parametrize("method", ["ties", "slerp", "model_stock", "sce"])
def test_methods_see_the_rows_that_were_laid_out(method: str, tmp_path: Path) -> None:
    """Models that were laid out before the merge, without the setting, give the same bytes."""
    names = ["llama-base", "llama-chatml"] if method == "slerp" else ["llama-chatml", "llama-tools", "llama-base"]
    for name in names:
        config = mix({n: float(n == name) for n in names}, base_model="llama-base", tokenizer_source="union")
        run(config, tmp_path / name)
    body: dict[str, Any] = {"merge_method": method, "dtype": "float32"}
    if method == "slerp":
        body["parameters"] = {"t": 0.3}
    elif method == "ties":
        body["parameters"] = {"weight": 0.5, "density": 0.6}
    listed = [{"model": name} for name in (names if method == "slerp" else names[:2])]
    run({**body, "models": listed, "base_model": "llama-base", "tokenizer_source": "union"}, tmp_path / "moved")
    placed = [{"model": str(tmp_path / item["model"])} for item in listed]
    run({**body, "models": placed, "base_model": str(tmp_path / "llama-base")}, tmp_path / "placed")
    assert (tmp_path / "moved" / "model.safetensors").read_bytes() == (tmp_path / "placed" / "model.safetensors").read_bytes()


def test_a_stack_of_layers(tmp_path: Path) -> None:
    """The first slice's model gives the embedding, the last one's the head, both by the same vocabulary."""
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("llama-chatml", [0, 4]), ("llama-tools", [2, 6]))]
    out = tmp_path / "out"
    run({"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union", "dtype": "float32"}, out)
    tokens, got = sound(out).get_vocab(), load(out)
    names = ["llama-chatml", "llama-tools"]
    assert torch.equal(got[EMBEDDING], laid_out(names, 0, None, tokens, 291, {}, EMBEDDING))
    assert torch.equal(got[HEAD], laid_out(names, 1, None, tokens, 291, {}, HEAD))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(mix({"qwen2-base": 0.5, "qwen2-tools": 0.5}, tokenizer={"source": "union", "pad_to_multiple_of": 8}), out)
    tokenizer = sound(out)
    got = load(out)
    assert HEAD not in got and got[EMBEDDING].shape[0] == 296 and len(tokenizer) == 290
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    want = load(Path("qwen2-tools"))[EMBEDDING]
    assert torch.equal(got[EMBEDDING][288:290], want[288:290]), "one model has them, so both do"


def test_a_tied_model_beside_one_that_is_not(tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    shutil.copytree("qwen2-tools", untied)
    tensors = load(untied)
    tensors[HEAD] = torch.randn_like(tensors[EMBEDDING])
    save_file(tensors, untied / "model.safetensors")
    settings = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    out = tmp_path / "out"
    run(mix({str(untied): 0.0, "qwen2-base": 1.0}, tokenizer_source="union"), out)
    sound(out)
    got, own = load(out), load(Path("qwen2-base"))[EMBEDDING]
    assert torch.equal(got[HEAD][:288], own) and torch.equal(got[EMBEDDING][:288], own)
    assert torch.equal(got[HEAD][288:], tensors[HEAD][288:]) and torch.equal(got[EMBEDDING][288:], tensors[EMBEDDING][288:])


# What people complain about.


def test_complaint_broken_tokenizers(tmp_path: Path) -> None:
    """Unions that come out garbled: text is split as the base splits it, special tokens stay whole, files do not swell."""
    out = tmp_path / "out"
    run(mix({"llama-chatml": 0.5, "llama-tools": 0.5}, base_model="llama-base", tokenizer_source="union"), out)
    ours, theirs = sound(out), AutoTokenizer.from_pretrained("llama-base")
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
    chat = "<|im_start|>user\nhi<|im_end|><|tool|>"
    pieces = ours.convert_ids_to_tokens(ours(chat, add_special_tokens=False).input_ids)
    assert [piece for piece in pieces if "<|" in piece] == ["<|im_start|>", "<|im_end|>", "<|tool|>"]
    assert ours.decode(ours(chat, add_special_tokens=False).input_ids) == chat
    ours.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.get_vocab() == ours.get_vocab() and again(chat).input_ids == ours(chat).input_ids
    assert (out / "tokenizer.json").stat().st_size < 1.1 * Path("llama-chatml/tokenizer.json").stat().st_size


@pytest.mark.parametrize("source", ["union", "base", "llama-unresized"])
def test_complaint_token_ids_out_of_range(source: str, tmp_path: Path) -> None:
    """A token without a row gets none, and no file speaks of it: its id would be past the end of the embedding."""
    assert len(AutoTokenizer.from_pretrained("llama-unresized")) > len(load(Path("llama-unresized"))[EMBEDDING])
    out = tmp_path / "out"
    run(mix({"llama-unresized": 0.5, "llama-base": 0.5}, base_model="llama-unresized", tokenizer_source=source), out)
    tokenizer = sound(out)
    assert "<|forgotten|>" not in tokenizer.get_vocab() and len(tokenizer) == 289
    assert max(tokenizer("text with <|forgotten|> in it").input_ids) < 289
    assert not any("forgotten" in path.read_text() for path in out.glob("*.json") if path.name != "weft.json")


def test_complaint_rows_of_nan(tmp_path: Path) -> None:
    """Rows that nobody has, and padding, are numbers, although all memory was NaN before."""
    overrides = {"<|new|>": {"source": {"kind": "zero"}}, "<|im_end|>": {"source": {"kind": "zero"}, "force": True}}
    out = tmp_path / "out"
    outcome = run(
        mix(
            {"llama-chatml": 0.5, "llama-bf16": 0.5},
            tokenizer={"source": "union", "pad_to_multiple_of": 256, "tokens": overrides},
            dtype="bfloat16",
        ),
        out,
    )
    ids, got = sound(out).get_vocab(), load(out)
    assert "NaN, Inf  0, 0" in outcome.out
    for name in (EMBEDDING, HEAD):
        assert got[name].shape[0] == 512
        for token in overrides:
            assert not got[name][ids[token]].any()
        mean = got[name][: len(ids)].double().mean(0)
        assert torch.allclose(got[name][len(ids) :].double(), mean.expand(512 - len(ids), -1), rtol=0.05, atol=2e-3)


def test_ids_follow_the_tokens(tmp_path: Path) -> None:
    """The base ends its texts with a token that gets another id, and the tokenizer of another model knows one more end."""
    out = tmp_path / "out"
    tokens = {"<|im_end|>": {"source": "llama-swapped"}}
    config = mix({"llama-swapped": 0.5, "llama-tools": 0.5}, base_model="llama-swapped")
    run(config | {"tokenizer": {"source": "llama-tools", "tokens": tokens}}, out)
    tokenizer = sound(out)
    new = tokenizer.get_vocab()["<|im_end|>"]
    assert (ids_of(Path("llama-swapped"))["<|im_end|>"], new) == (288, 289)
    generation = json.loads((out / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == {2, new} and tokenizer.eos_token_id == 2


def test_a_setting_that_names_a_token_which_is_gone(tmp_path: Path) -> None:
    base = tmp_path / "seeing"
    shutil.copytree("llama-tools", base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"vision_config": {"image_token_id": 288}}))
    config = mix({str(base): 0.5, "llama-base": 0.5}, tokenizer_source="llama-base")
    line = refused(config, tmp_path)
    assert "config.json names '<|tool|>' as vision_config.image_token_id, and llama-base has no such token" in line
    keep = {"source": "llama-base", "tokens": {"<|tool|>": {"source": str(base)}}}
    run({**mix({str(base): 0.5, "llama-base": 0.5}), "tokenizer": keep}, tmp_path / "out")
    new = json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["image_token_id"]
    assert ids_of(tmp_path / "out")["<|tool|>"] == new


# Everything around it.


def big_words(root: Path) -> None:
    """Two models of 12,000 words each, two thirds of them the same, in another order."""
    random = torch.Generator().manual_seed(0)
    for label, first in (("a", 0), ("b", 4_000)):
        words = ["<unk>", *(f"w{first + i}" for i in torch.randperm(11_999, generator=random).tolist())]
        tensors = {k: torch.randn(t.shape, generator=random) for k, t in llama_tensors(1, hidden=128, vocabulary=12_000).items()}
        tokenizer = json.dumps(word_tokenizer({word: number for number, word in enumerate(words)}))
        write_model(root / label, tensors, llama_config(1, vocab_size=12_000), tokenizer=tokenizer)


def test_bytes_are_the_same_for_any_budget(tmp_path: Path) -> None:
    big_words(tmp_path)
    tokens = {"w5": {"source": {"kind": "zero"}, "force": True}}
    config = mix(
        {str(tmp_path / "a"): 0.25, str(tmp_path / "b"): 0.75},
        tokenizer={"source": "union", "pad_to_multiple_of": 3000, "tokens": tokens},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    results, tiled = [], []
    for ram, workers in (("64MiB", "1"), ("64MiB", "3"), ("1GiB", "2")):
        about = json.loads(weft("plan", path, "--json", "--ram", ram, "--workers", workers).out)
        tiled.append(about["tiled_tensors"])
        out = tmp_path / f"out-{ram}-{workers}"
        run(config, out, "--ram", ram, "--workers", workers)
        results.append({file.name: file.read_bytes() for file in out.iterdir() if file.name != "weft.json"})
    assert results[0] == results[1] == results[2]
    assert tiled[0] == tiled[1] == 2 and tiled[2] == 0
    ids = json.loads(results[0]["tokenizer.json"])["model"]["vocab"]
    a, b, got = (load(tmp_path / name)[EMBEDDING] for name in ("a", "b", "out-1GiB-2"))
    assert len(ids) == 16_000 and len(got) == 18_000
    olds = [json.loads((tmp_path / m / "tokenizer.json").read_text())["model"]["vocab"] for m in "ab"]
    for word in ["w0", "w3999", "w4000", "w9000", "w11998", "w11999", "w15998", "<unk>"]:
        left = a[olds[0][word]] if word in olds[0] else b[olds[1][word]]
        right = b[olds[1][word]] if word in olds[1] else a[olds[0][word]]
        assert torch.allclose(got[ids[word]], 0.25 * left + 0.75 * right, atol=1e-6), word
    assert not got[ids["w5"]].any() and torch.isfinite(got).all()


def test_the_plan_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(mix({"llama-chatml": 0.5, "llama-tools": 0.5}, tokenizer={"pad_to_multiple_of": 32})))
    shown = weft("plan", path, "-v").out
    assert [line.split()[1] for line in shown.splitlines() if line.split()[:1] in ([EMBEDDING], [HEAD])] == ["320×32"] * 2
    about = json.loads(weft("plan", path, "--json").out)
    run(mix({"llama-chatml": 0.5, "llama-tools": 0.5}, tokenizer={"pad_to_multiple_of": 32}), tmp_path / "out")
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in about["side_files"]}
    assert about["side_files"] == sizes and {"tokenizer.json", "generation_config.json"} <= set(sizes)
    assert about["parameters"] == sum(tensor.numel() for tensor in load(tmp_path / "out").values())


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_chat_templates(tmp_path: Path) -> None:
    literal = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    for number, choice in enumerate(("chatml", literal, "auto")):
        out, config = tmp_path / str(number), mix({"llama-chatml": 0.5, "llama-tools": 0.5})
        run(config | {"tokenizer_source": "union", "chat_template": choice}, out)
        tokenizer = sound(out)
        if choice == "auto":
            assert tokenizer.chat_template is None, "none of the models has one"
            continue
        assert tokenizer.chat_template == TEMPLATES.get(choice, choice)
        said = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert said == ("[hi][hello]" if choice == literal else
                        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n")  # fmt: skip


def test_the_most_frequent_chat_template(tmp_path: Path) -> None:
    weights = {}
    for name, template in (("a", "{{ 1 }}"), ("b", "{{ 2 }}"), ("c", "{{ 2 }}")):
        shutil.copytree("llama-chatml", tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(template)
        weights[str(tmp_path / name)] = 1.0
    run(mix(weights, chat_template="auto"), tmp_path / "out")  # no other tokenizer key is needed
    assert sound(tmp_path / "out").chat_template == "{{ 2 }}"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == Path("llama-chatml/tokenizer.json").read_bytes()


def test_without_the_setting_different_vocabularies_are_an_error(tmp_path: Path) -> None:
    line = refused(mix({"llama-chatml": 0.5, "llama-tools": 0.5}), tmp_path)
    assert f"'{EMBEDDING}' has shape [290, 32] in llama-chatml and [289, 32] in llama-tools" in line
    assert "set 'tokenizer_source: union' (or base, or a model)" in line


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a model that is not there": ({"tokenizer_source": "nowhere"}, "tokenizer_source: nowhere: there is no such folder"),
    "a token that is not there": (
        {"tokenizer": {"tokens": {"<|x|>": {"source": "llama-tools"}}}},
        "tokenizer.tokens.<|x|>.source: llama-tools has no token '<|x|>'",
    ),
    "a token that is nearly there": (
        {"tokenizer": {"tokens": {"<|x|>": {"source": {"kind": "model_token", "model": "llama-chatml", "token": "<|im_ent|>"}}}}},
        "did you mean '<|im_end|>'?",
    ),
    "an id out of range": (
        {"tokenizer": {"tokens": {"<|x|>": {"source": {"kind": "model_token", "model": "llama-tools", "token_id": 289}}}}},
        "llama-tools has rows 0 to 288, and no token 289",
    ),
    "a kind that is not there": ({"tokenizer": {"tokens": {"x": {"source": {"kind": "zeros"}}}}}, "did you mean 'zero'?"),
    "both keys": ({"tokenizer_source": "union", "tokenizer": {}}, "give 'tokenizer_source' or 'tokenizer', not both"),
    "a multiple of nothing": ({"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of"),
    "an unknown key": ({"tokenizer": {"sauce": "union"}}, "unknown key 'sauce'"),
    "an unknown template": ({"chat_template": "chatnl"}, "did you mean 'chatml'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be(case: str, tmp_path: Path) -> None:
    keys, says = BAD[case]
    assert says in refused(mix({"llama-chatml": 0.5, "llama-tools": 0.5}) | copy.deepcopy(keys), tmp_path)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    shutil.copytree("llama-tools", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    line = refused(mix({"llama-chatml": 0.5, str(tmp_path / "bare"): 0.5}, tokenizer_source="union"), tmp_path)
    assert "has no tokenizer, and merging vocabularies needs its tokenizer.json" in line


def test_equal_tokenizers_stay_byte_for_byte(tmp_path: Path) -> None:
    """With the setting or without, models of one vocabulary give the same files and weights."""
    names = {"llama-chatml": 0.5, "llama-padded": 0.5}
    shutil.copytree("llama-chatml", tmp_path / "same")
    both = {"llama-chatml": 0.5, str(tmp_path / "same"): 0.5}
    run(mix(both), tmp_path / "plain")
    run(mix(both, tokenizer_source="union"), tmp_path / "union")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "union" / name).read_bytes()
    assert "vocabularies differ" in refused(mix(names), tmp_path)
    assert all(a < b for a, b in pairwise(sorted(ids_of(tmp_path / "union").values())))
