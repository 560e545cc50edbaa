"""Beam search against transformers' algorithm in float64, against transformers itself, and against all sequences."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder
from rlhf_jax.sampling.beam_search import Beams, _search, beam_search

CONFIG = ModelConfig(vocab_size=13, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff=24)
P, R = 5, 6
LENGTHS_B = np.array([5, 2, 3], np.int32)
TOKENS_BP = np.random.default_rng(1).integers(1, 13, (3, P)).astype(np.int32)
PROMPTS = [TOKENS_BP[b, P - n :].tolist() for b, n in enumerate(LENGTHS_B)]
PAD = 0


def drawn(seed):
    """Weights larger than at birth, so that beams differ and some tokens are much likelier than others."""
    params = nn.unbox(decoder.init(CONFIG, jax.random.key(seed)))
    return params | {"head": params["head"] * 8}


PARAMS = drawn(0)


def search(beams, ends=(3,), params=PARAMS, R=R, rows=slice(None)):
    found = beam_search(
        CONFIG,
        params,
        jnp.asarray(TOKENS_BP[rows]),
        jnp.asarray(LENGTHS_B[rows]),
        beams,
        jnp.array(ends, jnp.int32),
        PAD,
        max_new_tokens=R,
    )
    return jax.tree.map(np.asarray, found)


@jax.jit
def _all_logprobs(params, tokens_BT):
    hidden_BTD = decoder.hidden_states(CONFIG, params, tokens_BT)
    return jax.nn.log_softmax(hidden_BTD @ decoder.head(CONFIG, params))


def logprobs_after(sequences, params=PARAMS):
    """Of every next token behind each of these sequences, without a cache [n, V]."""
    # Of one shape, so that this compiles once; what stands behind a sequence is not seen by it.
    padded = np.zeros((64, P + R), np.int32)
    for row, one in zip(padded, sequences, strict=False):
        row[: len(one)] = one
    last = [len(one) - 1 for one in sequences]
    return np.float64(_all_logprobs(params, jnp.asarray(padded)))[np.arange(len(sequences)), last]


class Hypotheses:
    """BeamHypotheses of transformers."""

    def __init__(self, size, length_penalty, early_stopping):
        self.size, self.length_penalty, self.early_stopping = size, length_penalty, early_stopping
        self.beams, self.worst = [], 1e9

    def add(self, response, total, length):
        score = total / length**self.length_penalty
        if len(self.beams) < self.size or score > self.worst:
            self.beams.append((score, response))
            if len(self.beams) > self.size:
                ranked = sorted((s, i) for i, (s, _) in enumerate(self.beams))
                del self.beams[ranked[0][1]]
                self.worst = ranked[1][0]
            else:
                self.worst = min(score, self.worst)

    def is_done(self, best, length):
        if len(self.beams) < self.size:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = R
        return self.worst >= best / length**self.length_penalty


def of_transformers(prompt, beams, ends):
    """[(score, response)] of one prompt, the best first, by its _group_beam_search, BeamSearchScorer and diversity.

    One thing differs: pads of groups that are done are no tokens that later groups are kept from.
    """
    N, M = beams.beams, beams.groups
    W = N // M
    groups = [Hypotheses(W, beams.length_penalty, beams.early_stopping) for _ in range(M)]
    done = [False] * M
    sums = [0.0 if i % W == 0 else -1e9 for i in range(N)]
    rows = [[] for _ in range(N)]
    for t in range(R):
        logprobs_NV = logprobs_after([prompt + row for row in rows])
        taken, new_rows, new_sums = np.zeros(CONFIG.vocab_size), list(rows), list(sums)
        for m in range(M):
            mine = range(m * W, (m + 1) * W)
            if done[m]:
                continue
            total = {
                (i, v): logprobs_NV[i, v] - beams.diversity_penalty * taken[v] + sums[i]
                for i in mine
                for v in range(CONFIG.vocab_size)
            }
            top = sorted(total, key=lambda key: -total[key])[: max(2, 1 + len(ends)) * W]
            following = []
            for rank, (i, v) in enumerate(top):
                if v in ends:
                    if rank < W:
                        groups[m].add([*rows[i], v], total[i, v], t + 1)
                else:
                    following.append(([*rows[i], v], total[i, v]))
                if len(following) == W:
                    break
            for i, (row, value) in zip(mine, following, strict=True):
                new_rows[i], new_sums[i] = row, value
                taken[row[-1]] += 1
            done[m] = groups[m].is_done(max(total.values()), t + 1)
        rows, sums = new_rows, new_sums
        if all(done):
            break
    for m in range(M):
        if not done[m]:
            for i in range(m * W, (m + 1) * W):
                groups[m].add(rows[i], sums[i], R)
    return sorted((hypothesis for group in groups for hypothesis in group.beams), reverse=True)


CASES = [
    (Beams(4), (3,)),
    (Beams(4, length_penalty=2.0, early_stopping=True), (3, 7, 5, 9, 11, 2)),
    (Beams(4, 4, 1.0), (3,)),  # RRHF's
    (Beams(6, 2, 0.7, 1.5, "never"), (3, 7)),
    (Beams(4, 2, 0.3, -0.5, "never"), (3, 7, 5, 9, 11, 2)),
    (Beams(6, 3, 2.0, 1.0, True), (3, 7)),
]


@pytest.mark.parametrize(("beams", "ends"), CASES)
def test_hypotheses_and_scores_are_those_of_transformers_algorithm(beams, ends):
    found = search(beams, ends)
    for b, prompt in enumerate(PROMPTS):
        want = of_transformers(prompt, beams, ends)
        np.testing.assert_allclose(found.scores_BN[b], [score for score, _ in want], atol=2e-4)
        for n, (_, response) in enumerate(want):
            assert found.tokens_BNR[b, n, : found.lengths_BN[b, n]].tolist() == response
            assert found.ended_BN[b, n] == (response[-1] in ends)
            assert set(found.tokens_BNR[b, n, found.lengths_BN[b, n] :].tolist()) <= {PAD}


def test_the_cases_have_ends_early_late_and_none():
    """Otherwise the comparison above would say little."""
    lengths = {int(n) for beams, ends in CASES for n in search(beams, ends).lengths_BN.ravel()}
    open_ones = sum((~search(beams, ends).ended_BN).sum() for beams, ends in CASES)
    steps = {int(search(beams, ends).steps) for beams, ends in CASES}
    assert {1, 2, 3, R} <= lengths and open_ones and min(steps) < R


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_enough_beams_it_finds_the_best_of_all_sequences(length_penalty):
    words, end, R = range(CONFIG.vocab_size), 3, 2
    beams = Beams(26, length_penalty=length_penalty, early_stopping="never")
    found = search(beams, (end,), R=R)
    for b, prompt in enumerate(PROMPTS):
        first = logprobs_after([prompt])[0]
        second = logprobs_after([[*prompt, v] for v in words])
        scores = {(end,): first[end]}
        for v, w in itertools.product(words, words):
            if v != end:
                scores[v, w] = (first[v] + second[v, w]) / 2**length_penalty
        best = sorted(scores, key=scores.get, reverse=True)[:20]
        np.testing.assert_allclose(found.scores_BN[b, :20], [scores[x] for x in best], atol=1e-4)
        assert [tuple(found.tokens_BNR[b, n, : found.lengths_BN[b, n]].tolist()) for n in range(20)] == best


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer").mkdir()
    ids = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 3}
    export_folder.save_folder(
        folder / "model", CONFIG, PARAMS, token_ids=ids, tokenizer_from=folder / "tokenizer"
    )
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.mark.parametrize(
    "beams", [Beams(4, early_stopping=True), Beams(5, length_penalty=0.7, early_stopping="never")]
)
def test_plain_beam_search_is_that_of_transformers(beams, theirs):
    """Its newest version has lost the groups, and with early_stopping=False looks at other candidates to stop."""
    import torch

    found = search(beams)
    for b, prompt in enumerate(PROMPTS):
        out = theirs.generate(
            torch.tensor([prompt]),
            num_beams=beams.beams,
            num_return_sequences=beams.beams,
            length_penalty=beams.length_penalty,
            early_stopping=beams.early_stopping,
            max_new_tokens=R,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        np.testing.assert_allclose(found.scores_BN[b], out.sequences_scores, atol=2e-4)
        for n, row in enumerate(out.sequences[:, len(prompt) :].tolist()):
            length = found.lengths_BN[b, n]
            assert found.tokens_BNR[b, n, :length].tolist() == row[:length] and set(row[length:]) <= {PAD, 3}


def test_one_beam_is_greedy():
    found = search(Beams(1), ends=(-1,))
    for b, prompt in enumerate(PROMPTS):
        row = list(prompt)
        for _ in range(R):
            row.append(int(logprobs_after([row])[0].argmax()))
        assert found.tokens_BNR[b, 0].tolist() == row[len(prompt) :] and not found.ended_BN[b, 0]


def test_diverse_groups_begin_with_other_tokens_and_one_program_serves_all_penalties():
    before = _search._cache_size()
    for penalty, different in ((0.0, 1), (50.0, 4)):
        found = search(Beams(4, 4, penalty), ends=(-1,))
        assert {len(set(rows)) for rows in found.tokens_BNR[:, :, 0].tolist()} == {different}
    assert _search._cache_size() <= before + 1


def test_a_prompt_is_searched_alike_whatever_stands_beside_it():
    beams = Beams(4, 2, 1.0)
    both, alone = search(beams), search(beams, rows=slice(1, 2))
    np.testing.assert_array_equal(both.tokens_BNR[1:2], alone.tokens_BNR)


@pytest.mark.parametrize(("beams", "groups"), [(4, 3), (4, 0), (2, 4)])
def test_groups_that_do_not_divide_the_beams_are_refused(beams, groups):
    with pytest.raises(
        UserError, match=rf"^beam_groups: {groups} groups do not divide beams={beams}; use a divisor"
    ):
        search(Beams(beams, groups))
