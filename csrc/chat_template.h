// Conversations to prompts, through the model's own chat template, and how the answers to them are to be read
// (llama.cpp's common/chat.h does both). What a message or a tool says is text: a control token of the vocabulary that is
// written there stays text.
#pragma once

#include "answer_format.h"
#include "protocol.h"
#include "text.h"
#include "tower.h"
#include "tool_schemas.h"

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lm {

// One conversation, ready to be answered.
struct chat_turn {
    std::vector<llama_token> tokens;
    std::shared_ptr<const answer_format> format = nullptr; // null: the answer is plain text
    size_t n_repeated = 0; // tokens ahead of the answer's opening, which later turns will repeat; 0: not known
    std::vector<std::string> loosened = {}; // tools whose schemas are not obeyed to the letter, by name; told once
    size_t n_preamble = 0; // tokens ahead of what the first user says, which other conversations may have, too; 0: not known
    media_spans spans = {}; // among the tokens
    std::vector<media_part> parts = {};
};

struct counted_prompt {
    std::string text;
    size_t n_tokens;
};

class chat_template {
  public:
    // Compiles the template of `model` and tries it out. What is wrong with one that does not compile, or takes more than any
    // template should, is kept as `problem()`: then there is no chat.
    // `chosen` stands in for the file's own one: a template, or the name of one that llama.cpp knows. Throws invalid_request
    // for one that is neither.
    chat_template(const llama_model * model, const vocabulary & vocab, const std::string & chosen);
    // Of a template without a model.
    chat_template(const std::string & source, const vocabulary & vocab);
    ~chat_template();

    // From now on conversations may hold what this can take. It outlives the template.
    void see_with(const tower * sight) { sight_ = sight; }

    bool has_template() const { return explicit_; } // false: the model brings none, ChatML stands in
    bool knows_tools() const { return native_tools_; }
    const std::string & problem() const { return problem_; }
    // What whoever loads the model should know.
    std::vector<std::string> warnings() const;

    // The prompt that `prepare` makes, as text. `grammar` (null: none) is the client's: what rules the answer may be told
    // to the model. Both throw invalid_request with the template's word for what is wrong.
    std::string render(const chat_prompt & chat, const grammar_spec * grammar = nullptr) const;
    // The same with its number of tokens, which may be more than `limit`: throws context_overflow where it is many more.
    counted_prompt count(const chat_prompt & chat, const grammar_spec * grammar, size_t limit) const;
    // Throws context_overflow unless the prompt has fewer than `limit` tokens. For one thread at a time.
    chat_turn prepare(const chat_prompt & chat, const grammar_spec * grammar, size_t limit) const;

  private:
    using variants_fn = std::function<std::vector<common_chat_params>()>;
    struct cached_format {
        std::string key;
        size_t bytes;
        std::shared_ptr<const answer_format> format;
    };

    // What is known of tools, and how much of their schemas the template takes and a grammar could be made of.
    struct known_tools {
        std::string key;
        schema_detail shown;
        schema_detail detail;
        tool_schemas schemas;
        bool told = false; // of those loosened
    };

    void compile(const llama_model * model, const std::string & chosen);
    void read_choice(const std::string & chosen);
    void parse(const llama_model * model, const std::string & chosen);
    std::string find_end_mark() const;
    void try_out();
    void read_variables(const std::string & source);
    bool is_special_case() const;
    bool lists_tools() const;
    bool calls_have_grammar();
    bool shows_calls(size_t n, const char * beside) const;

    // A conversation as the templates take it.
    struct asked {
        common_chat_templates_inputs inputs;
        std::optional<common_chat_msg> last = std::nullopt; // an answer that is gone on with
        bool is_text = false; // the answer is read as it stands
        const grammar_spec * rule = nullptr; // of the answer's content, borrowed; where that is a schema, it is in `inputs`
    };
    common_chat_templates_inputs read(const chat_prompt & chat) const;
    asked read(const chat_prompt & chat, const grammar_spec * grammar) const;
    common_chat_params run(const common_chat_templates_inputs & inputs) const;
    common_chat_params run_mended(common_chat_templates_inputs & inputs) const;
    common_chat_params apply(common_chat_templates_inputs & inputs, bool pure) const;
    struct written {
        common_chat_params params;
        size_t said_from; // where in its prompt the first user's text begins; npos: not known
        std::string begun; // of the answer, behind what the template writes of it
    };
    // `last` (null: none) is an answer that is gone on with.
    written write_prompt(common_chat_templates_inputs inputs, bool pure, const common_chat_msg * last) const;
    std::string begin_answer(common_chat_msg last, const std::string & opening) const;
    std::string write_marked(const chat_prompt & chat, const grammar_spec * grammar) const;
    media_prompt tokenize(const std::string & prompt, const media_files & files, size_t limit) const;
    media_prompt tokenize_media(const std::string & prompt, const media_files & files, size_t limit) const;
    known_tools & read_once(const common_chat_templates_inputs & inputs) const;
    chat_turn answer_turn(const common_chat_templates_inputs & inputs, const known_tools * known, const grammar_spec * rule,
                          const common_chat_msg * last, const media_files & files, size_t limit) const;
    chat_turn turn_of(const written & rendered, const media_files & files, size_t limit) const;
    size_t tokens_before(const std::vector<llama_token> & tokens, size_t n_bytes_behind) const;

    std::vector<common_chat_params> describe(const common_chat_templates_inputs & inputs, const grammar_spec * rule) const;
    common_chat_params describe_calls(common_chat_templates_inputs inputs) const;
    std::shared_ptr<const answer_format> make_format(const std::vector<common_chat_params> & variants,
                                                     const common_chat_templates_inputs & inputs, const known_tools * known,
                                                     const grammar_spec * rule) const;
    std::shared_ptr<const answer_format> recall_or_make(std::string key, const variants_fn & variants,
                                                        const common_chat_templates_inputs & inputs, const known_tools * known,
                                                     const grammar_spec * rule) const;

    std::string mark_controls(const std::string & text) const;
    void mark(std::string & text) const;
    void mark(common_json & value) const;
    void mark_json(std::string & text) const;
    void mark_all(common_chat_templates_inputs & inputs) const;

    const vocabulary & vocab_; // borrowed from the model
    const tower * sight_ = nullptr; // likewise
    std::shared_ptr<common_chat_templates> templates_;
    bool explicit_ = false;
    bool plain_ = true;         // an answer without tools is its text, as it stands
    bool native_tools_ = false; // the template lists tools and their calls can be read
    bool reads_functions_ = false; // it lists them from a text in a variable of its own
    bool writes_calls_ = false; // it does not show past calls, which are written into what was said
    bool parts_calls_ = false; // it shows no calls of a message that says something besides
    bool python_calls_ = false; // calls are Python's
    call_notation notation_ = call_notation::json; // of calls
    bool mentions_think_ = false; // "<think>"
    bool parallel_calls_ = true; // a message with two calls can be rendered
    std::string thinking_start_, thinking_end_; // empty: answers have no reasoning
    bool has_content_place_ = false; // what rules an answer can stand in the place of its content, behind its reasoning
    bool special_case_ = false; // llama.cpp has a reader for this very template, which renders it in a way of its own
    bool built_in_ = false;     // a function of llama.cpp's writes the prompts
    std::string end_mark_;      // a text that ends the answer; empty: a token does
    std::string problem_;
    bool control_starts_[256] = {};
    mutable std::list<cached_format> formats_; // the last used first
    mutable std::list<known_tools> tools_;     // likewise
};

}  // namespace lm
