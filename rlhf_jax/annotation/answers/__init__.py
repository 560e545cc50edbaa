"""Answers of endpoints: one value for every protocol, and the cache that keeps them by request hash."""

from rlhf_jax.annotation.answers.answers import Answer as Answer
