"""`weft run` and the other commands, as their users see them."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from fcntl import ioctl
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli.command import weft, weft_process
from cli.models import SLERP, tensors, write_model
from weft import __version__
from weft.ops.registry import methods

COMMANDS = ("plan", "run", "methods", "schema")
FIRST_METHODS = {"linear", "slerp", "passthrough", "task_arithmetic", "ties", "dare_linear", "dare_ties"}
PASTED = ("--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle", "--trust-remote-code")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and its models in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), seed=1)
    Path("merge.yaml").write_text(SLERP)


# what is printed


def test_elsewhere_than_on_a_terminal_plain_lines_are_printed() -> None:
    outcome = weft_process("run", "merge.yaml", "out", "--verbose")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out + outcome.err and "\r" not in outcome.out + outcome.err
    written = re.findall(r"^written (\S+) \(\d+ B\)$", outcome.err, re.MULTILINE)
    assert sorted(written) == sorted(tensors())
    for row in (
        r"slerp of a, b · 4 layers",
        r"done in [\d.]+ s: out",
        r"checked +15 tensors, 1,064 parameters, [\d,]+ bytes: as planned",
        r"changed +15 of 15 tensors, [\d.]+% of the compared elements, differ from the base model",
        r"NaN, Inf +0, 0",
        r"rates +read \S+ \S+/s, written \S+ \S+/s",
        r"peak RAM +\S+ \wiB measured, \S+ MiB predicted",
    ):
        assert re.search(rf"^{row}", outcome.out, re.MULTILINE), (row, outcome.out)


def test_now_and_then_a_line_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.cli.progress.EVERY", 0.0)
    outcome = weft("run", "merge.yaml", "out")
    number = r"[\d.]+"
    line = rf"\d+/15 tensors, {number} \w+ of {number} KiB(, {number} \w+/s)?, {number} s left, {number} \w+ of {number} \w+ pool"
    lines = outcome.err.splitlines()
    assert len(lines) > 15
    assert [text for text in lines if not re.fullmatch(line, text)] == []
    assert lines[-1].startswith("15/15 tensors, ")


def test_quiet_prints_nothing() -> None:
    outcome = weft_process("run", "merge.yaml", "out", "--quiet", *PASTED)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert Path("out/model.safetensors").exists()
    assert weft("plan", "merge.yaml", "-q") == weft("run", "merge.yaml", "out", "-q")


def test_a_result_that_is_the_base_model_is_warned_of() -> None:
    Path("merge.yaml").write_text(SLERP.replace("0.5", "0"))
    assert "the result is identical to the base model" in weft("run", "merge.yaml", "out").out


def test_nan_is_warned_of() -> None:
    spoilt = tensors(seed=2)
    spoilt["model.norm.weight"][3] = torch.nan
    write_model(Path("c"), spoilt)
    Path("merge.yaml").write_text(SLERP.replace("model: b", "model: c"))
    outcome = weft("run", "merge.yaml", "out")
    assert outcome.code == 0
    assert re.search(r"^NaN, Inf +[1-9]\d*, 0", outcome.out, re.MULTILINE)
    assert "there are NaN or Inf values in model.norm.weight" in outcome.out


def test_a_parameter_without_effect_is_noted() -> None:
    Path("merge.yaml").write_text(SLERP.replace("{t: 0.5}", "{t: 0.5, density: 0.3}"))
    assert re.search(r"^note +the parameter 'density' has no effect on slerp", weft("run", "merge.yaml", "out").out, re.MULTILINE)


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code, and all that a terminal of 80 columns was sent."""
    main_end, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "weft", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(terminal)
    seen = bytearray()
    while True:
        try:
            part = os.read(main_end, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(main_end)
    return process.wait(timeout=60), seen.decode()


def test_on_a_terminal_a_bar_is_drawn_and_cleared() -> None:
    for seed, name in enumerate(("big_a", "big_b")):
        write_model(Path(name), layers=2, hidden=256, vocabulary=4096, seed=seed)
    Path("merge.yaml").write_text(SLERP.replace("model: ", "model: big_"))
    code, seen = on_a_terminal("run", "merge.yaml", "out")
    assert code == 0, seen
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    assert re.search(r"\d+/9 tensors .*[\d.]+ MiB of [\d.]+ MiB.*, [\d.]+ s left", plain), plain
    assert "opening the models" in plain and "reserving disk space" in plain, "from the first second on"
    assert max(len(line) for line in re.split(r"[\r\n]", plain) if "━" in line) <= 80
    assert "\x1b[2K" in seen and "\x1b[?25h" in seen, "cleared at the end, and the cursor is back"
    assert re.search(r"done in [\d.]+ s: out", plain) and "9 of 9 tensors" in plain


# options


def test_flags_of_other_tools_get_a_line_each() -> None:
    outcome = weft("run", "merge.yaml", "out", *PASTED)
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("weft: --")]
    assert [line.split(":")[1].strip() for line in lines] == ["--allow-crimes", "--lazy-unpickle", "--trust-remote-code"]


FLAGS: Mapping[str, tuple[str, ...]] = {
    "--allow-crimes": (),
    "--lazy-unpickle": (),
    "--trust-remote-code": (),
    "--low-cpu-memory": (),
    "--read-to-gpu": (),
    "--clone-tensors": (),
    "--multi-gpu": (),
    "--async-write": (),
    "--no-write-model-card": (),
    "--no-safe-serialization": (),
    "--lora-merge-cache": ("cache",),
    "--lora-merge-dtype": ("float16",),
    "--write-threads": ("2",),
    "--unsafe-truncate-embeddings": (),
    "--transformers-cache": ("cache",),
}


@pytest.mark.parametrize("command", [("plan", "merge.yaml"), ("run", "merge.yaml", "out")], ids=["plan", "run"])
def test_every_flag_of_other_tools_is_explained(command: tuple[str, ...]) -> None:
    given = [word for flag, values in FLAGS.items() for word in (flag, *values)]
    outcome = weft(*command, *given)
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == list(FLAGS)
    assert all(line.startswith("weft: --") and len(line) > 30 for line in lines)


def test_flags_that_are_on_anyway_say_nothing() -> None:
    assert weft("plan", "merge.yaml", "--write-model-card", "--safe-serialization").err == ""
    off = "cuda allow-crimes lazy-unpickle trust-remote-code low-cpu-memory read-to-gpu clone-tensors multi-gpu async-write quiet"
    outcome = weft("plan", "merge.yaml", "--num-threads", "2", *(f"--no-{name}" for name in off.split()))
    assert (outcome.code, outcome.err) == (0, "") and "2 workers" in outcome.out


@pytest.mark.parametrize("flag", ["--cuda", "--gpu-rich"])
def test_cuda_is_a_device(flag: str) -> None:
    outcome = weft("plan", "merge.yaml", flag)
    assert outcome.err.splitlines()[0] == f"weft: {flag}: the same as --device cuda"
    assert outcome.code == (0 if torch.cuda.is_available() else 2)
    assert weft("plan", "merge.yaml", flag, "--device", "cpu").code == 0


def test_the_tokenizer_is_copied_or_not() -> None:
    for out, option, copied in (
        ("one", (), True),
        ("two", ("--copy-tokenizer",), True),
        ("three", ("--no-copy-tokenizer",), False),
    ):
        assert weft("run", "merge.yaml", out, "--quiet", *option).code == 0
        assert Path(out, "tokenizer.json").exists() is copied
        assert Path(out, "generation_config.json").exists()


def test_the_shard_size() -> None:
    """1B is a billion bytes, so that one file is enough; 1K is a thousand."""
    assert weft("run", "merge.yaml", "one", "--quiet", "--out-shard-size", "1B").code == 0
    assert [path.name for path in Path("one").glob("*.safetensors")] == ["model.safetensors"]
    assert weft("run", "merge.yaml", "many", "--quiet", "--out-shard-size", "1K").code == 0
    shards = sorted(Path("many").glob("*.safetensors"))
    assert len(shards) > 2
    weight_map = json.loads(Path("many/model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map.values()) == {path.name for path in shards}
    assert max(sum(tensor.nbytes for tensor in load_file(path).values()) for path in shards) <= 1000


@pytest.mark.parametrize("name", ["--seed", "--random-seed"])
def test_the_seed(name: str) -> None:
    Path("merge.yaml").write_text(
        "models: [{model: b, parameters: {weight: 1, density: 0.5}}]\nbase_model: a\nmerge_method: dare_linear\n"
    )

    def merged(out: str, *options: str) -> bytes:
        assert weft("run", "merge.yaml", out, "--quiet", *options).code == 0
        return Path(out, "model.safetensors").read_bytes()

    assert merged("one", name, "1") == merged("again", name, "1", "-j", "3")
    assert merged("default") == merged("zero", name, "0")
    assert merged("two", name, "2") != Path("one/model.safetensors").read_bytes()


# the other commands


def test_methods_lists_every_method_and_parameter() -> None:
    outcome = weft("methods")
    assert outcome.code == 0
    sections: dict[str, list[str]] = {}
    for line in outcome.out.splitlines():
        if re.match(r"\w+  ", line):
            sections[line.split()[0]] = []
        elif match := re.match(r" {4}(\w+)  ", line):
            sections[list(sections)[-1]].append(match[1])
    assert set(sections) >= FIRST_METHODS
    assert sections == {name: [parameter.name for parameter in method.parameters] for name, method in methods().items()}
    assert "weight     share of this model (per model; required)" in outcome.out
    assert "normalize  divide by the sum of the weights (global; true)" in outcome.out
    assert "base_model among 2 models" in outcome.out


def test_schema_is_a_json_schema_of_the_config() -> None:
    outcome = weft("schema")
    assert outcome.code == 0
    schema = json.loads(outcome.out)
    assert [kind["$ref"] for kind in schema["anyOf"]] == ["#/$defs/MergeConfig", "#/$defs/MixtureConfig"]
    merge, mixture = schema["$defs"]["MergeConfig"], schema["$defs"]["MixtureConfig"]
    assert merge["type"] == "object" and merge["required"] == ["merge_method"] and merge["additionalProperties"] is False
    assert mixture["required"] == ["base_model", "experts"] and mixture["additionalProperties"] is False
    assert set(merge["properties"]["merge_method"]["enum"]) == set(methods()) >= FIRST_METHODS
    for reference in references(schema):
        assert reference.startswith("#/$defs/") and reference.removeprefix("#/$defs/") in schema["$defs"]


def references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def test_the_version_and_python_m() -> None:
    outcome = weft_process("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"weft {__version__}\n", "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_that_works(command: str) -> None:
    outcome = weft(*filter(None, [command]), "--help")
    assert outcome.code == 0
    match = re.search(r"Example: weft (\w+)(.*)", outcome.out)
    assert match and match[1] == (command or "run")
    for config in re.findall(r"configs/\S+", match[2]):
        assert (Path(__file__).parents[2] / config).is_file()


@pytest.mark.parametrize("command", ["", "plan", "run", "explain", "inspect", "diff", "verify", "status", "methods"])
def test_help_is_readable_in_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = weft(*filter(None, [command]), "-h").out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80 and "..." not in shown.split("Example:")[0].replace("[ARGS]...", "")
    lonely = [line for line in lines if len(line.split()) == 1 and not line.endswith(":")]
    assert len(lonely) <= len(lines) / 5, "words stand beside each other, not one below the other"


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in weft("--help").out


def test_help_hides_the_flags_of_other_tools_and_shows_its_own() -> None:
    shown = weft("run", "--help").out
    for option in (
        "--ram",
        "--vram",
        "--device",
        "--workers",
        "--out-shard-size",
        "--seed",
        "--copy-tokenizer",
        "--verbose",
        "--quiet",
    ):
        assert option in shown
    assert not [flag for flag in FLAGS if flag in shown]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['weft', '--help']\n"
        "from weft.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'networkx', 'huggingface_hub', 'yaml', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: weft" in done.stdout


def test_a_reader_that_goes_away_is_no_error_of_weft() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m weft schema | head -c 10"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
