"""The LLM layer: judges, clients, cache, parsing, pools, noise, labels.parquet. Never imports jax."""

from rlhf_jax.annotation.head2head import annotate_head2head, join_outputs
from rlhf_jax.annotation.labels import read_labels, status_counts, write_labels
from rlhf_jax.annotation.pairs import Annotations, annotate_pairs
from rlhf_jax.annotation.retries import RetryPolicy
from rlhf_jax.annotation.samples import annotate_samples, pair_samples
from rlhf_jax.annotation.specs import JudgeSpec, PoolSpec, load_judge, load_pool

__all__ = [
    "Annotations",
    "JudgeSpec",
    "PoolSpec",
    "RetryPolicy",
    "annotate_head2head",
    "annotate_pairs",
    "annotate_samples",
    "join_outputs",
    "load_judge",
    "load_pool",
    "pair_samples",
    "read_labels",
    "status_counts",
    "write_labels",
]
