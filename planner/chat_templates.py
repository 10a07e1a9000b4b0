"""Chat templates: the known ones, and which one a merge gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from ..errors import nearest
from .catalog import Checkpoint
from .tokenizer_reader import SETTINGS, read_map

TEMPLATE_FILE = "chat_template.jinja"

_ALPACA = """\
{%- set system = namespace(text='Below is an instruction that describes a task. \
Write a response that appropriately completes the request.') -%}
{%- for message in messages if message['role'] == 'system' -%}
    {%- set system.text = message['content'] -%}
{%- endfor -%}
{{- bos_token if bos_token is defined else '' -}}
{{- system.text + '\\n\\n' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '### Response:\\n' + message['content'] + (eos_token if eos_token is defined else '') + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\\n' -}}
{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_EXAONE = """\
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '[|system|][|endofturn|]\\n' -}}
    {%- endif -%}
    {{- '[|' + message['role'] + '|]' + message['content'] -}}
    {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '[|assistant|]' -}}
{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token if bos_token is defined else '<|begin_of_text|>' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_MISTRAL = """\
{%- set system = namespace(text='') -%}
{{- bos_token if bos_token is defined else '<s>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set system.text = message['content'] + '\\n\\n' -%}
    {%- elif message['role'] == 'user' -%}
        {{- '[INST] ' + system.text + message['content'] + ' [/INST]' -}}
        {%- set system.text = '' -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + message['content'] | trim + (eos_token if eos_token is defined else '</s>') -}}
    {%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}


def _check(choice: str) -> str:
    if "{" not in choice and choice not in (*TEMPLATES, "auto"):
        names = ", ".join(("auto", *TEMPLATES))
        close = nearest(choice, (*TEMPLATES, "auto"))
        hint = close if "mean" in close else ""
        raise ValueError(f"there is no chat template '{choice}'{hint}; write one of {names}, or a Jinja text, which has a '{{'")
    return choice


ChatTemplate = Annotated[str, AfterValidator(_check)]
"""The config key `chat_template`: auto, a known name, or a Jinja text."""


def choose_template(choice: str, checkpoints: Sequence[Checkpoint]) -> str | None:
    """The Jinja text for a config's `chat_template`. `auto`: the models' most frequent one, of equals the first, or None.

    Raises ValueError for an unknown name, CheckpointError for a model whose settings cannot be read.
    """
    if choice != "auto":
        return TEMPLATES.get(_check(choice), choice)
    own = [text for checkpoint in checkpoints if (text := own_template(checkpoint))]
    return Counter(own).most_common(1)[0][0] if own else None


def own_template(checkpoint: Checkpoint) -> str | None:
    """A model's chat template, from a file of its own or from tokenizer_config.json; of several the one named default."""
    if TEMPLATE_FILE in checkpoint.side_files:
        return checkpoint.store.read(TEMPLATE_FILE).decode("utf-8", "replace")
    if SETTINGS not in checkpoint.side_files:
        return None
    template: Any = read_map(checkpoint.label, SETTINGS, checkpoint.store.read(SETTINGS)).get("chat_template")
    if isinstance(template, list):
        named = {
            item.get("name"): item.get("template")
            for item in template
            if isinstance(item, dict) and isinstance(item.get("name"), str)
        }
        template = named.get("default")
    return template if isinstance(template, str) else None
