"""Which tokens end a response, and which one can be PAD without being part of a text."""

import json

import numpy as np
import pytest
from chat_tokenizers import CHATML, TOKENIZERS, build

from rlhf_jax.data.chat.chat_encoding import encode_chats
from rlhf_jax.data.tokens.special_ids import end_ids, fill_id, with_spare_pad, without_end
from rlhf_jax.errors import UserError

ORDER = ["</s>", "<|im_start|>", "<|im_end|>", "<|eom|>"]
OTHER = build(CHATML, ORDER, eos_token="</s>")  # its turns end with another token than EOS; no PAD


def test_a_turn_that_ends_with_another_token_than_eos(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat"}]
    ((ids, trained, _),) = encode_chats([chat], OTHER)
    assert ids[-1] == 2 and trained[-1] and 0 not in ids
    assert end_ids(OTHER, tmp_path, "chat") == (2, 0)
    assert end_ids(OTHER, tmp_path, "alpaca") == (0,)


@pytest.mark.parametrize(
    ("listed", "wanted"), [([3, 2], (2, 0, 3)), (3, (2, 0, 3)), (None, (2, 0)), (-1, (2, 0))]
)
def test_what_the_makers_list(tmp_path, listed, wanted):
    (tmp_path / "config.json").write_text('{"eos_token_id": 77}')
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert end_ids(OTHER, tmp_path, "chat") == wanted
    (tmp_path / "generation_config.json").unlink()
    assert end_ids(OTHER, tmp_path, "chat") == (2, 0, 77)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"eos_token_id": [3,', r"generation_config\.json: not a JSON object .*; copy it again"),
        ("[3]", r"generation_config\.json: not a JSON object"),
        ('{"eos_token_id": ["</s>"]}', r"eos_token_id: \['</s>'\]; use a token id or a list of them"),
        ('{"eos_token_id": true}', r"eos_token_id: True; use a token id"),
    ],
)
def test_a_list_that_cannot_be_read(tmp_path, text, words):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        end_ids(OTHER, tmp_path, "alpaca")


def test_an_end_of_plain_text_is_refused(tmp_path):
    plain = build(CHATML.replace("<|im_end|>", " the end. "), ["</s>", "<|im_start|>"], eos_token="</s>")
    with pytest.raises(UserError, match=r"ends a turn with ' the end\.', which is \d+ tokens of plain text"):
        end_ids(plain, tmp_path, "chat")


def test_the_text_of_a_response_is_without_its_end():
    ids = np.array([7, 8, 9])
    assert without_end(ids, True).tolist() == [7, 8]
    assert without_end(ids, False).tolist() == [7, 8, 9]


def tokenizer(*special, **names):
    return build(None, ["</s>", *special], eos_token="</s>", **names)


def test_rows_are_filled_with_any_id():
    assert fill_id(tokenizer("<p>", pad_token="<p>")) == 1
    assert fill_id(tokenizer(pad_token="</s>")) == fill_id(tokenizer()) == 0


def test_the_pad_of_an_exported_reward_model():
    size = len(tokenizer("<p>"))
    own = with_spare_pad(tokenizer("<p>", pad_token="<p>"), (0,), size)
    assert own.pad_token == "<p>"
    ours = ["<|reserved_3|>", "<|finetune_right_pad_id|>"]
    assert with_spare_pad(tokenizer(*ours, pad_token="</s>"), (0,), 999).pad_token == ours[1]
    assert with_spare_pad(tokenizer(*ours), (0, 2), 999).pad_token == ours[0]
    assert with_spare_pad(tokenizer(*ours), (0,), 2).pad_token == ours[0]  # the other has no embedding
    grown = with_spare_pad(tokenizer(pad_token="</s>"), (0,), len(tokenizer()) + 1)
    assert grown.pad_token_id == len(tokenizer()) and not grown("a b")["input_ids"].count(grown.pad_token_id)
    unknown = with_spare_pad(tokenizer("<unk>", unk_token="<unk>"), (0,), len(tokenizer("<unk>")))
    assert unknown.pad_token == "<unk>"
    assert with_spare_pad(tokenizer(), (0,), len(tokenizer())) is None


def test_tokenizers_of_the_chat_tests_end_as_before(tmp_path):
    for name, found in TOKENIZERS.items():
        assert end_ids(found, tmp_path, "chat") == (found.eos_token_id,), name
