"""What a template writes around texts is known only where it can be nothing else for other texts."""

import pytest
from chat_tokenizers import build

from rlhf_jax.data.chat import outlines
from rlhf_jax.data.chat.chat_templates import render_plain
from rlhf_jax.data.chat.outlines import Outlines, outlines_of
from rlhf_jax.data.templates import Handling

EACH = "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{}<|im_end|>{{% endfor %}}"
# Those that do the same with every text, then those that do not, whether they show it with these texts or not.
KNOWN = {
    "plain": "{{ m.content }}",
    "joined": "{% set x = '[' + m['content'] + ']' %}{{ x + '!' }}",
    "trimmed": "{{ (' ' + m.content + ' ') | trim }}",
    "stripped": "{{ m.content.strip() }}",
    "right": "{{ m.content.rstrip() }}",
    "asked": "{% if m.content %}{{ m.content }}{% else %}nothing{% endif %}",
    "kinds": "{% if m.content is string and m.content is not none %}{{ m.content }}{% endif %}",
    "kept": "{% set ns = namespace(x='') %}{% set ns.x = ns.x + m.content %}{{ ns.x }}",
    "default": "{{ m.content | default('none') }}",
    "listed": "{% for x in [m.content] %}{{ x }}{% endfor %}",
    "counted": "{{ messages | length }}{{ m.content }}",
    "generated": "{% generation %}{{ m.content }}{% endgeneration %}",
}
OTHERS = [
    "{{ m.content | upper }}",
    "{{ m.content.upper() }}",
    "{{ m.content | trim('x') }}",
    "{{ m.content.strip('x') }}",
    "{{ m.content | replace('cat', 'dog') }}",
    "{{ m.content | tojson }}",
    "{{ m.content }}{{ m.content | length }}",
    "{{ m.content[0] }}",
    "{{ m.content[:3] }}",
    "{{ m.content * 2 }}",
    "{{ m.content }}{% if 'cat' in m.content %}!{% endif %}",
    "{{ m.content }}{% if m.content in 'the cat sat' %}!{% endif %}",
    "{{ m.content }}{% set x = 'the cat sat' %}{% if m.content not in x %}!{% endif %}",
    "{{ m.content }}{% if m.content in ['the cat'] %}!{% endif %}",
    "{{ m.content }}{% if m.content == 'the cat' %}!{% endif %}",
    "{{ m.content }}{% if 'the cat' != m.content %}!{% endif %}",
    "{{ m.content }}{% if 'm' < m.content %}!{% endif %}",
    "{{ m.content }}{% if m == {'role': 'user', 'content': 'the cat'} %}!{% endif %}",
    "{{ m.content }}{% if (m.content, 1) == ('the cat', 1) %}!{% endif %}",
    "{{ m.content }}{% if m.content is eq 'the cat' %}!{% endif %}",
    "{{ m.content }}{% if m.content is iterable %}!{% endif %}",
    "{{ m.content }}{% if m.content is sequence %}!{% endif %}",
    "{{ m.content }}{% if m.content is lower %}!{% endif %}",
    "{{ m.content }}{% if m.content.startswith('the') %}!{% endif %}",
    "{{ m.content }}{% if 'the cat'.startswith(m.content) %}!{% endif %}",
    "{{ m.content }}{{ {'the cat': '!'}[m.content] }}",
    "{{ m.content }}{{ {m.content: '!'}['the cat'] }}",
    "{{ m.content }}{% if loop.changed(m.content) %}!{% endif %}",
    "{% for x in m.content %}{{ x }}{% endfor %}",
    "{{ m.content.split('cat')[0] }}",
    "{{ '%s' % m.content }}",
    "{{ '{}'.format(m.content) }}",
    "{{ m }}",
    "{{ [m.content] }}",
    "{% set x %}{{ m.content }}{% endset %}{{ x }}{% if 'cat' in x %}!{% endif %}",
    "{% set x = m.content ~ '' %}{{ x }}{% if 'cat' in x %}!{% endif %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) }}{% if 'cat' in f(m.content) %}!{% endif %}",
    "{{ [m.content] | join }}",
    "{{ messages | map(attribute='content') | join }}",
    "{{ m.content }}{{ m.content }}",
    "{{ m.role }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{{ m.content }}{% if m.get('content') | length > 3 %}!{% endif %}",
    "{{ m.content }}{{ m.content.missing }}",
]
TEXTS = ["the cat", "sat", " on ", "THE\n", "{{ m }}", "<b>", "é\u2003", "1"]
ORDER = ["<|im_start|>", "<|im_end|>"]


def chat_of(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": x} for i, x in enumerate(texts)]


@pytest.fixture
def made(monkeypatch):
    # No trial: what is wrong must not be found out in time.
    monkeypatch.setattr(outlines, "_TRIALS", 0)
    monkeypatch.setattr(outlines, "_known", {})
    tokenizer = build("x", ORDER, eos_token="<|im_end|>")

    def of(body):
        tokenizer.chat_template = EACH.format(body)
        return tokenizer, outlines_of(tokenizer, Handling())

    return of


@pytest.mark.parametrize("name", KNOWN)
def test_the_same_around_every_text(name, made):
    tokenizer, found = made(KNOWN[name])
    kinds = set()
    for one in TEXTS:
        for other in TEXTS:
            chat = chat_of(one, other, one)
            parts = found.of(chat)
            kinds.add(parts is None)
            if parts is not None:
                assert parts[1::2] == [one, other, one]
                assert "".join(parts) == render_plain([chat], tokenizer, Handling())[0]
    strips = name in ("trimmed", "stripped", "right")
    assert kinds == ({True, False} if strips else {False}), "texts that are stripped are rendered"
    assert found.of(chat_of("", "x")) is None and found.of(chat_of("x", " ")) is None


@pytest.mark.parametrize("body", OTHERS)
def test_what_depends_on_the_text_is_rendered(body, made):
    _, found = made(body)
    assert found is None or found.of(chat_of("the cat", "sat")) is None


def test_the_kind_of_conversation_decides(made):
    tokenizer, found = made(
        "{{ m.content }}{% if m.train is defined %}{{ m.train }}{% endif %}{{ loop.length }}"
    )
    chats = [
        chat_of("a"),
        chat_of("a", "b"),
        chat_of("c", "d"),
        *([*chat_of("a"), chat_of("a", "b")[1] | {"train": x}] for x in (False, True)),
    ]
    chats.append([{"role": "system", "content": "s"}, *chat_of("a", "b")])
    for chat in chats * 2:
        assert "".join(found.of(chat)) == render_plain([chat], tokenizer, Handling())[0]
    tokenizer.chat_template += "{% if add_generation_prompt %}<|im_start|>{% endif %}{{ eos_token }}"
    asked = outlines_of(tokenizer, Handling(), add_generation_prompt=True)
    assert "".join(asked.of(chats[0])).endswith("<|im_start|><|im_end|>")


def test_an_outline_that_is_not_confirmed_is_not_used(monkeypatch):
    chat, said = chat_of("a", "b"), ["a!b!"]
    found = Outlines("{% for m in messages %}{{ m.content }}!{% endfor %}", {}, lambda _: said)
    assert found.of(chat) == ["", "a", "!", "b", "!"]
    said[0] = "a!b"
    assert found.of(chat) is None
    said[0] = "a!b!"
    assert found.of(chat) is None
