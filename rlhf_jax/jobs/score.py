"""Scores responses with a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, eval_batches, pad
from rlhf_jax.data.records import describe, read_table, write_parquet
from rlhf_jax.data.tokenization import encode_responses_to_score, load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints, setup
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.rollout.rewards import model_scores
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import prepare
