"""The LLM layer: judges, clients, cache, parsing, pools, noise, labels.parquet. Never imports jax."""

from rlhf_jax.annotation.asking import Options
from rlhf_jax.annotation.cancel import cancel_batches
from rlhf_jax.annotation.completions import annotate_completions, model_outputs
from rlhf_jax.annotation.expansion import pairs_of, scored_of
from rlhf_jax.annotation.formats import read_feedback, write_feedback
from rlhf_jax.annotation.head2head import annotate_head2head, join_outputs
from rlhf_jax.annotation.labels import read_labels, status_counts, write_labels
from rlhf_jax.annotation.limits import Limits
from rlhf_jax.annotation.pairs import Annotations, annotate_pairs
from rlhf_jax.annotation.rankings import annotate_rankings
from rlhf_jax.annotation.rates import PerMinute
from rlhf_jax.annotation.ratings import annotate_ratings
from rlhf_jax.annotation.retries import RetryPolicy
from rlhf_jax.annotation.samples import annotate_samples, pair_samples
from rlhf_jax.annotation.shards import BatchPolicy
from rlhf_jax.annotation.specs import JudgeSpec, PoolSpec, load_judge, load_pool

__all__ = [
    "Annotations",
    "BatchPolicy",
    "JudgeSpec",
    "Limits",
    "Options",
    "PerMinute",
    "PoolSpec",
    "RetryPolicy",
    "annotate_completions",
    "annotate_head2head",
    "annotate_pairs",
    "annotate_rankings",
    "annotate_ratings",
    "annotate_samples",
    "cancel_batches",
    "join_outputs",
    "load_judge",
    "load_pool",
    "model_outputs",
    "pair_samples",
    "pairs_of",
    "read_feedback",
    "read_labels",
    "scored_of",
    "status_counts",
    "write_feedback",
    "write_labels",
]
