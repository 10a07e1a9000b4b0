"""CONTRIBUTING.md, done: a method in a file of ops/, and one in a package of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cli.command import Outcome
from kernel_runs import run_kernel
from merges import environment, small_tensors, write_model
from weft.ops.expression import Value, wide
from weft.ops.method import Kernel, Step

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def block(section: str, language: str) -> str:
    """The one fenced block of a language in a section, as it stands."""
    body = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)
    return str(found)


PACKAGE = "Add a method in a package of its own"
INSTALL = """
import sys
from setuptools import setup
setup(script_args=["-q", "build", "-b", sys.argv[2], "install_lib", "-d", sys.argv[1], "install_egg_info", "-d", sys.argv[1]])
"""
"""What `pip install --no-deps --no-build-isolation --target` does, in a third of the time."""


def install(source: Path, target: Path, project: str, modules: Mapping[str, str]) -> Path:
    """Install a package made of these files into folder `target`, without any network."""
    source.mkdir()
    (source / "pyproject.toml").write_text(project)
    for name, text in modules.items():
        (source / f"{name}.py").write_text(text)
    command = [sys.executable, "-c", INSTALL, str(target), str(source / "build")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return target


SERVE = """
import dataclasses, json, sys
from cli.command import weft
for line in sys.stdin:
    print(json.dumps(dataclasses.asdict(weft(*json.loads(line)))), flush=True)
"""
"""Runs one command after another, so that not every one waits for torch."""


class Site:
    """weft in a process of its own that finds what is installed in `path`."""

    def __init__(self, path: Path) -> None:
        settings = {**environment(), "PYTHONPATH": f"{path}{os.pathsep}{ROOT / 'tests'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], env=settings, cwd=path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def weft(self, *arguments: str | Path) -> Outcome:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([str(argument) for argument in arguments]), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where the package of CONTRIBUTING.md is installed."""
    root = tmp_path_factory.mktemp("package")
    files = {"weft_clipped_mean": block(PACKAGE, "python")}
    with contextlib.closing(Site(install(root / "source", root / "site", block(PACKAGE, "toml"), files))) as site:
        yield site


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models with a tensor of several tiles, and one without elements."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for seed, name in enumerate(("base", "one", "two"), 1):
        chance = torch.Generator().manual_seed(seed)
        large = torch.randn((90_001, 16), generator=chance) ** 3
        tensors = {**small_tensors(seed), "model.embed_tokens.weight": large, "model.empty": torch.empty((0, 4))}
        made[name] = write_model(root / name, tensors)
    return made


def weft(path: Path, *arguments: str | Path) -> Outcome:
    """One command there."""
    with contextlib.closing(Site(path)) as site:
        return site.weft(*arguments)


def run_in_two_budgets(site: Site, config: Mapping[str, Any], root: Path) -> dict[str, torch.Tensor]:
    """The result, which must be the same in the smallest budget, where it is cut into tiles, and in a large one."""
    file, seen = root / "config.yaml", set()
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    needed = re.search(r"it needs at least --ram (\d+MiB)", site.weft("plan", file, "--ram", "1MiB", "-j", "1").line)
    assert needed
    about = json.loads(site.weft("plan", file, "--ram", needed[1], "-j", "1", "--json").out)
    assert about["method"] == config["merge_method"] and about["tiled_tensors"] == 1
    for ram, workers in ((needed[1], "1"), ("1GiB", "3")):
        done = site.weft("run", file, root / f"out-{ram}", "--ram", ram, "-j", workers)
        assert done.code == 0, done.err
        seen.add(hashlib.sha256((root / f"out-{ram}" / "model.safetensors").read_bytes()).hexdigest())
    assert len(seen) == 1
    return load_file(root / "out-1GiB" / "model.safetensors")


# In a package.


def test_the_package_brings_its_method(site: Site) -> None:
    listed = site.weft("methods")
    assert listed.code == 0, listed.err
    assert re.search(r"^clipped_mean +Mean of the models without its outliers\. +1 or more models", listed.out, re.MULTILINE)
    assert "largest element, in root mean squares (global; 3)" in listed.out
    assert "clipped_mean" in json.loads(site.weft("schema").out)["$defs"]["MergeConfig"]["properties"]["merge_method"]["enum"]
    assert "clipped_mean" not in weft(ROOT / "docs", "methods").out


def test_the_package_merges(site: Site, models: dict[str, Path], tmp_path: Path) -> None:
    config = yaml.safe_load(block(PACKAGE, "yml"))
    for model, name in zip(config["models"], ("one", "two"), strict=True):
        model["model"] = str(models[name])
    merged = run_in_two_budgets(site, config, tmp_path)
    one, two = (load_file(models[name] / "model.safetensors") for name in ("one", "two"))
    for name, tensor in merged.items():
        mean = (one[name].double() + two[name].double()) / 2
        bound = float(2.5 * mean.square().mean().sqrt()) if mean.numel() else 0.0
        assert torch.allclose(tensor.double(), mean.clamp(-bound, bound), rtol=1e-6, atol=1e-7), name
    assert merged["model.embed_tokens.weight"].abs().max() < one["model.embed_tokens.weight"].abs().max() / 4


def test_what_a_function_must_not_do_is_an_error_that_says_what_to_do() -> None:
    def on_value(models: Sequence[Value]) -> Value:
        return models[0] if models[0] > 0.0 else models[0] * 2.0

    with pytest.raises(TypeError, match=r"choose with where\(condition, a, b\)"):
        run_kernel(Kernel(Step(on_value)), [torch.ones(3)])
    with pytest.raises(TypeError, match="asks for 'weigth', which the method does not give it"):
        run_kernel(Kernel(Step(lambda models, weigth: models[0])), [torch.ones(3)])
    outer = 2.0
    with pytest.raises(TypeError, match="give them as numbers"):
        Step(lambda models: models[0] * outer)
    with pytest.raises(TypeError, match=r"float32 and float64 do not mix: convert with wide\(\) or narrow\(\)"):
        run_kernel(Kernel(Step(lambda models: models[0] + wide(models[0]))), [torch.ones(3)])


def test_the_package_in_a_stage(site: Site, models: dict[str, Path], tmp_path: Path) -> None:
    """Its method takes a result from memory, and hands one on."""
    one, two = (str(models[name]) for name in ("one", "two"))
    text = yaml.safe_dump({"merge_method": "clipped_mean", "models": [{"model": one}, {"model": two}], "name": "first"})
    text += "---\n" + yaml.safe_dump({"merge_method": "clipped_mean", "models": [{"model": "first"}, {"model": one}]})
    (tmp_path / "stages.yaml").write_text(text)
    assert site.weft("run", tmp_path / "stages.yaml", tmp_path / "out", "--ram", "256MiB").code == 0
    a, b = (load_file(Path(model) / "model.safetensors")["model.norm.weight"].double() for model in (one, two))

    def clipped(x: torch.Tensor) -> torch.Tensor:
        bound = float(3 * x.square().mean().sqrt())
        return x.clamp(-bound, bound)

    expected = clipped((clipped((a + b) / 2) + a) / 2)
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert torch.allclose(merged.double(), expected, rtol=1e-6, atol=1e-7)


def test_its_parameters_are_checked(site: Site, models: dict[str, Path], tmp_path: Path) -> None:
    config = {"merge_method": "clipped_mean", "models": [{"model": str(models["one"])}], "parameters": {"limt": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "did you mean 'limit'?" in site.weft("plan", tmp_path / "config.yaml").line
    config["parameters"] = {"limit": -1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "limit" in site.weft("plan", tmp_path / "config.yaml").line


CASES = {
    "a clash": (
        'METHOD = replace(methods["linear"], kernel=None)',
        r"the entry point odd = 'weft_odd:METHOD' in weft\.methods of the package weft-odd brings a method 'linear', "
        r"which there is already: .+",
    ),
    "no method": (
        'METHOD = "linear"',
        r"the entry point odd = 'weft_odd:METHOD' in weft\.methods of the package weft-odd is of type str, "
        r"not weft\.ops\.method\.Method",
    ),
    "no method among several": ("METHOD = (1, 2)", r"the entry point odd = .+ is of type int, not weft\.ops\.method\.Method"),
    "no such name": ("", r"the entry point odd = .+ cannot be loaded: AttributeError: .+METHOD.+"),
    "an import that fails": ("import no_such_module", r"the entry point odd = .+ cannot be loaded: ModuleNotFoundError: .+"),
}


@pytest.mark.parametrize("case", CASES)
def test_entry_points_that_bring_no_new_method(models: dict[str, Path], tmp_path: Path, case: str) -> None:
    text, message = CASES[case]
    site = tmp_path / "site"
    (site / "weft_odd-1.0.dist-info").mkdir(parents=True)
    (site / "weft_odd-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: weft-odd\nVersion: 1.0\n")
    (site / "weft_odd-1.0.dist-info" / "entry_points.txt").write_text("[weft.methods]\nodd = weft_odd:METHOD\n")
    head = "from dataclasses import replace\nfrom weft.ops.methods.linear import linear\nmethods = {'linear': linear}\n"
    (site / "weft_odd.py").write_text(head + text + "\n")
    outcome = weft(site, "methods")
    assert outcome.code == 2 and re.fullmatch(message, outcome.line), outcome.err
    if case == "a clash":
        config = {"merge_method": "passthrough", "models": [{"model": str(models["one"])}]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert weft(site, "plan", tmp_path / "config.yaml").line == outcome.line


# In ops/.


def test_a_file_in_ops(models: dict[str, Path], tmp_path: Path) -> None:
    """In a copy of the package, made of links, that has one file more."""
    copy = tmp_path / "copy" / "weft"
    (copy / "ops" / "methods").mkdir(parents=True)
    for room, target in ((ROOT, copy), (ROOT / "ops", copy / "ops"), (ROOT / "ops/methods", copy / "ops/methods")):
        for path in room.iterdir():
            if path.suffix == ".py" or path.name in ("cli", "engine", "planner", "lib", "backends"):
                (target / path.name).symlink_to(path)
    (copy / "ops" / "methods" / "clamp_merge.py").write_text(block("Add a merge method", "python"))
    config = {
        "merge_method": "clamp_merge",
        "base_model": str(models["base"]),
        "models": [{"model": str(models[name])} for name in ("one", "two")],
        "parameters": {"limit": 0.5},
    }
    # A map alone is cut into tiles only in the least budget.
    with contextlib.closing(Site(copy.parent)) as site:
        assert "clamp_merge" in site.weft("methods").out
        merged = run_in_two_budgets(site, config, tmp_path)
    base, one, two = (load_file(models[name] / "model.safetensors") for name in ("base", "one", "two"))
    for name, tensor in merged.items():
        learned = (one[name].double() + two[name].double()) / 2 - base[name].double()
        assert torch.allclose(tensor.double(), base[name].double() + learned.clamp(-0.5, 0.5), rtol=1e-5, atol=1e-5), name


def test_the_blocks_are_as_they_should_be(tmp_path: Path) -> None:
    """What people copy passes the project's own checks."""
    for number, section in enumerate(("Add a merge method", PACKAGE)):
        (tmp_path / f"block_{number}.py").write_text(block(section, "python"))
    settings = ["--config", str(ROOT / "pyproject.toml"), "--ignore", "D102,D103,I001"]
    command = [sys.executable, "-m", "ruff", "check", *settings, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "RUFF_NO_CACHE": "true"})
    assert done.returncode == 0, done.stdout + done.stderr
