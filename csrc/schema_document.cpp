#include "schema_document.h"

namespace lm {

// RFC 3986, as far as references between schemas go: no dots to remove but plain ones at the beginning.
static std::string join_uri(const std::string & base, const std::string & reference) {
    if (reference.empty()) {
        return base;
    }
    const size_t colon = reference.find(':');
    if (colon != std::string::npos && reference.find_first_of("/?#") > colon) {
        return reference;
    }
    const size_t scheme = base.find(':');
    if (reference.compare(0, 2, "//") == 0) {
        return base.substr(0, scheme == std::string::npos ? 0 : scheme + 1) + reference;
    }
    size_t authority = scheme == std::string::npos ? 0 : scheme + 1;
    if (base.compare(authority, 2, "//") == 0) {
        authority = std::min(base.find('/', authority + 2), base.size());
    }
    if (reference[0] == '/') {
        return base.substr(0, authority) + reference;
    }
    const size_t slash = base.rfind('/');
    const bool has_path = slash != std::string::npos && slash >= authority;
    std::string folder = has_path ? base.substr(0, slash + 1) : base.substr(0, authority) + (authority > 0 && authority == base.size() ? "/" : "");
    std::string rest = reference;
    for (;;) {
        if (rest.compare(0, 2, "./") == 0) {
            rest.erase(0, 2);
        } else if (rest.compare(0, 3, "../") == 0) {
            rest.erase(0, 3);
            const size_t up = folder.size() > 1 ? folder.rfind('/', folder.size() - 2) : std::string::npos;
            if (up != std::string::npos && up >= authority) {
                folder.erase(up + 1);
            }
        } else {
            return folder + rest;
        }
    }
}

static std::string percent_decoded(const std::string & text) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        const auto hex = [&](size_t at) {
            const char c = at < text.size() ? text[at] : 'x';
            return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        };
        if (text[i] == '%' && hex(i + 1) >= 0 && hex(i + 2) >= 0) {
            out += char(hex(i + 1) * 16 + hex(i + 2));
            i += 2;
        } else {
            out += text[i];
        }
    }
    return out;
}

schema_document::schema_document(json_value root) : root_(std::move(root)) {
    const json_value * dialect = root_.find("$schema");
    if (dialect != nullptr && dialect->is_string()) {
        for (const char * old : {"draft-03", "draft-04", "draft-05", "draft-06", "draft-07"}) {
            if (dialect->text.find(old) != std::string::npos) {
                draft_ = schema_draft::before_2019;
            }
        }
    }
    named_[""] = &root_;
    index(root_, "", 0);
}

void schema_document::index(const json_value & at, const std::string & base, int depth) {
    if (at.is_array()) {
        for (const json_value & item : at.items) {
            index(item, base, depth + 1);
        }
        return;
    }
    if (!at.is_object()) {
        return;
    }
    std::string here = base;
    const bool referring = draft_ == schema_draft::before_2019 && at.find("$ref") != nullptr;
    for (const char * keyword : {"$id", "id"}) {
        const json_value * id = at.find(keyword);
        if (id == nullptr || !id->is_string() || referring || (keyword[0] == 'i' && draft_ != schema_draft::before_2019)) {
            continue;
        }
        const size_t hash = id->text.find('#');
        if (hash != 0) {
            here = join_uri(base, id->text.substr(0, hash));
            named_.emplace(here, &at);
        }
        if (hash != std::string::npos && hash + 1 < id->text.size()) {
            named_.emplace(here + id->text.substr(hash), &at);
        }
    }
    for (const char * keyword : {"$anchor", "$dynamicAnchor"}) {
        const json_value * anchor = at.find(keyword);
        if (anchor != nullptr && anchor->is_string()) {
            named_.emplace(here + "#" + anchor->text, &at);
        }
    }
    base_[&at] = here;
    for (const auto & [name, child] : at.members) {
        if (name != "enum" && name != "const" && name != "default" && name != "examples") {
            index(child, here, depth + 1);
        } else if (child.is_object()) {
            base_[&child] = here;
            for (const auto & [inner, schema] : child.members) { // a property may be called so
                index(schema, here, depth + 1);
            }
        }
    }
}

const json_value * schema_document::follow(const json_value * at, const std::string & pointer) const {
    size_t i = 0;
    while (at != nullptr && i < pointer.size()) {
        if (pointer[i] != '/') {
            return nullptr;
        }
        const size_t end = std::min(pointer.find('/', i + 1), pointer.size());
        std::string name;
        for (size_t k = i + 1; k < end; k++) {
            if (pointer[k] == '~' && k + 1 < end && (pointer[k + 1] == '0' || pointer[k + 1] == '1')) {
                name += pointer[++k] == '0' ? '~' : '/';
            } else {
                name += pointer[k];
            }
        }
        i = end;
        if (at->is_array()) {
            const bool number = !name.empty() && name.size() < 8 && name.find_first_not_of("0123456789") == std::string::npos;
            const size_t index = number ? size_t(std::stoul(name)) : at->items.size();
            at = index < at->items.size() ? &at->items[index] : nullptr;
        } else {
            at = at->find(name);
        }
    }
    return at;
}

const json_value * schema_document::resolve(const json_value & from, const std::string & reference) const {
    const auto found = base_.find(&from);
    const std::string base = found == base_.end() ? "" : found->second;
    const size_t hash = reference.find('#');
    const std::string uri = join_uri(base, reference.substr(0, hash));
    const std::string fragment = hash == std::string::npos ? "" : percent_decoded(reference.substr(hash + 1));
    const auto at = [&](const std::string & name) -> const json_value * {
        const auto known = named_.find(name);
        return known == named_.end() ? nullptr : known->second;
    };
    if (!fragment.empty() && fragment[0] != '/') {
        return at(uri + "#" + fragment);
    }
    if (const json_value * target = follow(at(uri), fragment)) {
        return target;
    }
    return uri == base ? follow(&root_, fragment) : nullptr; // written as if there were no `$id`
}

}  // namespace lm
