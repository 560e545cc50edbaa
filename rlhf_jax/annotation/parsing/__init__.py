"""Parsing answers: from a judge's words to a label, or to the reason why there is none."""

from rlhf_jax.annotation.parsing.parsers import parse_all as parse_all
