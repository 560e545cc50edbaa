"""Samples of logits that are no numbers are refused: the tokens look like any others, or like empty outputs."""

import numpy as np
import pytest
import running
import tiny_families

from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.sampling.decode import check_finite


@pytest.mark.parametrize("overflows", [False, True])
def test_finite_weights_whose_logits_overflow_are_noticed(tmp_path, overflows):
    found, params = import_folder.load(tiny_families.write_folder(tmp_path / "m", "llama"))
    if overflows:
        params = params | {"head": np.full_like(params["head"], 3e38)}
    tokens, lengths = tiny_families.left_padded((5, 3))
    _, logprobs_BR = running.greedy(found.config, params, tokens, lengths, 4)
    if not overflows:
        check_finite(logprobs_BR, "runs/m")
        return
    with pytest.raises(UserError, match=r"runs/m: its logits are not finite in 2 of 2 responses"):
        check_finite(logprobs_BR, "runs/m")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_token_that_is_no_number_is_enough(value):
    logprobs_BR = np.full((3, 4), -1.0, np.float32)
    logprobs_BR[1, 2] = value
    with pytest.raises(UserError, match=r"not finite in 1 of 3 responses"):
        check_finite(logprobs_BR, "runs/m")
