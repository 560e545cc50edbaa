"""What a run says aloud without stopping: once per run, however many times it comes up, and from one process."""

from __future__ import annotations

from rlhf_jax.parallel import startup

_said: set[str] = set()


def once(text: str) -> None:
    """Prints `notice: TEXT` unless this run has said it before."""
    if text not in _said and startup.is_main():
        print(f"notice: {text}", flush=True)
    _said.add(text)
