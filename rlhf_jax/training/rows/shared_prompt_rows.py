"""Whether the responses to a prompt share it in training (`data.share_prompts`), and the rows that result.

Sharing changes no number but by rounding, and neither which pairs make a step nor how many tokens it is said to train
on: only how they are laid out. So it is decided by what it saves. The products of a row, forward, are counted from its
length both ways; `auto` shares where that saves a part worth having and where no fused kernel would be given up.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, alternating, bucket, target_counts
from rlhf_jax.data.candidate_arrays import Candidates
from rlhf_jax.data.prompt_groups import PromptGroups, compared, group_by_prompt
from rlhf_jax.data.shared_prompts import SharedRows, fitted, pad_shared, shared_rows
from rlhf_jax.errors import UserError
from rlhf_jax.models.attention import fused
from rlhf_jax.models.attention.attend import block_size
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import longest_row
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import host_rows
from rlhf_jax.ranges import one_of
from rlhf_jax.training.rows import labelled_rows
from rlhf_jax.training.run.encoded_rows import Rows, Split, in_array_rows, packed_steps, rows_of

AUTO, ON, OFF = "auto", "on", "off"
# The row of the page's field, for every method that has it.
SHARE_PROMPTS = {"data.share_prompts": one_of(AUTO, ON, OFF)}
# What is left must be at most this part of the plain products: below it, wider masks and gathers may cost more.
_WORTH = 0.95


class Sizes(NamedTuple):
    """Arrays of one row.

    Attributes:
      sequences, T: how many rows of T tokens the model sees.
      R: positions whose logits are computed; 0 of a model without a language head.
    """

    sequences: int
    T: int
    R: int = 0


def pair_rows(
    split: Split,
    data: ConfigDict,
    pad_id: int,
    seed: int,
    model: ModelConfig,
    *,
    logits: bool = True,
    auto: ConfigDict | None = None,
) -> tuple[Rows, Rows, int]:
    """As `encoded_rows.rows_of` of pairs, whose two sides share their prompt where the page says so or it pays.

    logits: whether the loss reads a language head, of which R says at how many positions. auto: the page, by which
    data.packing=auto is decided; without it pairs have rows of their own.
    """
    plain, by_step = rows_of(split, data, pad_id, seed), auto is not None and data.packing == AUTO
    if data.share_prompts == OFF and not by_step:
        return plain
    found = [_of_pairs(pairs, rows) for pairs, rows in zip(split[:2], plain, strict=False)]
    example = plain[0].make(np.zeros(1, np.int64), slice(0, 1))
    packed = "segments" in example
    T = example["tokens" if packed else "chosen_tokens"].shape[1]
    R = plain[2] if logits else 0
    before = Sizes(1, T, R) if packed else Sizes(2, T, 2 * R)
    decide = partial(_decided, data.share_prompts, found, model, before, packed=packed, logits=logits)
    if by_step and (made := _by_step(split, found, before, decide(by_step=True), pad_id, model, auto)):
        return made
    decided = decide()
    if decided is None:
        return plain
    pairs = decided[2] // 2
    rows = [_rows(x, decided, pad_id, rows, pairs) for x, rows in zip(found, plain, strict=False)]
    return rows[0], rows[1], decided[1]


def _by_step(
    split: Split,
    found: Sequence[SharedRows],
    plain: Sizes,
    shared: tuple[int, int, int] | None,
    pad_id: int,
    model: ModelConfig,
    config: ConfigDict,
) -> tuple[Rows, Rows, int] | None:
    """As `pair_rows`, where the pairs of a step lie in as few array rows as hold them; None where that is no use."""
    if shared is None:
        # Two documents with a prompt each, which stand next to each other.
        found = [replace(x, shared=np.zeros_like(x.shared)) for x in found]
        T, before = bucket(max(int(x.lengths.max()) for x in found), 8), plain.sequences * plain.T
        fits = partial(fused.kernel_packs, model, plain.T)
    else:
        T = before = shared[0]
        fits = partial(operator.ge, longest_row(model))
    train, held = found
    packed = packed_steps(train.lengths, T, config.batch_size * before, fits, config, "pairs")
    if packed is None:
        return None
    length, rows, most = packed
    held = fitted(held, length)
    R = max(most(target_counts(train.documents).reshape(-1, 2).sum(axis=1)), held.most_targets)
    # One number for both files, by which a reference that is asked in every step makes rows of what it found.
    pairs = max(most(np.ones(len(train), np.int64)), held.most_documents // 2)
    sizes, named = (length, R, 2 * pairs), shared is not None

    def make(index_B: np.ndarray, _: Any) -> dict[str, np.ndarray]:
        rows_B, count = rows.place(index_B)
        order_B, offsets = in_array_rows(rows_B, count)
        laid_out = replace(train, members=index_B[order_B], offsets=offsets)
        return _arrays(laid_out, np.arange(count), sizes, pad_id, host_rows(count), shared=named)

    tokens = sum(side.lengths for side in split.train)
    # What is kept of these pairs, log-probs of a reference, is found again where they are laid out in the same way.
    layout = (np.array([length, config.batch_size, config.seed, named]),)
    by_step = rows._replace(make=make, tokens=tokens, pairs=pairs, room=pairs, layout=layout)
    apart = Rows(
        len(held), held.lengths, lambda *_: {}, batch=rows.sizes(config, jax.sharding.get_mesh())[-1]
    )
    return by_step, _rows(held, sizes, pad_id, apart, pairs, shared=named), R


def scored_rows(
    split: Split, pad_id: int, model: ModelConfig, page: ConfigDict, *, rated: bool
) -> tuple[Rows, Rows]:
    """The rows of a reward model: rated responses, pairs, or with `group_by_prompt` prompts with all their pairs."""
    about = (split, page.data, pad_id, page.seed)
    # Members with an order of their own have rows of every batch each, and those of two may not share an array row.
    auto = None if page.members > 1 and page.member_order else page
    if rated:
        return rows_of(*about, auto=None if auto is None else (auto, model))[:2]
    if page.group_by_prompt:
        return grouped_rows(split, page.data, pad_id, model)
    return pair_rows(*about, model, logits=False, auto=auto)[:2]


def grouped_rows(split: Split, data: ConfigDict, pad_id: int, model: ModelConfig) -> tuple[Rows, Rows]:
    """As `labelled_rows.grouped_rows_of`, with the responses to a prompt behind one prompt where that is better."""
    plain = labelled_rows.grouped_rows_of(split, pad_id)
    if data.share_prompts == OFF:
        return plain
    example = plain[0].make(np.zeros(1, np.int64), slice(0, 1))
    _, K, T = example["tokens"].shape
    groups = [group_by_prompt(pairs) for pairs in split[:2]]
    found = [shared_rows(group.responses, group.first) for group in groups]
    sizes = _decided(data.share_prompts, found, model, Sizes(K, T), packed=False, logits=False)
    if sizes is None:
        return plain

    def rows(group: PromptGroups, laid_out: SharedRows, apart: Rows) -> Rows:
        made = _rows(laid_out, sizes, pad_id, apart)
        places = apart.layout[-1][1]

        def make(index_B: np.ndarray, rows: Any) -> dict[str, np.ndarray]:
            return made.make(index_B, rows) | compared(group, index_B[rows], places)

        return made._replace(make=make, layout=apart.layout)

    train, held = map(rows, groups, found, plain)
    return train, held


def candidate_rows(split: Split, data: ConfigDict, pad_id: int, model: ModelConfig) -> tuple[Rows, Rows, int]:
    """As `labelled_rows.candidate_rows`, with the responses to a prompt behind one prompt where that is better."""
    plain = labelled_rows.candidate_rows(split, pad_id)
    if data.share_prompts == OFF:
        return plain
    _, N, T = plain[0].make(np.zeros(1, np.int64), slice(0, 1))["tokens"].shape
    found = []
    for some in split[:2]:
        # A prompt's responses stand one behind the other, in the order of the prompts.
        counts = (some.places_nN >= 0).sum(axis=1)
        found.append(shared_rows(some.sequences, np.concatenate([[0], np.cumsum(counts)])))
    sizes = _decided(data.share_prompts, found, model, Sizes(N, T, N * plain[2]), packed=False, logits=True)
    if sizes is None:
        return plain

    def columns(some: Candidates) -> dict[str, np.ndarray]:
        fill = ((0, 0), (0, N - some.places_nN.shape[1]))
        places_nN = np.pad(some.places_nN, fill, constant_values=-1)
        there_nN = places_nN >= 0
        lengths_nN = np.where(there_nN, some.sequences.lengths[places_nN], 0).astype(np.int32)
        return {"lengths": lengths_nN, "scores": np.pad(some.scores_nN, fill), "candidates": there_nN}

    train, held = (
        _rows(laid_out, sizes, pad_id, apart).with_columns(columns(some))
        for some, laid_out, apart in zip(split[:2], found, plain, strict=False)
    )
    return train, held, sizes[1]


def _of_pairs(pairs: Pairs, plain: Rows) -> SharedRows:
    """Pairs laid out as in the plain rows: the same pairs in the same row, whether it is packed or not."""
    documents = alternating(pairs)
    first = np.arange(0, len(documents) + 1, 2)
    if not plain.layout:
        return shared_rows(documents, first)
    members, offsets, _ = plain.layout
    return shared_rows(documents, first, members[::2] // 2, offsets // 2)


def _rows(
    found: SharedRows,
    sizes: tuple[int, int, int],
    pad_id: int,
    plain: Rows,
    pairs: int = 0,
    *,
    shared: bool = True,
) -> Rows:
    """Rows of shared prompts instead of plain ones, with their number and what they say of their tokens."""

    def make(index_B: np.ndarray, rows: Any) -> dict[str, np.ndarray]:
        return _arrays(found, index_B, sizes, pad_id, rows, shared=shared)

    layout = ()
    if pairs:
        # As of packed rows, in documents. The third number tells these rows from packed ones of the same pairs.
        members = (found.members[:, None] * 2 + np.arange(2)).reshape(-1)
        layout = (members, found.offsets * 2, np.array([sizes[0], sizes[2], shared]))
    # Rows of several pairs are about as full as each other.
    lengths = None if pairs > 1 else found.lengths
    return plain._replace(make=make, pairs=pairs, layout=layout, lengths=lengths)


def _arrays(
    found: SharedRows,
    index_B: np.ndarray,
    sizes: tuple[int, int, int],
    pad_id: int,
    rows: Any,
    *,
    shared: bool,
) -> dict[str, np.ndarray]:
    arrays = pad_shared(found, index_B, sizes, pad_id, rows)
    # Where no prompt is shared a kernel that knows documents, and no roots of them, can be used.
    return arrays if shared else {name: x for name, x in arrays.items() if name not in ("roots", "before")}


def _decided(
    share: str,
    found: Sequence[SharedRows],
    model: ModelConfig,
    plain: Sizes,
    *,
    packed: bool,
    logits: bool,
    by_step: bool = False,
) -> tuple[int, int, int] | None:
    """(T, R, S) of rows that share prompts, or None for plain rows; says which, and why.

    by_step: whether pairs are then packed by step, where none of them takes as much room as the longest.
    """
    if share == OFF:
        return None
    T = bucket(max(int(x.lengths.max()) for x in found), 8)
    R, S = (max(sizes) for sizes in zip(*((x.most_targets, x.most_documents) for x in found), strict=True))
    wanted = Sizes(1, T, R if logits else 0)
    part = products(model, wanted) / products(model, plain)
    about = f"rows of {T} tokens instead of {plain.sequences} of {plain.T}, {part:.0%} of the products"
    if by_step:
        # In array rows, which have one length either way, all that a pair costs is its tokens.
        together, apart = found[0].lengths.mean(), 2 * found[0].documents.lengths.mean()
        part, about = together / apart, f"pairs of {together:.1f} tokens instead of {apart:.1f} in the mean"
    kernel = _kernel(model, plain.T, packed)
    if longest_row(model) < T:
        reason = (
            f"they take {T} tokens, and the {model.family} model has {longest_row(model)} learned positions"
        )
        if share == ON:
            raise UserError(f"data.share_prompts: on; {reason}; use auto or off")
    elif kernel != "xla":
        reason = f"{kernel}'s attention knows no shared prompts"
    else:
        reason = "" if part <= _WORTH else "which does not pay"
    shared = share == ON or not reason
    if startup.is_main():
        fallback = f"; attention falls back from {kernel} to xla" if shared and kernel != "xla" else ""
        told = f"{about}{fallback}" if shared else f"auto leaves them apart ({about}; {reason})"
        print(f"data.share_prompts: {told}; {_said(found[0])}", flush=True)
    return (T, R, S) if shared else None


def _said(found: SharedRows) -> str:
    """What the rows are like: mean lengths, and how many prompts differ within a unit."""
    first, documents = found.first, found.documents
    apart = np.maximum.reduceat(documents.prompt_lengths, first[:-1]) > found.shared
    mean = np.mean(documents.lengths - documents.prompt_lengths)
    said = f"prompts of {np.mean(found.shared):.1f} tokens, responses of {mean:.1f} in the mean"
    if not apart.any():
        return said
    return f"{said}; in {apart.sum()} of {len(apart)} rows only the first part of the prompts is the same and shared"


def _kernel(model: ModelConfig, T: int, packed: bool) -> str:
    """What computes the attention of plain rows; a mask or a cap leaves no choice but xla."""
    if _squared(model, T):
        return "xla"
    platform, capability = fused.here()
    about = {"dtype": model.dtype, "platform": platform, "capability": capability}
    return fused.choose_kernel(model.attention, T=T, K=model.head_dim, packed=packed, **about)


def products(model: ModelConfig, sizes: Sizes) -> float:
    """Floating-point operations of the matrix products of one row, forward; 2 for each multiply and add."""
    D, K = model.width, model.head_dim
    heads = D * K * (2 * model.heads + 2 * model.kv_heads)
    feed = (2 + model.gated) * D * model.ff * max(model.experts, 1)
    # Where a mask or a cap asks for the whole square, one block is all of it.
    T, block = sizes.T, sizes.T if _squared(model, sizes.T) else block_size(sizes.T)
    seen = sum((min(start + block, T) - start) * min(start + block, T) for start in range(0, T, block))
    trunk = model.layers * sizes.sequences * (T * (heads + feed) + 2 * model.heads * K * seen)
    return 2.0 * (trunk + sizes.R * D * model.vocab_size)


def _squared(model: ModelConfig, T: int) -> bool:
    """Whether attention over T tokens has a mask or a cap, which no fused kernel and no blocks compute."""
    return bool((any(model.local_layers) and model.window < T) or model.attention_softcap)
