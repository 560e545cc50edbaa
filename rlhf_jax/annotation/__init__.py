"""LLM annotation: judges label pairs, ratings, rankings and completions, and the labels are kept in files.

Nothing here imports jax, so that labelling works on a machine without the training stack (a test checks it).
"""

from rlhf_jax.annotation.batches.batch_calls import cancel_batches
from rlhf_jax.annotation.batches.batch_transport import BatchPolicy
from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.rates import PerMinute
from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.formats import read_feedback, write_feedback
from rlhf_jax.annotation.judges.specs import JudgeSpec, PoolSpec, load_judge, load_pool
from rlhf_jax.annotation.kinds.asking import Annotations, Options
from rlhf_jax.annotation.kinds.completions import annotate_completions, model_outputs
from rlhf_jax.annotation.kinds.head2head import annotate_head2head, join_outputs
from rlhf_jax.annotation.kinds.pairs import annotate_pairs, annotate_samples, pair_samples
from rlhf_jax.annotation.kinds.ratings_and_rankings import annotate_rankings, annotate_ratings
from rlhf_jax.annotation.labels.expansion import pairs_of, scored_of
from rlhf_jax.annotation.labels.labels_file import read_labels, status_counts, write_labels

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
