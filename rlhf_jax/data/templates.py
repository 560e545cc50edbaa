"""Prompt templates: an instruction record -> the text a model is asked to continue.

The template `chat` is not here: it is the tokenizer's own, see `chat`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from rlhf_jax.errors import UserError

# Each template is a pair: the text for rows without an input, and for rows with one.
TEMPLATES: dict[str, tuple[str, str]] = {
    # AlpacaFarm's v0_inputs_noinputs, character for character.
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{instruction}\n\n### Response:",
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
        "### Input:\n{input}\n\n### Response:",
    ),
    # The same without the preamble, for small models whose every token of context costs.
    "brief": (
        "### Instruction:\n{instruction}\n\n### Response:",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    ),
    # That of dpo-rlaif for ShareGPT, with the space at the end; its instructions have no input.
    "human_assistant": (
        "Human: {instruction}\n\nAssistant: ",
        "Human: {instruction}\n\n{input}\n\nAssistant: ",
    ),
}

_FIELD = re.compile(r"\{(instruction|input)\}")


def render(row: Mapping[str, Any], template_name: str) -> str:
    """The prompt text of a row.

    A row with a `prompt` string is that string, unchanged. Otherwise `instruction` and, when it is neither
    missing nor empty, `input` go into the template. Braces and placeholders in the data stay as they are.
    Raises UserError for an unknown template name.
    """
    without_input, with_input = _template(template_name)
    if isinstance(row.get("prompt"), str):
        return row["prompt"]
    template = with_input if row.get("input") else without_input
    return _FIELD.sub(lambda match: row[match.group(1)], template)  # one pass: inserted text is not searched


def _template(name: str) -> tuple[str, str]:
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name == "chat":
        raise UserError(
            "template: chat is written by a tokenizer that has one; name such a tokenizer or model"
        )
    close = difflib.get_close_matches(str(name), TEMPLATES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"template: {name!r} is unknown; {hint}use one of {', '.join(sorted([*TEMPLATES, 'chat']))}"
    )
