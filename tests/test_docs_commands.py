"""Every `weft …` line of the documentation, run in order page by page, against small models under the names that the pages use.

A block of YAML that begins with a comment `# merge.yaml` is that file. Other config files that a page names are `OTHER_CONFIG`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from cli.command import weft
from cli.models import write_model
from hub_server import HubServer
from vocabularies import word_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ELSEWHERE = {
    "CONTRIBUTING.md": "tests/test_plugins.py does what it says",
    "docs/session.md": "tests/test_session.py does all of it",
}
OTHER_CONFIG = (ROOT / "configs" / "slerp-mistral.yaml").read_text()
HUB_NAME = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's blocks of these languages, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in fenced if language in languages]


def command_lines(page: Path) -> list[list[str]]:
    """The arguments of each `weft …` in the page's blocks, without variables before it and redirections behind."""
    found = []
    for block in blocks(page, "", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?(\w+=\S+ )*weft ", line):
                words = shlex.split(line, comments=True)
                words = words[words.index("weft") + 1 :]
                found.append(words[: words.index(">")] if ">" in words else words)
    return found


def texts(value: Any) -> Iterator[str]:
    """Every text in a config, a map's keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def references() -> tuple[set[str], set[tuple[str, str]]]:
    """The Hub names of models in configs and commands, and the pairs of a base and an adapter."""
    configs = [block for page in PAGES for block in blocks(page, "yaml", "yml")]
    configs += [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    named = [text for config in configs for document in yaml.safe_load_all(config) for text in texts(document)]
    named += [word for page in PAGES for words in command_lines(page) for word in words[1:2]]
    models, adapted = set(), set()
    for text in named:
        base, _, adapter = (part.partition("@")[0] for part in text.partition("+"))
        if HUB_NAME.fullmatch(base) and not base.startswith("configs/"):
            models.add(base)
            if HUB_NAME.fullmatch(adapter):
                adapted.add((base, adapter))
    return models - {adapter for _, adapter in adapted}, adapted


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


def llama(seed: int) -> dict[str, torch.Tensor]:
    """All tensors of a Llama of 32 layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (16, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (16, 8),
    }
    for layer in range(32):
        head = f"model.layers.{layer}"
        shapes |= {f"{head}.self_attn.{part}_proj.weight": (8, 8) for part in "qo"}
        shapes |= {f"{head}.self_attn.{part}_proj.weight": (4, 8) for part in "kv"}
        shapes |= {f"{head}.mlp.{part}_proj.weight": (16, 8) for part in ("gate", "up")} | {
            f"{head}.mlp.down_proj.weight": (8, 16)
        }
        shapes |= {f"{head}.{part}_layernorm.weight": (8,) for part in ("input", "post_attention")}
    random = torch.Generator().manual_seed(seed)
    return {tensor: torch.randn(shape, generator=random).to(torch.bfloat16) for tensor, shape in shapes.items()}


def write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    prefix = "base_model.model.model.layers.3.self_attn.q_proj"
    factors = {f"{prefix}.lora_A.weight": torch.ones(2, 8), f"{prefix}.lora_B.weight": torch.ones(8, 2)}
    save_file(factors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """All models that the pages name."""
    root = tmp_path_factory.mktemp("hub")
    models, adapted = references()
    tokenizer = json.dumps(word_tokenizer({"<unk>": 0} | {f"w{number}": number for number in range(1, 16)}))
    for seed, model in enumerate(sorted(models)):
        folder = write_model(root / model, llama(seed), config=LLAMA)
        (folder / "tokenizer.json").write_text(tokenizer)
    for _, adapter in adapted:
        write_adapter(root / adapter)
    names = [*models, *(adapter for _, adapter in adapted)]
    with HubServer({model: root / model for model in names}) as server:
        yield server


def lay_out(page: Path, folder: Path) -> None:
    """The files that the page's commands may name."""
    folder.mkdir()
    for own in ("configs", "examples"):
        (folder / own).symlink_to(ROOT / own)
    for block in blocks(page, "yaml", "yml"):
        if match := re.match(r"# (\S+\.ya?ml)\n", block):
            (folder / match[1]).parent.mkdir(exist_ok=True)
            if not (folder / match[1]).exists():
                (folder / match[1]).write_text(block)
    for words in command_lines(page):
        if len(words) > 1 and words[1].endswith((".yaml", ".yml")) and not (folder / words[1]).exists():
            (folder / words[1]).write_text(OTHER_CONFIG)


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page) and name(page) not in ELSEWHERE], ids=name)
def test_commands_do_what_they_are_there_for(
    page: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[..., None]
) -> None:
    use(hub.url)
    lay_out(page, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for words in command_lines(page):
        outcome = weft(*words)
        assert outcome.code == 0, f"weft {shlex.join(words)}: {outcome.code} {outcome.err}"


def test_pages_have_commands() -> None:
    have = {name(page): len(command_lines(page)) for page in PAGES}
    assert all(have[page] >= 2 for page in ("README.md", "README.zh-CN.md", "docs/guide.md", "docs/report.md", "docs/config.md"))
    assert all(page in have for page in ELSEWHERE)


def test_lines_are_read_as_a_shell_would(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`weft schema`\n\n```\nA=b weft run a.yaml ./b  # why\n$ weft plan a.yaml --json > plan.json\nwefts x\n"
        "weft run a \\\n  ./b\n```\n\n```text\nweft not this\n```\n"
    )
    assert command_lines(page) == [["run", "a.yaml", "./b"], ["plan", "a.yaml", "--json"], ["run", "a", "./b"]]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name(page), "exec")


def test_quoted_errors_are_those_of_weft() -> None:
    """What the guide says that one may see can be seen: every part of it stands in the sources."""
    sources = "".join(path.read_text() for room in ("cli", "engine", "planner", "ops") for path in (ROOT / room).glob("*.py"))
    sources = re.sub(r"\"\s*\n\s*f?\"", "", sources)  # texts that are written over several lines
    table = (ROOT / "docs" / "guide.md").read_text().split("| what you see |")[1]
    quoted = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table.splitlines()[2:] if row.startswith("|")]
    parts = [part.strip() for texts in quoted for text in texts for part in text.split("…") if len(part.strip()) > 8]
    assert len(parts) > 12
    assert [part for part in parts if part not in sources] == []
