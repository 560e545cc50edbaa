"""Small tokenizers with chat templates in the styles of Llama 3, Zephyr, ChatML and Mistral, and what they render.

`rendered` writes a conversation by plain string work, with a flag per character: does the assistant say it?
"""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_TEXT = ["the cat sat on the mat and the dog sat on the cat\n\nuser assistant system\nhi there"] * 9


def build(template, order, *, spaces=False, adds_bos=False, trims_offsets=False, **special):
    """A BPE tokenizer. spaces: Llama 2's kind, words with "▁" and bytes to fall back on; else byte-level."""
    backend = Tokenizer(
        models.BPE(byte_fallback=spaces, unk_token="<unk>" if spaces else None, fuse_unk=spaces)
    )
    if spaces:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
        order = [*order, *(f"<0x{i:02X}>" for i in range(256))]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360 if not spaces else 420,
        special_tokens=list(order),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    if spaces:  # the bytes are plain tokens
        backend = _without_special(backend, [f"<0x{i:02X}>" for i in range(256)])
    bos = special.get("bos_token")
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    elif trims_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


def _without_special(backend, tokens):
    import json

    content = json.loads(backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(content))


_LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
_CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
_SPM = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_SPM_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]

TOKENIZERS = {
    "llama3": build(LLAMA3, _LLAMA3_TOKENS, adds_bos=True, **_LLAMA3),
    "zephyr": build(ZEPHYR, _SPM_TOKENS, spaces=True, adds_bos=True, **_SPM),
    "zephyr_bytes": build(ZEPHYR, _SPM_TOKENS, trims_offsets=True, **_SPM),
    # EOS has id 0, there is no BOS.
    "chatml": build(CHATML, ["<|im_end|>", "<|im_start|>", "<|pad|>"], **_CHATML),
    "chatml_bos": build(
        CHATML, ["<s>", "<|im_end|>", "<|im_start|>", "<|pad|>"], adds_bos=True, **_CHATML, bos_token="<s>"
    ),
    "mistral": build(MISTRAL, [*_SPM_TOKENS, "[INST]", "[/INST]"], spaces=True, adds_bos=True, **_SPM),
    "mistral_bytes": build(MISTRAL, _SPM_TOKENS, **_SPM),
}


def rendered(style, messages):
    """(text, a flag for every character) of a conversation; a BOS at the beginning is left to the caller."""
    pieces = []
    for message in messages:
        role, text = message["role"], message["content"]
        said = role == "assistant"
        if style == "llama3":
            header = f"<|start_header_id|>{role}<|end_header_id|>\n\n"
            pieces += [(header, False), (text.strip() + "<|eot_id|>", said)]
        elif style.startswith("zephyr"):
            pieces += [(f"<|{role}|>\n", False), (text + "</s>", said), ("\n", False)]
        elif style.startswith("chatml"):
            pieces += [(f"<|im_start|>{role}\n", False), (text + "<|im_end|>", said), ("\n", False)]
        elif said:
            pieces += [(" " + text + "</s>", True)]  # "[/INST]" is where the model takes over
        else:
            pieces += [(f"[INST] {text} [/INST]", False)]
    flags = [flag for piece, flag in pieces for _ in piece]
    return "".join(piece for piece, _ in pieces), flags
