"""Prompt templates: AlpacaFarm's exact strings, and data that looks like a template."""

import pytest

from rlhf_jax.data.templates import TEMPLATES, render
from rlhf_jax.errors import UserError


def test_alpaca_is_alpacafarms_v0():
    assert render({"instruction": "Add.", "input": "1 2"}, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
    )
    assert render({"instruction": "Add.", "input": ""}, "alpaca") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:"
    )


def test_brief():
    assert render({"instruction": "Go", "input": "a"}, "brief") == (
        "### Instruction:\nGo\n\n### Input:\na\n\n### Response:"
    )
    assert render({"instruction": "Go"}, "brief") == "### Instruction:\nGo\n\n### Response:"


def test_human_assistant_is_dpo_rlaifs():
    assert render({"instruction": "Go"}, "human_assistant") == "Human: Go\n\nAssistant: "


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("empty", ["", None])
def test_no_input_and_none_are_the_same(name, empty):
    assert render({"instruction": "x", "input": empty}, name) == render({"instruction": "x"}, name)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_braces_in_data_stay(name):
    text = render({"instruction": "{input} {0} {", "input": "{instruction} }} \\1"}, name)
    assert "{input} {0} {\n" in text
    assert "\n{instruction} }} \\1\n" in text


def test_a_prompt_passes_unchanged():
    assert render({"prompt": "\n\nHuman: {hi}\n\nAssistant:"}, "alpaca") == "\n\nHuman: {hi}\n\nAssistant:"


@pytest.mark.parametrize("row", [{"instruction": "x"}, {"prompt": "x"}])
def test_unknown_template_names_the_closest(row):
    with pytest.raises(
        UserError, match=r"template: 'alpacca' is unknown; did you mean 'alpaca'\? use one of"
    ):
        render(row, "alpacca")
