"""Chat templates that write tools, short, in the manner of Qwen 2.5, Mistral v3, Llama 3.1 and DeepSeek V3."""

from chat_tokenizers import build

# The generation blocks say, to transformers alone, what the assistant writes itself.
QWEN = (
    "{%- if tools %}<|im_start|>system\n<tools>{%- for t in tools %}\n{{ t | tojson }}{%- endfor %}\n</tools>"
    "<|im_end|>\n{%- endif %}"
    "{%- for m in messages %}{%- if m.role in ['user', 'system'] %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}{% generation %}"
    "{%- if m.content %}{{- m.content }}{%- endif %}"
    "{%- for c in m.tool_calls or [] %}{%- if c.function is defined %}{%- set c = c.function %}{%- endif %}"
    "{{- '\n' if not loop.first or m.content }}{{- '<tool_call>\n{\"name\": \"' + c.name + '\", \"arguments\": ' }}"
    "{{- c.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL = (
    "{{- bos_token }}{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- if tools and loop.index0 == ns.last %}{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}"
    "{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{% generation %}{{- '[CALLS] [' }}{%- for c in m.tool_calls %}"
    "{{- ', ' if not loop.first }}{{- c.function | tojson }}{%- endfor %}{{- ']' + eos_token }}{% endgeneration %}"
    "{%- elif m.role == 'assistant' %}{% generation %}{{- ' ' + m.content + eos_token }}{% endgeneration %}"
    "{%- elif m.role == 'tool' %}{{- '[RESULTS] ' + ({'content': m.content} | tojson) + '[/RESULTS]' }}"
    "{%- endif %}{%- endfor %}"
)
LLAMA = (
    "{{- bos_token }}{%- if tools %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{{- '<|eot_id|>' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.tool_calls %}{%- if m.tool_calls | length != 1 %}"
    "{{- raise_exception('only one call at once!') }}{%- endif %}{%- set c = m.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% generation %}"
    "{{- '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{- c.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{% endgeneration %}{%- elif m.role == 'tool' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{- m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{%- else %}{{- m.content | trim + '<|eot_id|>' }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# Arguments must be texts, and calls end otherwise than answers.
DEEPSEEK = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|user|>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<|assistant|>' }}{% generation %}{{- m.content }}"
    "{%- for c in m.tool_calls or [] %}{{- '<call>' + c.function.name + '\n' + c.function.arguments }}{%- endfor %}"
    "{{- '<|call|>' if m.tool_calls else '<|end|>' }}{% endgeneration %}"
    "{%- elif m.role == 'tool' %}{{- '<|tool|>' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
_CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
_SPM = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ENDS = ["<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|call|>"]

TOOL_TOKENIZERS = {
    "qwen": build(QWEN, ["<|im_end|>", "<|im_start|>", "<|pad|>", "<tool_call>", "</tool_call>"], **_CHATML),
    "mistral": build(
        MISTRAL, [*_SPM.values(), "[INST]", "[/INST]", "[CALLS]", "[RESULTS]", "[/RESULTS]"], **_SPM
    ),
    "llama": build(LLAMA, [*_LLAMA3.values(), "<|start_header_id|>", "<|end_header_id|>"], **_LLAMA3),
    "deepseek": build(DEEPSEEK, _ENDS, eos_token="<|end|>"),
}
