"""Beam search and diverse beam search (Vijayakumar et al. 2016) on the decode engine's caches.

The beams of a prompt are split into groups that are worked through one after the other in every step. A group's
candidates lose `diversity_penalty` for each beam of earlier groups that has just taken the same token, so that groups
part. With one group it is plain beam search. Which hypotheses stay, when a group stops and what scores are is as in
transformers' `generate(num_beams=, num_beam_groups=, diversity_penalty=)` (its BeamSearchScorer): a hypothesis scores
the sum of its log-probs, penalties taken off, divided by its length to the power `length_penalty`, the end token
included. Pads that a finished group writes there count as tokens that later groups are kept from; not so here.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.layers import KeyValue
from rlhf_jax.models.placement import both_ways
from rlhf_jax.parallel.mesh import constrain
from rlhf_jax.sampling.decode import CACHE_AXES, decode_tokens, prefill

# The score of beams that are no beams yet: at first all of a group are the same, and only one may go on.
_NOT_YET = -1e9


class Beams(NamedTuple):
    """How to search.

    Attributes:
      beams: N, how many hypotheses of a prompt are kept; groups: into how many groups they are split.
      early_stopping: a group that has its number of hypotheses stops at once (True), or when its best candidate could
        not enter them: at its present length (False), or at any ("never").
      length_penalty, diversity_penalty: traced; changing them compiles nothing.
    """

    beams: int
    groups: int = 1
    diversity_penalty: ScalarLike = 0.0
    length_penalty: ScalarLike = 1.0
    early_stopping: bool | str = False


class Found(NamedTuple):
    """The hypotheses of each prompt, the best first.

    Attributes:
      tokens_BNR: the responses, pads after the end.
      lengths_BN: their lengths, the end token included; ended_BN: whether there is one.
      scores_BN: what they are ordered by.
      steps: decode steps run.
    """

    tokens_BNR: Int[Array, "B N R"]
    lengths_BN: Int[Array, "B N"]
    ended_BN: Bool[Array, "B N"]
    scores_BN: Float[Array, "B N"]
    steps: Int[Array, ""]


class _Kept(NamedTuple):
    """The finished hypotheses of a group, the best first; a score of -inf is an empty place."""

    scores_BW: Float[Array, "B W"]
    tokens_BWR: Int[Array, "B W R"]
    lengths_BW: Int[Array, "B W"]
    ended_BW: Bool[Array, "B W"]


class _Loop(NamedTuple):
    t: Int[Array, ""]
    logits_BNV: Float[Array, "B N V"]
    tokens_BNR: Int[Array, "B N R"]
    sums_BN: Float[Array, "B N"]
    kept: tuple[_Kept, ...]
    done_BM: Bool[Array, "B M"]
    cache: tuple[KeyValue, ...]


def beam_search(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    search: Beams,
    end_ids_E: Int[Array, " E"],
    pad_id: ScalarLike,
    *,
    max_new_tokens: int,
) -> Found:
    """Finds `search.beams` responses to each left-padded prompt. Raises UserError for beams that cannot be.

    The arguments are those of `decode.generate`. Each prompt is read once, and its beams share what that gives.
    """
    N, M, penalty, length_penalty, early_stopping = search
    check_beams(N, M)
    keep = max(2, 1 + len(end_ids_E)) * (N // M)
    if keep > (N // M) * config.vocab_size:
        raise UserError(
            f"beams: {N}: {len(end_ids_E)} end tokens of {config.vocab_size} leave too few others"
        )
    return _search(
        config,
        params,
        tokens_BP,
        lengths_B,
        (penalty, length_penalty),
        end_ids_E,
        pad_id,
        shape=(N, M, max_new_tokens),
        early_stopping=early_stopping,
    )


def check_beams(beams: int, groups: int) -> None:
    """Raises UserError where the groups do not divide the beams."""
    if beams < 1 or groups < 1 or beams % groups:
        raise UserError(
            f"beam_groups: {groups} groups do not divide beams={beams}; use a divisor of the number of beams"
        )


@partial(jax.jit, static_argnames=("config", "shape", "early_stopping"))
def _search(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    penalties: tuple[ScalarLike, ScalarLike],
    end_ids_E: Int[Array, " E"],
    pad_id: ScalarLike,
    *,
    shape: tuple[int, int, int],
    early_stopping: bool | str,
) -> Found:
    (B, P), (N, M, R) = tokens_BP.shape, shape
    W, S = N // M, P + R
    decoder.check_length(config, S)
    first_B = P - lengths_B
    columns_S = jnp.arange(S)
    params, layers = both_ways(config, params)
    logits_BV, cache = prefill(config, params, tokens_BP, first_B, columns_S >= first_B[:, None], S)
    # From here on a row is a beam, the beams of a prompt beside each other.
    cache = jax.tree.map(lambda x: _constrained(jnp.repeat(x, N, axis=0)), cache)
    first_A, lengths_A = (jnp.repeat(x, N) for x in (first_B, lengths_B))
    real_AS = columns_S >= first_A[:, None]
    head_DV = decoder.head(config, params)

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        return (loop.t < R) & ~jnp.all(loop.done_BM)

    def step(loop: _Loop) -> _Loop:
        sums_BN, beams_BN, token_BN, kept, done_BM = _choose(
            loop, penalties, end_ids_E, pad_id, R, early_stopping
        )
        tokens_BNR = _rows(loop.tokens_BNR, beams_BN).at[:, :, loop.t].set(token_BN)
        cache = jax.tree.map(lambda x: _reordered(x, beams_BN, P), loop.cache)
        column = P + loop.t
        mask_A1S = (real_AS & (columns_S <= column))[:, None]
        hidden_A1D, cache = decode_tokens(
            config,
            params,
            layers,
            token_BN.reshape(B * N, 1),
            (lengths_A + loop.t)[:, None],
            mask_A1S,
            cache,
            column,
        )
        logits_AV = decoder.logits(config, head_DV, hidden_A1D[:, 0])
        return _Loop(loop.t + 1, logits_AV.reshape(B, N, -1), tokens_BNR, sums_BN, kept, done_BM, cache)

    empty = _Kept(
        jnp.full((B, W), -jnp.inf),
        jnp.full((B, W, R), pad_id, jnp.int32),
        jnp.zeros((B, W), jnp.int32),
        jnp.zeros((B, W), bool),
    )
    loop = jax.lax.while_loop(
        unfinished,
        step,
        _Loop(
            t=jnp.int32(0),
            logits_BNV=jnp.repeat(logits_BV[:, None], N, axis=1),
            tokens_BNR=jnp.full((B, N, R), pad_id, jnp.int32),
            # One beam of each group goes on from the prompt; the others would only repeat it.
            sums_BN=jnp.broadcast_to(jnp.where(jnp.arange(N) % W == 0, 0.0, _NOT_YET), (B, N)),
            kept=(empty,) * M,
            done_BM=jnp.zeros((B, M), bool),
            cache=cache,
        ),
    )
    return _best(loop, penalties[1], W)


def _choose(
    loop: _Loop,
    penalties: tuple[ScalarLike, ScalarLike],
    end_ids_E: Int[Array, " E"],
    pad_id: ScalarLike,
    R: int,
    early_stopping: bool | str,
) -> tuple[Array, Array, Array, tuple[_Kept, ...], Array]:
    """One step of all groups: (sums, which beam each goes on from, its token, finished hypotheses, which are done)."""
    (diversity, length_penalty), M = penalties, len(loop.kept)
    B, N, V = loop.logits_BNV.shape
    W = N // M
    logprobs_BNV = jax.nn.log_softmax(loop.logits_BNV.astype(jnp.float32))
    size = (loop.t + 1.0) ** length_penalty
    # The longest that a hypothesis can become, which makes its score the highest where lengths are divided by.
    at_best = jnp.where((early_stopping == "never") & (length_penalty > 0), float(R), loop.t + 1.0)
    taken_BV = jnp.zeros((B, V))
    found = []
    for m in range(M):
        group, done_B1 = slice(m * W, (m + 1) * W), loop.done_BM[:, m, None]
        total_BWV = logprobs_BNV[:, group] - diversity * taken_BV[:, None] + loop.sums_BN[:, group, None]
        # So many that W of them do not end, as each beam has as many ends as there are end tokens.
        top_BK, index_BK = jax.lax.top_k(total_BWV.reshape(B, -1), max(2, 1 + len(end_ids_E)) * W)
        beam_BK, token_BK = index_BK // V, index_BK % V
        ends_BK = jnp.isin(token_BK, end_ids_E)

        # Only the W best may end: below them an end is no result of the search.
        tokens_BWR = _rows(loop.tokens_BNR[:, group], beam_BK[:, :W]).at[:, :, loop.t].set(token_BK[:, :W])
        scores_BW = jnp.where(ends_BK[:, :W] & ~done_B1, top_BK[:, :W] / size, -jnp.inf)
        kept = _merged(loop.kept[m], scores_BW, tokens_BWR, loop.t + 1, ended=True)
        worst_B = kept.scores_BW[:, -1]
        enough_B = (early_stopping is True) | (worst_B >= top_BK[:, 0] / at_best**length_penalty)

        # The first W that go on, in their order.
        order_BW = jnp.argsort(ends_BK, axis=1, stable=True)[:, :W]
        sums_BW, beams_BW, token_BW = (
            jnp.take_along_axis(x, order_BW, axis=1) for x in (top_BK, beam_BK, token_BK)
        )
        taken_BV += jnp.where(done_B1, 0, jax.nn.one_hot(token_BW, V).sum(axis=1))
        found.append(
            (
                jnp.where(done_B1, loop.sums_BN[:, group], sums_BW),
                jnp.where(done_B1, jnp.arange(W), beams_BW) + m * W,
                jnp.where(done_B1, pad_id, token_BW).astype(jnp.int32),
                kept,
                done_B1[:, 0] | (jnp.isfinite(worst_B) & enough_B),
            )
        )
    sums, beams, tokens, kept, done = zip(*found, strict=True)
    return *(jnp.concatenate(x, axis=1) for x in (sums, beams, tokens)), kept, jnp.stack(done, axis=1)


def _merged(
    kept: _Kept, scores_BW: Array, tokens_BWR: Array, length: Int[Array, ""], *, ended: bool
) -> _Kept:
    """The best W of the hypotheses that are kept and of new ones of one length; of equals those that were there."""
    new = _Kept(
        scores_BW, tokens_BWR, jnp.full_like(kept.lengths_BW, length), jnp.full_like(kept.ended_BW, ended)
    )
    both = _Kept(*(jnp.concatenate(pair, axis=1) for pair in zip(kept, new, strict=True)))
    _, index_BW = jax.lax.top_k(both.scores_BW, scores_BW.shape[1])
    return _Kept(*(_rows(x, index_BW) for x in both))


def _best(loop: _Loop, length_penalty: ScalarLike, W: int) -> Found:
    """Ranks the hypotheses of all groups; those of groups that are not done may still be open."""
    groups = []
    for m, kept in enumerate(loop.kept):
        group = slice(m * W, (m + 1) * W)
        scores_BW = loop.sums_BN[:, group] / loop.t.astype(jnp.float32) ** length_penalty
        scores_BW = jnp.where(loop.done_BM[:, m, None], -jnp.inf, scores_BW)
        groups.append(_merged(kept, scores_BW, loop.tokens_BNR[:, group], loop.t, ended=False))
    whole = _Kept(*(jnp.concatenate(x, axis=1) for x in zip(*groups, strict=True)))
    # Descending, the later one first of equals, as a list that is sorted and popped from gives them.
    order_BN = jnp.flip(jnp.argsort(whole.scores_BW, axis=1, stable=True), axis=1)
    scores_BN, tokens_BNR, lengths_BN, ended_BN = (_rows(x, order_BN) for x in whole)
    return Found(tokens_BNR, lengths_BN, ended_BN, scores_BN, loop.t)


def _rows(x_BN: Array, index_BK: Int[Array, "B K"]) -> Array:
    """x[b, index[b, k]] for x [B, N, ...]."""
    return jax.vmap(lambda rows, index: rows[index])(x_BN, index_BK)


def _reordered(x_AGSK: Array, beams_BN: Int[Array, "B N"], P: int) -> Array:
    """The cache of the beams that go on. The prompt's columns are the same in all, so only the others move."""
    x_BNGSK = x_AGSK.reshape(*beams_BN.shape, *x_AGSK.shape[1:])
    moved = x_BNGSK.at[:, :, :, P:].set(_rows(x_BNGSK[:, :, :, P:], beams_BN))
    return _constrained(moved.reshape(x_AGSK.shape))


def _constrained(x_AGSK: Array) -> Array:
    return constrain(x_AGSK, *CACHE_AXES)
