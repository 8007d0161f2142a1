#include "chat_template.h"

#include "answer_parser.h"
#include "answer_pruning.h"
#include "budget.h"
#include "arguments.h"
#include "conversation.h"
#include "error.h"

#include "plain_tools.h"
#include "python_calls.h"
#include "tool_requests.h"

#include "chat-auto-parser.h"
#include "chat-peg-parser.h"
#include "chat.h"
#include "json.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <optional>
#include <utility>

namespace lm {

// Unicode noncharacters: no template looks for them, no text legitimately holds them. Between the two, what a message
// wrote looks like a control token and must be tokenized as text.
static const std::string LITERAL_BEGIN = "\xEF\xB7\x90";
static const std::string LITERAL_END = "\xEF\xB7\x91";
// Between two of these stands the index of a picture or a sound, behind a letter for what it is.
static const std::string MEDIA_MARK = "\xEF\xB7\x92";

// Formats that requests share: what a template makes of the same tools and options. Far more than a few agents need.
static constexpr size_t CACHED_BYTES = 8u << 20;
static constexpr size_t COUNTED_MESSAGES = 8192; // counted even where the context is smaller; what has more takes seconds
static constexpr size_t COUNTED_TOKENS = 1u << 18;
static constexpr size_t KNOWN_TOOLS = 16; // sets of them
static constexpr size_t PARSER_SIZE = 6; // a parser in memory, relative to its text

// What a template may take at a time: no real one takes a hundredth of it. On top of that comes what the conversation takes,
// which is in memory several times over while its prompt is written.
static constexpr budget_limits TEMPLATE_LIMITS = {256u << 20, 16u << 20, 3000};
static constexpr size_t BYTES_PER_TEXT_BYTE = 16;
static constexpr size_t BYTES_PER_JSON_BYTE = 128; // each value of it is an object of half a kilobyte
static constexpr size_t BYTES_PER_MESSAGE = 32u << 10;

// The parser goes down twelve functions, or two kilobytes of stack, for each bracket, and allocates on the way back: half of
// the preparer's. Real ones have a tenth.
static constexpr size_t MAX_TEMPLATE_BYTES = 128u << 10;

static constexpr size_t MAX_PROBLEM_BYTES = 300;

static constexpr char CHATML[] = "chatml";

static constexpr char KEEP_THOUGHTS[] = "preserve_reasoning"; // llama.cpp's word for the switches that templates have

static constexpr char FUNCTIONS[] = "functions"; // firefunction's word for the tools: a text that is a list of them

static std::string told(const over_budget & over) {
    const std::string what = over.what;
    return what == "memory"  ? "it takes more than " + std::to_string(TEMPLATE_LIMITS.bytes >> 20) + " MB of memory"
           : what == "stack" ? "it nests without end"
                             : "it takes more than " + std::to_string(int(TEMPLATE_LIMITS.cpu_ms / 1000)) + " s";
}

// As one line of no great length.
static std::string told(const std::string & message) {
    std::string line;
    for (const char c : message) {
        const bool blank = c == '\n' || c == ' ';
        if (!blank || (!line.empty() && line.back() != ' ')) {
            line += blank ? ' ' : c;
        }
    }
    line.resize(std::min(line.size(), MAX_PROBLEM_BYTES));
    std::string whole;
    decode_utf8(line, whole);
    return whole;
}

// All marks have the same length and differ in their last byte alone. One pass: a hostile message is a million marks.
static std::string without_marks(const std::string & text, bool with_media = false) {
    const std::string common = LITERAL_BEGIN.substr(0, LITERAL_BEGIN.size() - 1);
    std::string kept;
    size_t copied = 0;
    for (size_t at = text.find(common); at != std::string::npos; at = text.find(common, at)) {
        const auto is = [&](const std::string & mark) { return text.compare(at, mark.size(), mark) == 0; };
        if (is(LITERAL_BEGIN) || is(LITERAL_END) || (with_media && is(MEDIA_MARK))) {
            kept.append(text, copied, at - copied);
            at = copied = at + LITERAL_BEGIN.size();
        } else {
            at++;
        }
    }
    return kept.append(text, copied, std::string::npos);
}

// A picture or a sound in a prompt's text.
struct shown_media {
    size_t begin = std::string::npos; // of its mark; npos: there is none
    size_t end = std::string::npos;
    size_t index = 0;
    bool is_sound = false;
};

static std::string media_mark(size_t index, bool is_sound) {
    return MEDIA_MARK + (is_sound ? 's' : 'p') + std::to_string(index) + MEDIA_MARK;
}

static shown_media find_media(const std::string & prompt, size_t from) {
    shown_media found;
    found.begin = prompt.find(MEDIA_MARK, from);
    const size_t inside = found.begin + MEDIA_MARK.size();
    const size_t close = found.begin == std::string::npos ? found.begin : prompt.find(MEDIA_MARK, inside);
    if (close == std::string::npos) {
        return {};
    }
    found.end = close + MEDIA_MARK.size();
    found.is_sound = prompt[inside] == 's';
    found.index = size_t(strtoul(prompt.substr(inside + 1, close - inside - 1).c_str(), nullptr, 10));
    return found;
}

static bool is_media_mark(const common_chat_msg_content_part & part) {
    const shown_media m = part.type == "media_marker" ? find_media(part.text, 0) : shown_media();
    return m.begin == 0 && m.end == part.text.size() && part.text == media_mark(m.index, m.is_sound);
}

// For whoever reads it.
static std::string with_readable_media(const std::string & prompt) {
    std::string readable;
    size_t at = 0;
    for (shown_media m = find_media(prompt, 0); m.begin < prompt.size(); m = find_media(prompt, at)) {
        readable.append(prompt, at, m.begin - at);
        readable += m.is_sound ? "<audio>" : "<image>";
        at = m.end;
    }
    return readable.append(prompt, at, std::string::npos);
}

// Parts of messages that are pictures or sounds, as texts that nobody but this can write.
static void mark_media(common_json & messages) {
    for (size_t i = 0; i < messages.size(); i++) {
        common_json & message = messages.at(i);
        if (!message.is_object() || !message.contains("content") || !message.at("content").is_array()) {
            continue;
        }
        common_json & parts = message.at("content");
        for (size_t j = 0; j < parts.size(); j++) {
            common_json & part = parts.at(j);
            const bool typed = part.is_object() && part.contains("type") && part.at("type").is_string();
            const std::string type = typed ? part.at("type").get<std::string>() : "";
            if (type == "media_marker") {
                throw invalid_request("messages", "there are no parts of the type media_marker");
            }
            if (type == "media") {
                const bool is_sound = part.at("kind") == "audio";
                part = common_json::object({{"type", "media_marker"}, {"text", media_mark(part.at("index").get<size_t>(), is_sound)}});
            }
        }
    }
}

chat_template::chat_template(const llama_model * model, const vocabulary & vocab, const std::string & chosen) : vocab_(vocab) {
    compile(model, chosen);
}

chat_template::chat_template(const std::string & source, const vocabulary & vocab) : vocab_(vocab) {
    compile(nullptr, source);
}

void chat_template::compile(const llama_model * model, const std::string & chosen) {
    for (const std::string & text : vocab_.control_texts()) {
        control_starts_[static_cast<unsigned char>(text[0])] = true;
    }
    try {
        const budget cost(TEMPLATE_LIMITS);
        parse(model, chosen);
    } catch (const over_budget & over) {
        give_memory_back();
        problem_ = told(over);
    } catch (const error &) {
        throw;
    } catch (const std::exception & e) {
        problem_ = told(std::string(e.what()));
    }
    if (!problem_.empty()) {
        templates_.reset();
    }
}

static void check_size(const std::string & source) {
    if (source.size() > MAX_TEMPLATE_BYTES) {
        throw std::runtime_error("it is longer than " + std::to_string(MAX_TEMPLATE_BYTES) + " bytes");
    }
}

// llama.cpp logs what is wrong with a template and throws something that does not say it.
static void check_syntax(const std::string & source) {
    check_size(source);
    jinja::lexer lexer;
    jinja::parse_from_tokens(lexer.tokenize(source));
}

static std::vector<const char *> built_in_templates() {
    std::vector<const char *> names(size_t(llama_chat_builtin_templates(nullptr, 0)));
    llama_chat_builtin_templates(names.data(), names.size());
    return names;
}

// One that is chosen by a name of llama.cpp's is written by a function there, but for ChatML, which is known as a template, too.
void chat_template::read_choice(const std::string & chosen) {
    if (chosen.find('{') != std::string::npos || chosen.empty()) {
        return check_syntax(chosen);
    }
    std::string known;
    for (const std::string name : built_in_templates()) {
        if (name == chosen) {
            built_in_ = name != CHATML;
            return;
        }
        known += (known.empty() ? "" : ", ") + name;
    }
    throw invalid_request("chat_template", "'" + told(chosen) + "' is no chat template, nor the name of a built-in one: " + known);
}

// Templates have words of their own for the field that holds what was thought, which everybody else calls as below. Empty: this
// one has none.
static std::string rename_fields(const std::string & source) {
    static constexpr char OURS[] = "reasoning_content";
    if (source.find(OURS) != std::string::npos) {
        return {};
    }
    std::string renamed = source;
    for (const std::string theirs : {"reasoning", "thinking", "thought"}) {
        for (const auto & [before, after] : {std::pair("message.", ""), std::pair("message['", "']"), std::pair("message[\"", "\"]"),
                                             std::pair("message.get('", "'"), std::pair("message.get(\"", "\""), std::pair("'", "' in message"), std::pair("\"", "\" in message")}) {
            const std::string field = before + theirs + after;
            for (size_t at = renamed.find(field); at != std::string::npos; at = renamed.find(field, at + 1)) {
                const size_t end = at + field.size();
                const bool goes_on = end < renamed.size() && (isalnum(static_cast<unsigned char>(renamed[end])) || renamed[end] == '_');
                if (!goes_on || *after != '\0') {
                    renamed.replace(at + strlen(before), theirs.size(), OURS);
                }
            }
        }
    }
    return renamed == source ? std::string() : renamed;
}

void chat_template::parse(const llama_model * model, const std::string & chosen) {
    read_choice(chosen);
    if (chosen.empty() && model != nullptr) {
        const char * own = llama_model_chat_template(model, nullptr);
        const char * for_tools = llama_model_chat_template(model, "tool_use");
        check_size(for_tools != nullptr ? for_tools : "");
        check_syntax(own != nullptr ? own : for_tools != nullptr ? for_tools : "");
    }
    templates_ = common_chat_templates_init(model, chosen);
    if (const std::string renamed = rename_fields(common_chat_templates_source(templates_.get(), ""));
        !renamed.empty() && !is_special_case() && common_chat_templates_source(templates_.get(), "tool_use").empty()) {
        templates_ = common_chat_templates_init(model, renamed);
    }
    explicit_ = common_chat_templates_was_explicit(templates_.get());
    special_case_ = !built_in_ && is_special_case();
    if (!built_in_) {
        read_variables(common_chat_templates_source(templates_.get(), ""));
    }
    try {
        end_mark_ = special_case_ ? std::string() : find_end_mark(); // what those readers know can go on behind such a mark
        try_out();
    } catch (const std::exception &) { // what it refuses it will refuse again, when a request can be told
    }
}

std::vector<std::string> chat_template::warnings() const {
    if (!problem_.empty()) {
        return {"the chat template is at fault, so there is no chat with this model: " + problem_};
    }
    if (!explicit_) {
        return {"the file has no chat template: conversations are written as ChatML, which the model may not know"};
    }
    return {};
}

// ---- what the template is like --------------------------------------------------------------------------------------

static common_chat_templates_inputs greeting() {
    common_chat_templates_inputs inputs;
    common_chat_msg message;
    message.role = "user";
    message.content = "Hello";
    inputs.messages = {message};
    inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
    return inputs;
}

static std::optional<std::string> grammar_of(const common_chat_params & params) {
    common_peg_arena parser;
    parser.load(params.parser);
    return grammar_around_content(std::move(parser));
}

void chat_template::try_out() {
    common_chat_templates_inputs inputs = greeting();
    const common_chat_params params = run(inputs);
    if (params.supports_thinking && !params.thinking_end_tags.empty()) {
        thinking_start_ = params.thinking_start_tag;
        thinking_end_ = params.thinking_end_tags.front();
    }
    has_content_place_ = grammar_of(params).has_value();
    const std::string text = "Text of <any> [kind] {at} all.\n";
    parsed_answer parsed;
    plain_ = end_mark_.empty() && !params.supports_thinking && parse_answer(*make_format({params}, inputs, nullptr, nullptr), text, true, parsed) &&
             parsed.content == text;
    native_tools_ = !built_in_ && lists_tools() && calls_have_grammar();
    if (native_tools_ && !shows_calls(1, "")) {
        native_tools_ = writes_calls_ = python_calls_;
    }
    parts_calls_ = native_tools_ && !writes_calls_ && !shows_calls(1, "Of course.");
    parallel_calls_ = !native_tools_ || writes_calls_ || shows_calls(2, "");
}

// In tags, outside of longer words.
static bool mentions(const std::string & source, const std::string & word) {
    const auto is_part = [&](size_t at) { return at < source.size() && (isalnum(static_cast<unsigned char>(source[at])) || source[at] == '_'); };
    for (size_t at = source.find(word); at != std::string::npos; at = source.find(word, at + 1)) {
        const bool alone = !(at > 0 && (is_part(at - 1) || source[at - 1] == '.')) && !is_part(at + word.size());
        const size_t opening = source.rfind('{', at);
        const size_t closing = source.rfind('}', at);
        if (alone && opening != std::string::npos && (closing == std::string::npos || closing < opening)) {
            return true;
        }
    }
    return false;
}

// Variables and fields that OpenAI's dialect has not.
void chat_template::read_variables(const std::string & source) {
    reads_functions_ = mentions(source, FUNCTIONS) && !mentions(source, "tools");
    mentions_think_ = source.find("<think>") != std::string::npos;
}

bool chat_template::lists_tools() const {
    common_chat_templates_inputs inputs = greeting();
    inputs.tools = {{"tool_of_no_use", "", "{}"}};
    inputs.force_pure_content = !special_case_;
    return run(inputs).prompt.find(inputs.tools[0].name) != std::string::npos;
}

bool chat_template::calls_have_grammar() {
    const std::map<std::string, bool> caps = common_chat_templates_get_caps(templates_.get());
    if (!caps.at("supports_tool_calls") && !special_case_) {
        return false;
    }
    common_chat_templates_inputs inputs = greeting();
    inputs.tools = {{"tool", "", R"({"type":"object","properties":{"a":{"type":"object","properties":{"b":{"type":"string"}}}}})"}};
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    const common_chat_params params = run(inputs);
    python_calls_ = are_python_calls(params);
    common_peg_arena parser;
    parser.load(params.parser);
    notation_ = python_calls_ ? call_notation::tagged : notation_of(parser);
    return !params.grammar.empty();
}

// What the template writes behind an answer, if that is no token that ends one: then the model will write it as text, too.
std::string chat_template::find_end_mark() const {
    static constexpr char ANSWER[] = "Nevertheless";
    common_chat_templates_inputs inputs = greeting();
    common_chat_msg answer;
    answer.role = "assistant";
    answer.content = ANSWER;
    inputs.messages.push_back(answer);
    inputs.add_generation_prompt = false;
    inputs.force_pure_content = true;
    const std::string prompt = run(inputs).prompt;
    const size_t at = prompt.rfind(ANSWER);
    const size_t begin = at == std::string::npos ? at : prompt.find_first_not_of(" \t\r\n", at + sizeof ANSWER - 1);
    if (begin == std::string::npos || (prompt[begin] != '<' && prompt[begin] != '[')) {
        return {}; // nothing, or words that an answer could have, too
    }
    const std::string mark = prompt.substr(begin, prompt.find_first_of(" \t\r\n", begin) - begin);
    const std::vector<llama_token> tokens = vocab_.tokenize(mark, false, true);
    return tokens.empty() || llama_vocab_is_control(vocab_.get(), tokens.front()) ? std::string() : mark;
}

// Whether `n` calls of one message are written down. Those that are not could be made only once: the next request brings them
// back.
bool chat_template::shows_calls(size_t n, const char * beside) const {
    common_chat_templates_inputs inputs = greeting();
    common_chat_msg calls;
    calls.role = "assistant";
    calls.content = beside;
    std::vector<common_chat_msg> results;
    for (size_t i = 1; i <= n; i++) {
        const std::string id = "call0000" + std::to_string(i); // nine characters: some templates count them
        const std::string name = "tool_" + id;
        inputs.tools.push_back({name, "", R"({"type":"object","properties":{"word":{"type":"string"}}})"});
        calls.tool_calls.push_back({name, R"({"word":"said_)" + id + "\"}", id});
        common_chat_msg result;
        result.role = "tool";
        result.content = "result";
        result.tool_name = name;
        result.tool_call_id = id;
        results.push_back(result);
    }
    inputs.messages.push_back(calls);
    inputs.messages.insert(inputs.messages.end(), results.begin(), results.end());
    inputs.force_pure_content = !special_case_;
    try {
        const std::string prompt = run(inputs).prompt;
        return std::all_of(calls.tool_calls.begin(), calls.tool_calls.end(),
                           [&](const auto & call) { return prompt.find("said_" + call.id) != std::string::npos; });
    } catch (const std::exception &) {
        return false;
    }
}

bool chat_template::is_special_case() const {
    for (const char * variant : {"", "tool_use"}) {
        const std::string source = common_chat_templates_source(templates_.get(), variant);
        if (source.empty()) {
            continue;
        }
        try {
            const common_chat_template compiled(source, "", "");
            autoparser::generation_params params;
            params.messages = common_json::array({common_json::object({{"role", "user"}, {"content", "Hello"}})});
            params.extra_context = common_json::object();
            params.add_generation_prompt = true;
            if (common_chat_try_specialized_template(compiled, source, params)) {
                return true;
            }
        } catch (const std::exception &) {
            return true; // the way that is right for every template, if not the fastest
        }
    }
    return false;
}

// ---- what a message says is text ------------------------------------------------------------------------------------

chat_template::~chat_template() = default;

std::string chat_template::mark_controls(const std::string & text) const {
    std::string marked;
    size_t copied = 0;
    for (size_t at = 0; at < text.size(); at++) {
        if (!control_starts_[static_cast<unsigned char>(text[at])]) {
            continue;
        }
        for (const std::string & control : vocab_.control_texts()) {
            if (text.compare(at, control.size(), control) == 0) {
                marked.append(text, copied, at - copied);
                marked += LITERAL_BEGIN + control + LITERAL_END;
                at += control.size() - 1;
                copied = at + 1;
                break;
            }
        }
    }
    return copied == 0 ? text : marked.append(text, copied, std::string::npos);
}

void chat_template::mark(std::string & text) const {
    text = mark_controls(without_marks(text, true));
}

void chat_template::mark(common_json & value) const {
    if (value.is_string()) {
        std::string text = value.get<std::string>();
        mark(text);
        value = common_json(text);
    } else if (value.is_array()) {
        for (size_t i = 0; i < value.size(); i++) {
            mark(value.at(i));
        }
    } else if (value.is_object()) {
        common_json marked = common_json::object();
        for (const auto & [key, member] : value.items()) {
            std::string name = key;
            mark(name);
            marked[name] = member;
            mark(marked[name]);
        }
        value = std::move(marked);
    }
}

// JSON as text: as it stands if there is nothing to mark, because templates may show it.
void chat_template::mark_json(std::string & text) const {
    const bool may_hide_some = text.find("\\u") != std::string::npos; // an escape can spell anything
    if (!may_hide_some && without_marks(text, true).size() == text.size() && mark_controls(text).size() == text.size()) {
        return;
    }
    common_json value = common_json::parse_no_throw(text);
    if (value.is_discarded()) {
        return mark(text);
    }
    const std::string before = value.dump();
    mark(value);
    const std::string after = value.dump();
    if (after != before) {
        text = after;
    }
}

void chat_template::mark_all(common_chat_templates_inputs & inputs) const {
    for (common_chat_msg & message : inputs.messages) {
        for (std::string * text : {&message.role, &message.content, &message.reasoning_content, &message.tool_name,
                                   &message.tool_call_id}) {
            mark(*text);
        }
        for (common_chat_msg_content_part & part : message.content_parts) {
            if (!is_media_mark(part)) {
                mark(part.text);
            }
        }
        for (common_chat_tool_call & call : message.tool_calls) {
            mark(call.name);
            mark(call.id);
            mark_json(call.arguments);
        }
    }
    for (common_chat_tool & tool : inputs.tools) {
        mark(tool.description);
        mark_json(tool.parameters);
    }
    for (auto & [name, value] : inputs.chat_template_kwargs) {
        mark_json(value);
    }
}

// ---- applying the template ------------------------------------------------------------------------------------------

common_chat_templates_inputs chat_template::read(const chat_prompt & chat) const {
    if (!templates_) {
        throw invalid_request("messages", "the model's chat template is at fault, so it cannot chat: " + problem_);
    }
    common_chat_templates_inputs inputs;
    try {
        if (chat.media.empty()) {
            inputs.messages = common_chat_msgs_parse_oaicompat(chat.messages);
        } else {
            common_json marked = chat.messages;
            mark_media(marked);
            inputs.messages = common_chat_msgs_parse_oaicompat(marked);
        }
    } catch (const std::exception & e) {
        throw invalid_request("messages", e.what());
    }
    for (common_chat_msg & message : inputs.messages) {
        for (common_chat_tool_call & call : message.tool_calls) {
            call.arguments = mend_arguments(call.arguments);
        }
    }
    name_results(inputs.messages);
    if (parts_calls_) {
        part_calls_from_text(inputs.messages);
    }
    if (chat.may_call_tools()) { // a model that must not call a tool does not hear of any
        inputs.tools = common_chat_tools_parse_oaicompat(chat.tools);
        inputs.tool_choice = chat.choice == tool_choice::required ? COMMON_CHAT_TOOL_CHOICE_REQUIRED
                                                                  : COMMON_CHAT_TOOL_CHOICE_AUTO;
    }
    inputs.parallel_tool_calls = chat.parallel_tool_calls.value_or(parallel_calls_);
    inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
    if (!built_in_) { // of all turns, which also spares them from being computed again
        inputs.chat_template_kwargs[KEEP_THOUGHTS] = "true";
    }
    inputs.enable_thinking = !thinking_start_.empty(); // what nobody could tell from the answer is not asked for unasked
    for (const auto & [name, value] : chat.template_kwargs.items()) {
        inputs.chat_template_kwargs[name] = value.dump();
        if (name == "enable_thinking" && value.is_boolean()) {
            inputs.enable_thinking = value.get<bool>();
        }
    }
    return inputs;
}

// The template's own words, without where in it they are.
static std::string refusal(const std::exception & e) {
    static constexpr char ERROR[] = "\nError: ";
    static constexpr char RAISED[] = "Jinja Exception: ";
    std::string words = e.what();
    const size_t at = words.find(ERROR);
    words.erase(0, at == std::string::npos ? 0 : at + sizeof ERROR - 1);
    if (words.compare(0, sizeof RAISED - 1, RAISED) == 0) {
        words.erase(0, sizeof RAISED - 1);
    }
    return told(words) + " (the model's chat template refuses this conversation)";
}

// The template's own work. Throws what it throws.
common_chat_params chat_template::run(const common_chat_templates_inputs & inputs) const {
    if (reads_functions_ && !inputs.tools.empty()) {
        common_json functions = common_json::array();
        for (const common_json & tool : common_chat_tools_to_json_oaicompat(inputs.tools)) {
            functions.push_back(tool.at("function"));
        }
        common_chat_templates_inputs told = inputs;
        told.chat_template_kwargs[FUNCTIONS] = common_json::make(functions.dump(4)).dump();
        return common_chat_templates_apply(templates_.get(), told);
    }
    if (!built_in_) {
        return common_chat_templates_apply(templates_.get(), inputs);
    }
    common_chat_templates_inputs written = inputs;
    written.use_jinja = false;
    written.json_schema.clear(); // its grammar is made elsewhere
    const std::string all = common_chat_templates_apply(templates_.get(), written).prompt;
    written.add_generation_prompt = false;
    const std::string before = common_chat_templates_apply(templates_.get(), written).prompt;
    common_chat_params params;
    params.prompt = inputs.add_generation_prompt ? all : before;
    params.format = COMMON_CHAT_FORMAT_PEG_NATIVE;
    if (inputs.add_generation_prompt && all.compare(0, before.size(), before) == 0) {
        params.generation_prompt = all.substr(before.size());
    }
    const common_peg_arena parser = build_chat_peg_parser(
        [&](common_chat_peg_builder & p) { return p.prefix(params.generation_prompt) + p.content(p.rest()); });
    params.parser = parser.save();
    return params;
}

static budget_limits limits_for(const common_chat_templates_inputs & inputs) {
    size_t n_text = 0;
    size_t n_json = inputs.json_schema.size();
    for (const common_chat_msg & message : inputs.messages) {
        n_text += message.content.size() + message.reasoning_content.size();
        for (const common_chat_msg_content_part & part : message.content_parts) {
            n_text += part.text.size();
        }
        for (const common_chat_tool_call & call : message.tool_calls) {
            n_json += call.arguments.size();
        }
    }
    for (const common_chat_tool & tool : inputs.tools) {
        n_text += tool.description.size();
        n_json += tool.parameters.size();
    }
    for (const auto & [name, value] : inputs.chat_template_kwargs) {
        n_json += value.size();
    }
    budget_limits limits = TEMPLATE_LIMITS;
    limits.bytes += n_text * BYTES_PER_TEXT_BYTE + n_json * BYTES_PER_JSON_BYTE + inputs.messages.size() * BYTES_PER_MESSAGE;
    return limits;
}

// The conversation as it was given, if the template takes that and leaves nothing of it out, else in the first form of which
// that is true; `inputs` are left in the form that was taken. Throws what the template throws of what was given.
common_chat_params chat_template::run_mended(common_chat_templates_inputs & inputs) const {
    common_chat_templates_inputs given = inputs;
    std::optional<common_chat_params> params; // of the first form that is taken
    std::exception_ptr refused;
    std::string words; // of the last refusal
    const auto takes_all = [&](const common_chat_templates_inputs & form) {
        try {
            common_chat_params taken = run(form);
            const bool is_whole = !is_some_lost(form.messages, taken.prompt);
            if (is_whole || !params) {
                params = std::move(taken);
                inputs.messages = form.messages;
                inputs.tools = form.tools;
            }
            return is_whole;
        } catch (const std::exception & e) {
            refused = refused ? refused : std::current_exception();
            words = e.what();
            return false;
        }
    };
    if (takes_all(given)) {
        return std::move(*params);
    }
    if (!params && make_plain(given.tools)) {
        const std::string words_before = words;
        if (takes_all(given)) {
            return std::move(*params);
        }
        given.tools = words == words_before ? inputs.tools : given.tools;
    }
    // What gets the template no further is taken back; only if that leads nowhere, everything is done at once.
    for (const bool keep_all : {false, true}) {
        common_chat_templates_inputs form = given;
        for (const mending & mend : mendings()) {
            common_chat_templates_inputs before = form;
            const std::string words_before = words;
            if ((params && !mend.brings_back) || !mend.apply(form.messages)) {
                continue;
            }
            if (takes_all(form)) {
                return std::move(*params);
            }
            if (!keep_all && words == words_before) {
                form = std::move(before);
            }
        }
    }
    if (!params) {
        std::rethrow_exception(refused);
    }
    return std::move(*params);
}

// `pure`: the prompt alone, no analysis of how the answer will be written.
common_chat_params chat_template::apply(common_chat_templates_inputs & inputs, bool pure) const {
    inputs.force_pure_content = pure;
    try {
        const budget cost(limits_for(inputs));
        return run_mended(inputs);
    } catch (const over_budget & over) {
        give_memory_back();
        throw invalid_request("messages", "the model's chat template is at fault: for this conversation " + told(over));
    } catch (const std::exception & e) {
        if (pure || (inputs.tools.empty() && inputs.json_schema.empty())) {
            throw invalid_request("messages", refusal(e));
        }
        apply(inputs, true); // throws if it is the conversation's fault
        throw invalid_request(inputs.tools.empty() ? "response_format" : "tools", e.what());
    }
}

// Looked for from the end, message by message, so that nothing in the instructions or in a later message passes for it. A
// template that writes a text otherwise, or leaves one out, ends the search.
static size_t find_first_user(const std::string & prompt, const std::vector<common_chat_msg> & messages) {
    size_t at = prompt.size();
    const auto find = [&](const std::string & text) {
        const std::string_view beginning = beginning_of(text);
        if (!beginning.empty()) {
            at = at < beginning.size() ? std::string::npos : std::string_view(prompt).rfind(beginning, at - beginning.size());
        }
        return at != std::string::npos;
    };
    const auto first = std::find_if(messages.begin(), messages.end(), [](const auto & m) { return m.role == "user"; });
    for (size_t i = messages.size(); i > size_t(first - messages.begin()); i--) {
        const common_chat_msg & message = messages[i - 1];
        for (auto part = message.content_parts.rbegin(); part != message.content_parts.rend(); ++part) {
            if (!find(part->text)) {
                return std::string::npos;
            }
        }
        if (!find(message.content)) {
            return std::string::npos;
        }
    }
    return at < prompt.size() ? at : std::string::npos;
}

// The prompt with its literals marked.
chat_template::written chat_template::write_prompt(common_chat_templates_inputs inputs, bool pure, const common_chat_msg * last) const {
    mark_all(inputs);
    if (!native_tools_) {
        spell_tools(inputs);
    } else if (writes_calls_) {
        write_python_calls(inputs.messages);
    }
    std::vector<std::string> media;
    for (const common_chat_msg & message : inputs.messages) {
        for (const common_chat_msg_content_part & part : message.content_parts) {
            if (is_media_mark(part)) {
                media.push_back(part.text);
            }
        }
    }
    common_chat_params params = apply(inputs, pure);
    for (const std::string & mark : media) {
        if (params.prompt.find(mark) == std::string::npos) {
            throw invalid_request("messages", "the model's chat template leaves out a picture or a sound of this conversation");
        }
    }
    const size_t said_from = find_first_user(params.prompt, inputs.messages);
    const std::string begun = last != nullptr ? begin_answer(*last, params.generation_prompt) : "";
    params.prompt += begun;
    return {std::move(params), said_from, without_marks(begun)};
}

// What comes behind `opening`, which is all that the template writes of an answer, so that the answer goes on with `last`.
// Literals are marked.
std::string chat_template::begin_answer(common_chat_msg last, const std::string & opening) const {
    mark(last.reasoning_content);
    std::string content = last.content_parts.empty() ? last.content : last.render_content("\n");
    mark(content);
    const size_t start = thinking_start_.empty() ? std::string::npos : opening.rfind(thinking_start_);
    const bool open = start != std::string::npos && opening.find(thinking_end_, start + thinking_start_.size()) == std::string::npos;
    std::string begun;
    if (!last.reasoning_content.empty() && !thinking_start_.empty() && (open || start == std::string::npos)) {
        begun = (open ? "" : thinking_start_ + "\n") + last.reasoning_content;
    }
    if (!content.empty() && (open || !begun.empty())) {
        begun += (begun.empty() ? "" : "\n") + thinking_end_ + "\n\n";
    }
    return begun + content;
}

// Whether the conversation ends with an answer that is to be gone on with.
static bool goes_on(const chat_prompt & chat, const common_chat_templates_inputs & inputs, bool is_ruled) {
    const common_chat_msg & last = inputs.messages.back();
    const bool is_answer = last.role == "assistant" && last.tool_calls.empty();
    if (chat.continues && *chat.continues && !is_answer) {
        throw invalid_request("continue_final_message", "the conversation does not end with an answer that could be gone on with");
    }
    return chat.continues.value_or(is_answer && !is_ruled && inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_REQUIRED);
}

// The last message, taken out of `inputs`, if it is to be gone on with.
static std::optional<common_chat_msg> take_last(const chat_prompt & chat, common_chat_templates_inputs & inputs, bool is_ruled) {
    if (!goes_on(chat, inputs, is_ruled)) {
        return std::nullopt;
    }
    common_chat_msg last = std::move(inputs.messages.back());
    inputs.messages.pop_back();
    return last;
}

chat_template::asked chat_template::read(const chat_prompt & chat, const grammar_spec * grammar) const {
    asked ask{read(chat)};
    ask.last = take_last(chat, ask.inputs, grammar != nullptr);
    const bool is_schema = grammar != nullptr && grammar->is_schema();
    const bool begins_in_a_schema = is_schema && ask.last; // which has to be told what there is
    ask.is_text = plain_ && ask.inputs.tools.empty() && !begins_in_a_schema;
    if (is_schema && !ask.is_text) {
        read_schema(grammar->text); // for its guards
        ask.inputs.json_schema = grammar->text;
    } else if (grammar != nullptr && !is_schema) {
        ask.is_text = thinking_end_.empty() || !has_content_place_; // then it rules all that is said
        ask.rule = ask.is_text ? nullptr : grammar;
    }
    return ask;
}

// As what is written of the tools goes: all that is said of them, none of which has to be read for a parser of answers.
static common_chat_templates_inputs prompt_inputs(common_chat_templates_inputs inputs, bool pure) {
    if (!pure && !inputs.tools.empty()) {
        inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
    }
    return inputs;
}

std::string chat_template::write_marked(const chat_prompt & chat, const grammar_spec * grammar) const {
    asked ask = read(chat, grammar);
    const bool pure = ask.is_text || !special_case_;
    return write_prompt(prompt_inputs(ask.inputs, pure), pure, ask.last ? &*ask.last : nullptr).params.prompt;
}

std::string chat_template::render(const chat_prompt & chat, const grammar_spec * grammar) const {
    return with_readable_media(without_marks(write_marked(chat, grammar)));
}

counted_prompt chat_template::count(const chat_prompt & chat, const grammar_spec * grammar, size_t limit) const {
    if (chat.messages.size() >= std::max(limit, COUNTED_MESSAGES)) {
        throw context_overflow(chat.messages.size() + 1, limit);
    }
    const std::string prompt = write_marked(chat, grammar);
    try {
        return {with_readable_media(without_marks(prompt)), tokenize(prompt, chat.media, std::max(limit, COUNTED_TOKENS)).tokens.size()};
    } catch (const context_overflow & e) {
        throw context_overflow(e.needed, limit);
    }
}

static void begin_with(llama_token bos, media_prompt & prompt) {
    prompt.tokens.insert(prompt.tokens.begin(), bos);
    for (media_span & span : prompt.spans) {
        span.begin++;
    }
}

// The tokenizer reads the texts between the pictures one by one, and so it does in llama.cpp's own programs.
media_prompt chat_template::tokenize_media(const std::string & prompt, const media_files & files, size_t limit) const {
    vocab_.refuse_overlong(without_marks(prompt), limit, 1);
    std::vector<prompt_fragment> fragments;
    std::vector<bool> shown(files.size());
    const auto add_text = [&](size_t begin, size_t end) {
        while (begin < end) {
            const bool literal = prompt.compare(begin, LITERAL_BEGIN.size(), LITERAL_BEGIN) == 0;
            const size_t next = std::min(prompt.find(literal ? LITERAL_END : LITERAL_BEGIN, begin + (literal ? LITERAL_BEGIN.size() : 0)), end);
            std::string text = without_marks(prompt.substr(begin, next - begin));
            if (!text.empty()) {
                fragments.push_back({std::move(text), !literal});
            }
            begin = next + (literal && next < end ? LITERAL_END.size() : 0);
        }
    };
    size_t at = 0;
    for (shown_media m = find_media(prompt, 0); m.begin < prompt.size(); m = find_media(prompt, at)) {
        if (m.index >= files.size() || shown[m.index]) {
            throw invalid_request("messages", "the model's chat template writes a picture or a sound twice");
        }
        add_text(at, m.begin);
        fragments.push_back({"", true, m.index});
        shown[m.index] = true;
        at = m.end;
    }
    add_text(at, prompt.size());
    media_prompt all = sight_->tokenize(fragments, files);
    const llama_token bos = llama_vocab_bos(vocab_.get());
    if (llama_vocab_get_add_bos(vocab_.get()) && (all.tokens.empty() || all.tokens.front() != bos)) {
        begin_with(bos, all);
    }
    if (all.tokens.size() + 1 > limit) {
        throw context_overflow(all.tokens.size() + 1, limit);
    }
    return all;
}

media_prompt chat_template::tokenize(const std::string & prompt, const media_files & files, size_t limit) const {
    if (find_media(prompt, 0).begin < prompt.size()) {
        return tokenize_media(prompt, files, limit);
    }
    if (prompt.find(LITERAL_BEGIN) == std::string::npos) {
        return {vocab_.tokenize_within(prompt, limit, 1), {}, {}}; // and one to answer with
    }
    vocab_.tokenize_within(without_marks(prompt), limit, 1); // of about the same size
    std::vector<llama_token> tokens;
    const auto append = [&](const std::string & text, bool parse_special) {
        const std::vector<llama_token> more = vocab_.tokenize(without_marks(text), false, parse_special);
        tokens.insert(tokens.end(), more.begin(), more.end());
    };
    size_t at = 0;
    while (at < prompt.size()) {
        const size_t begin = std::min(prompt.find(LITERAL_BEGIN, at), prompt.size());
        append(prompt.substr(at, begin - at), true);
        const size_t end = std::min(prompt.find(LITERAL_END, begin), prompt.size());
        append(prompt.substr(begin, end - begin), false);
        at = end;
    }
    const llama_token bos = llama_vocab_bos(vocab_.get());
    if (llama_vocab_get_add_bos(vocab_.get()) && (tokens.empty() || tokens.front() != bos)) {
        tokens.insert(tokens.begin(), bos);
    }
    return {std::move(tokens), {}, {}};
}

size_t chat_template::tokens_before(const std::vector<llama_token> & tokens, size_t n_bytes_behind) const {
    size_t before = tokens.size();
    for (size_t n = 0; n < n_bytes_behind && before > 0 && !is_media(tokens[before - 1]); before--) {
        n += vocab_.special_piece(tokens[before - 1]).size();
    }
    return before;
}

chat_turn chat_template::turn_of(const written & rendered, const media_files & files, size_t limit) const {
    const std::string & prompt = rendered.params.prompt;
    media_prompt read = tokenize(prompt, files, limit);
    chat_turn turn = {std::move(read.tokens)};
    turn.spans = std::move(read.spans);
    turn.parts = std::move(read.parts);
    turn.n_repeated = tokens_before(turn.tokens, rendered.params.generation_prompt.size() + rendered.begun.size());
    if (!turn.spans.empty()) { // where what surrounds pictures is no text of the prompt's
        const size_t first = find_media(prompt, 0).begin;
        if (rendered.said_from <= first) {
            const std::vector<llama_token> head = vocab_.tokenize(without_marks(prompt.substr(0, rendered.said_from)), true, true);
            const auto parted = std::mismatch(head.begin(), head.end(), turn.tokens.begin(), turn.tokens.end());
            const size_t before = size_t(parted.first - head.begin());
            turn.n_preamble = before - std::min<size_t>(before, 1);
        }
    } else if (rendered.said_from < prompt.size()) {
        const size_t before = tokens_before(turn.tokens, without_marks(prompt.substr(rendered.said_from)).size());
        turn.n_preamble = before - std::min<size_t>(before, 1); // the last one may be another ahead of another text
    }
    return turn;
}

// ---- how the answer is written --------------------------------------------------------------------------------------

static common_chat_templates_inputs without_tools(common_chat_templates_inputs inputs) {
    inputs.tools.clear();
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_AUTO;
    return inputs;
}

common_chat_params chat_template::describe_calls(common_chat_templates_inputs inputs) const {
    inputs.json_schema.clear();
    if (native_tools_) {
        const common_chat_params native = apply(inputs, false);
        return python_calls_ ? python_call_format(inputs, native, mentions_think_) : native;
    }
    common_chat_templates_inputs spelled = inputs;
    spell_tools(spelled);
    const common_chat_params plain = apply(spelled, false);
    try {
        return tool_request_format(inputs, plain);
    } catch (const std::exception & e) {
        throw invalid_request("tools", e.what());
    }
}

// With tools and a schema there are two ways to answer: a call, or content that obeys the schema. llama.cpp's readers know
// one of them at a time.
std::vector<common_chat_params> chat_template::describe(const common_chat_templates_inputs & inputs, const grammar_spec * rule) const {
    if (rule != nullptr) {
        common_chat_templates_inputs plain = inputs;
        common_chat_params params = apply(plain, false);
        const std::optional<std::string> around = grammar_of(params);
        if (!around) {
            throw invalid_request("grammar", "the chat template has answers of this conversation begin in a way that leaves no place for it");
        }
        params.grammar = *around;
        return {params};
    }
    const bool required = inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    if (!inputs.tools.empty() && (inputs.json_schema.empty() || required)) {
        return {describe_calls(inputs)};
    }
    common_chat_templates_inputs answer = without_tools(inputs);
    if (!inputs.json_schema.empty()) {
        answer.json_schema = common_json::object({{"const", leaf_mark(0)}}).dump(); // the place of it in the grammar is all that is asked
    }
    if (!native_tools_) {
        spell_tools(answer);
    }
    common_chat_params written = apply(answer, false);
    if (!inputs.json_schema.empty() && written.grammar.empty()) {
        written = json_format(written, answer.json_schema);
    }
    if (inputs.tools.empty()) {
        return {written};
    }
    common_chat_templates_inputs call = inputs;
    call.tool_choice = COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    return {describe_calls(std::move(call)), std::move(written)};
}

std::shared_ptr<const answer_format> chat_template::make_format(const std::vector<common_chat_params> & variants,
                                                           const common_chat_templates_inputs & inputs, const known_tools * known,
                                                           const grammar_spec * rule) const {
    auto format = std::make_shared<answer_format>();
    const common_chat_params & first = variants.front();
    format->opening = first.generation_prompt;
    for (const common_chat_params & variant : variants) {
        format->parsers.push_back({first.format, {}});
        format->parsers.back().tree.load(variant.parser);
    }
    for (const common_chat_tool & tool : inputs.tools) {
        format->tools.push_back(tool.name);
    }
    format->content_is_json = !inputs.json_schema.empty();
    format->one_call = !inputs.parallel_tool_calls; // not every grammar of llama.cpp's sees to it
    format->must_call = inputs.tool_choice == COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    std::vector<grammar_leaf> leaves;
    if (!inputs.json_schema.empty()) {
        leaves.push_back(read_schema(inputs.json_schema));
    }
    if (!inputs.tools.empty()) {
        if (!first.grammar_lazy) {
            leave_calls_alone(format->parsers.front().tree);
        }
        format->grammar_lazy = first.grammar_lazy;
        format->triggers = first.grammar_triggers;
        if (!first.grammar.empty()) {
            call_grammar calls = make_call_grammar(format->parsers.front().tree, first.grammar_lazy, known->schemas.rules);
            format->compiled = compile_grammar(vocab_, calls.gbnf, "tools", calls.leaves);
            format->loosened = std::move(calls.loosened);
        }
        if (format->compiled && variants.size() == 2) {
            format->compiled = either(*format->compiled, *compile_grammar(vocab_, variants[1].grammar, "response_format", leaves));
        }
    } else if (!inputs.json_schema.empty() && !first.grammar.empty()) {
        format->compiled = compile_grammar(vocab_, first.grammar, "response_format", leaves);
    } else if (rule != nullptr) {
        const grammar_ptr around = compile_grammar(vocab_, first.grammar, "grammar", {read_schema("true")});
        format->compiled = with_leaf(*around, *compile_grammar(vocab_, *rule));
    }
    format->thinking_start = first.thinking_start_tag;
    format->thinking_ends = first.thinking_end_tags;
    format->stops = first.additional_stops;
    if (!end_mark_.empty()) {
        format->stops.push_back(end_mark_);
    }
    derive(*format, vocab_);
    return format;
}

static std::string spelled(const grammar_spec * rule) {
    return rule == nullptr ? "" : std::to_string(int(rule->kind)) + rule->text;
}

static std::string key_of(const common_chat_templates_inputs & inputs, const std::string & opening, schema_detail detail, const grammar_spec * rule) {
    common_json options = common_json::array();
    for (const auto & [name, value] : inputs.chat_template_kwargs) {
        options.push_back(name);
        options.push_back(value);
    }
    return common_json::array({opening, common_chat_tools_to_json_oaicompat(inputs.tools), int(detail), int(inputs.tool_choice),
                               inputs.parallel_tool_calls, inputs.json_schema, options, spelled(rule)})
        .dump();
}

static std::string key_of(const std::vector<common_chat_params> & variants, const common_chat_templates_inputs & inputs, schema_detail detail,
                          const grammar_spec * rule) {
    common_json texts =
        common_json::array({common_chat_tools_to_json_oaicompat(inputs.tools), int(detail), inputs.parallel_tool_calls, inputs.json_schema, spelled(rule)});
    for (const common_chat_params & variant : variants) {
        for (const std::string & text : {variant.parser, variant.generation_prompt}) {
            texts.push_back(text);
        }
    }
    return texts.dump();
}

// The format of `key`; made of what `variants` says, if no request before had the same.
std::shared_ptr<const answer_format> chat_template::recall_or_make(std::string key, const variants_fn & variants,
                                                              const common_chat_templates_inputs & inputs, const known_tools * known,
                                                              const grammar_spec * rule) const {
    const auto found = std::find_if(formats_.begin(), formats_.end(), [&](const auto & f) { return f.key == key; });
    if (found != formats_.end()) {
        formats_.splice(formats_.begin(), formats_, found);
        return found->format;
    }
    const std::vector<common_chat_params> made = variants();
    std::shared_ptr<const answer_format> format = make_format(made, inputs, known, rule);
    size_t bytes = key.size() + (format->compiled ? format->compiled->n_bytes() : 0);
    for (const common_chat_params & variant : made) {
        bytes += PARSER_SIZE * variant.parser.size();
    }
    formats_.push_front({std::move(key), bytes, format});
    size_t total = 0;
    for (auto it = formats_.begin(); it != formats_.end();) {
        total += it->bytes;
        it = total > CACHED_BYTES ? formats_.erase(it) : std::next(it);
    }
    return format;
}

chat_turn chat_template::prepare(const chat_prompt & chat, const grammar_spec * grammar, size_t limit) const {
    if (chat.messages.size() >= limit) { // each is a token at least; rendering them all could take seconds
        throw context_overflow(chat.messages.size() + 1, limit);
    }
    asked ask = read(chat, grammar);
    common_chat_templates_inputs & inputs = ask.inputs;
    const common_chat_msg * last = ask.last ? &*ask.last : nullptr;
    if (ask.is_text) {
        return turn_of(write_prompt(std::move(inputs), true, last), chat.media, limit);
    }
    if (inputs.tools.empty()) {
        return answer_turn(inputs, nullptr, ask.rule, last, chat.media, limit);
    }
    // What a tool's schema says is never why a conversation is not answered.
    known_tools & known = read_once(inputs);
    static constexpr std::pair<schema_detail, schema_detail> TRIED[] = {{schema_detail::nodes, schema_detail::nodes},
                                                                        {schema_detail::members, schema_detail::nodes},
                                                                        {schema_detail::members, schema_detail::members},
                                                                        {schema_detail::none, schema_detail::none}};
    std::optional<known_tools> before;
    std::optional<invalid_request> first;
    for (const auto & [shown, detail] : TRIED) {
        if (shown < known.shown || detail < known.detail) {
            continue;
        }
        if (shown > known.shown || detail > known.detail) {
            before = before ? before : known;
            if (detail > known.detail) {
                known.schemas = read_tools(inputs.tools, detail);
            }
            known.shown = shown;
            known.detail = detail;
        }
        try {
            common_chat_templates_inputs told = inputs;
            told.tools = simplify_tools(inputs.tools, shown);
            chat_turn turn = answer_turn(told, &known, nullptr, last, chat.media, limit);
            if (!std::exchange(known.told, true)) {
                turn.loosened = known.schemas.loosened;
                for (const std::string & name : turn.format->loosened) {
                    if (std::find(turn.loosened.begin(), turn.loosened.end(), name) == turn.loosened.end()) {
                        turn.loosened.push_back(name);
                    }
                }
            }
            return turn;
        } catch (const invalid_request & e) {
            first = first ? first : e;
        }
    }
    if (before) { // it was not the schemas
        known = *before;
    }
    throw *first;
}

// What the schemas of the tools of `inputs` say.
chat_template::known_tools & chat_template::read_once(const common_chat_templates_inputs & inputs) const {
    std::string key = common_chat_tools_to_json_oaicompat(inputs.tools).dump();
    const auto found = std::find_if(tools_.begin(), tools_.end(), [&](const known_tools & t) { return t.key == key; });
    if (found != tools_.end()) {
        tools_.splice(tools_.begin(), tools_, found);
    } else {
        tools_.push_front({std::move(key), schema_detail::nodes, schema_detail::nodes, read_tools(inputs.tools, schema_detail::nodes)});
        if (tools_.size() > KNOWN_TOOLS) {
            tools_.pop_back();
        }
    }
    return tools_.front();
}

// The format of an answer that has begun.
static std::shared_ptr<const answer_format> begun_format(const std::shared_ptr<const answer_format> & format,
                                                         const std::string & begun, const common_chat_msg & last) {
    auto own = std::make_shared<answer_format>(*format);
    own->opening += begun;
    own->begun_content = last.content_parts.empty() ? last.content : last.render_content("\n");
    if (begun.size() > own->begun_content.size() && !last.reasoning_content.empty()) {
        own->begun_reasoning = last.reasoning_content + (own->begun_content.empty() ? "" : "\n");
    }
    return own;
}

// The prompt says what `inputs` do; who reads the answer is told of the tools (null: there are none) what it must know.
chat_turn chat_template::answer_turn(const common_chat_templates_inputs & inputs, const known_tools * known, const grammar_spec * rule,
                                     const common_chat_msg * last, const media_files & files, size_t limit) const {
    const bool pure = !special_case_;
    const written rendered = write_prompt(prompt_inputs(inputs, pure), pure, last);
    chat_turn turn = turn_of(rendered, files, limit); // first: it may be too long
    const schema_detail detail = known == nullptr ? schema_detail::none : known->detail;
    const auto described = [&] {
        if (known == nullptr) {
            return describe(inputs, rule);
        }
        common_chat_templates_inputs outlined = inputs;
        const tool_outlines outlines = outline_tools(inputs.tools, known->schemas, native_tools_ ? notation_ : call_notation::json);
        outlined.tools = outlines.tools;
        std::vector<common_chat_params> variants = describe(outlined, nullptr);
        outlines.restore_names(variants.front());
        return variants;
    };
    if (special_case_) { // its prompt says how the answer begins
        const std::vector<common_chat_params> variants = described();
        turn.format = recall_or_make(key_of(variants, inputs, detail, rule), [&] { return variants; }, inputs, known, rule);
    } else {
        turn.format = recall_or_make(key_of(inputs, rendered.params.generation_prompt, detail, rule), described, inputs, known, rule);
    }
    if (last != nullptr) {
        turn.format = begun_format(turn.format, rendered.begun, *last);
    }
    return turn;
}

}  // namespace lm
