"""Record schemas: rows of any layout that is known -> demonstrations, prompts, pairs; what is left out is counted."""

from rlhf_jax import offered

__getattr__ = offered(
    __name__,
    read_instructions="records",
    read_prompts="records",
    read_pairs="records",
    read_table="records",
)
