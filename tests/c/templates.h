// Small chat templates in the manner of the families that write tool calls and reasoning differently.
#pragma once

namespace templates {

static const char HERMES[] = R"({%- if tools %}{{- '<|im_start|>system\n<tools>\n' }}{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}{{- '</tools><|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content %}{{- message.content }}{%- endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

// As HERMES, and every answer begins with reasoning that the template opens.
static const char THINKING[] = R"({%- if tools %}{{- '<|im_start|>system\n<tools>\n' }}{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}{{- '</tools><|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
    {%- if message.content %}{{- message.content }}{%- endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- else %}{{- '<think>\n' }}{%- endif %}
{%- endif %})";

static const char LLAMA3[] = R"({%- for message in messages %}
    {%- if tools and loop.first %}{{- '<|start_header_id|>system<|end_header_id|>\n\nTools:\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|eot_id|>' }}{%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
    {%- if message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}' }}
    {%- elif message.content %}{{- message.content }}{%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %})";

static const char MISTRAL[] = R"({%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.last %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']</s>' }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif message.content %}{{- message.content + '</s>' }}{%- endif %}
{%- endfor %})";

// Tagged arguments; it is read as Qwen3-Coder's.
static const char TAGGED[] = R"({%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content %}{{- message.content }}{%- endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n<function=' + call.function.name + '>\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\n' }}{{- value if value is string else value | tojson }}{{- '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

static const char HARMONY[] = R"({%- for message in messages %}
    {{- '<|start|>' + message.role }}
    {%- if message.thinking %}{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' }}{%- endif %}
    {%- if message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- ' to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}{{- call.arguments | tojson }}{{- '<|call|>' }}
    {%- else %}{{- '<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %})";

// Reasoning, but no tools.
static const char DEEPSEEK[] = R"({%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|User|>' + message.content }}
    {%- elif message.role == 'system' %}{{- message.content }}
    {%- else %}
        {{- '<|Assistant|>' }}
        {%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
        {{- message.content + '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %})";

static const char PLAIN[] = R"({%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

// Turns alternate but for calls and results, ids have nine letters or digits, and one system message comes first: or it raises.
static const char STRICT[] = R"({%- set turns = namespace(users=true) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{- raise_exception('The system speaks first.') }}{%- endif %}
        {{- '[SYSTEM]' + message.content + '[/SYSTEM]' }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}{{- raise_exception('A call has nine letters.') }}{%- endif %}
        {{- '[RESULT ' + message.tool_call_id + ' ' + message.name + ']' + message.content + '[/RESULT]' }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('A call has nine letters.') }}{%- endif %}
            {{- '[CALL]{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}[/CALL]' }}
        {%- endfor %}
    {%- else %}
        {%- if (message.role == 'user') != turns.users %}{{- raise_exception('Turns must alternate.') }}{%- endif %}
        {%- set turns.users = not turns.users %}
        {{- '[' + message.role + ']' + message.content + '[/]' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %})";

// Raises nothing, and shows the first message of the system and the first part of a message alone.
static const char FORGETFUL[] = R"({%- if messages[0].role == 'system' %}{{- '[system]' + (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '[/]' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}{{- '[' + message.role + ']' + message.content + '[/]' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %})";

// Lists tools, shows no calls, and is read as LFM2's.
static const char PYTHONIC[] = R"({%- for message in messages %}
    {%- if tools and loop.first %}{{- '<|im_start|>system\nList of tools: <|tool_list_start|>[' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- ']<|tool_list_end|><|im_end|>\n' }}{%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

// Lists tools from a text in a variable of its own.
static const char FUNCTIONS[] = R"({{- '<|im_start|>system\nFunctions: ' + functions + '<|im_end|>\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content }}
    {%- if message.tool_calls %}
        {{- ' functools[' }}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

// Thinks if it is told to, between marks that nobody is told of.
static const char DELIBERATE[] = R"({{- 'Deliberation: ' }}{%- if enable_thinking is defined and enable_thinking %}{{- 'enabled' }}{%- else %}{{- 'disabled' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %})";

// Another field for thoughts, and a switch for those of earlier turns.
static const char PENSIVE[] = R"({%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.thought and (loop.last or preserve_thinking) %}{{- '<think>\n' + message.thought + '\n</think>\n\n' }}{%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %})";

}  // namespace templates
