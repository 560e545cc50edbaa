"""What is done with rows where there is a choice: the settings of a page's `data` that say so."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Handling:
    """Attributes:
    not_ended: responses that their sampler cut, as their records say: keep (without an end token) or drop.
    too_long: rows of more than max_length tokens: drop, cut_response or cut_prompt (at its left).
    thoughts: of a reasoning model: keep, drop, or those of the last turn alone (last).
    generation_prompt: where the chat template begins a response otherwise in training text than where it is
        sampled: template (as it says), training (prompts end as in training text) or sampling (training text
        begins as sampling does; the last turn alone is trained).
    chat_template: which of a tokenizer's named templates; "" for its default.
    date: what templates that ask for the date are told, as 2026-11-29; "" for today.
    """

    not_ended: str = "keep"
    too_long: str = ""
    thoughts: str = "keep"
    generation_prompt: str = "template"
    chat_template: str = ""
    date: str = ""


def handling_of(data: Any) -> Handling:
    """The settings that a page's `data` group has; what it does not have stays at its default."""
    return Handling(**{field.name: data[field.name] for field in fields(Handling) if field.name in data})
