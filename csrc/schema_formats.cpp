#include "schema_formats.h"

#include "regex.h"

#include <map>
#include <mutex>

namespace lm {

static std::string date() {
    const std::string day31 = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])";
    const std::string day30 = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)";
    const std::string february = "02-(?:0[1-9]|1[0-9]|2[0-8])";
    const std::string leap = "(?:(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"; // no 0000
    const std::string year = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"; // few programs read a year 0
    return "(?:" + year + "-(?:" + day31 + "|" + day30 + "|" + february + ")|" + leap + ")";
}

static std::string plain_time() {
    return "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?";
}

static std::string time_of_day() {
    return plain_time() + "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
}

static std::string ipv4() {
    const std::string byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    return byte + "(?:\\." + byte + "){3}";
}

static std::string ipv6() {
    const std::string h = "[0-9A-Fa-f]{1,4}";
    std::string all = "(?:" + h + ":){7}" + h;
    for (int before = 0; before <= 7; before++) { // groups ahead of the "::"
        const int after = 7 - before;
        const std::string head = before == 0 ? "" : h + "(?::" + h + "){" + std::to_string(before - 1) + "}";
        const std::string tail = after == 0 ? "" : "(?:" + h + "(?::" + h + "){0," + std::to_string(after - 1) + "})?";
        all += "|" + head + "::" + tail;
    }
    all += "|(?:" + h + ":){6}" + ipv4();
    for (int before = 0; before <= 5; before++) {
        const int after = 5 - before;
        const std::string head = before == 0 ? "" : h + "(?::" + h + "){" + std::to_string(before - 1) + "}";
        const std::string tail = after == 0 ? "" : "(?:" + h + ":){0," + std::to_string(after) + "}";
        all += "|" + head + "::" + tail + ipv4();
    }
    return "(?:" + all + ")";
}

static std::string hostname() {
    // Without labels that begin with two letters and two hyphens: they stand for others, by rules of their own.
    const std::string a = "[A-Za-z0-9]";
    const std::string h = "[A-Za-z0-9-]";
    const std::string label = a + "(?:" + a + "|" + h + a + "|" + h + h + a + "|" + h + "(?:" + a + h + "|-" + a + ")" + h + "{0,58}" + a + ")?";
    return label + "(?:\\." + label + ")*";
}

static const char URI_CHARACTER[] = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})";

static std::string uri_rest() {
    const std::string c = URI_CHARACTER;
    return "(?:\\?(?:" + c + "|[/?])*)?(?:#(?:" + c + "|[/?])*)?";
}

static std::string authority() {
    const std::string user = "(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?";
    const std::string name = "(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*";
    return user + "(?:" + name + "|\\[" + ipv6() + "\\])(?::[0-9]{0,5})?";
}

static std::string uri() {
    const std::string c = URI_CHARACTER;
    return "[A-Za-z][A-Za-z0-9+.-]*:(?://" + authority() + "(?:/" + c + "*)*|/(?:" + c + "+(?:/" + c + "*)*)?|" + c + "+(?:/" + c + "*)*|)" + uri_rest();
}

static std::string uri_reference() {
    const std::string c = URI_CHARACTER;
    const std::string no_colon = "(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})";
    return "(?:" + uri() + "|(?://" + authority() + "(?:/" + c + "*)*|/(?:" + c + "+(?:/" + c + "*)*)?|" + no_colon + "+(?:/" + c + "*)*|)" + uri_rest() + ")";
}

static std::string duration() {
    const std::string time = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)";
    return "P(?:[0-9]+W|" + time + "|(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)(?:" + time + ")?)";
}

static std::string email() {
    const std::string atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
    const std::string label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    return atom + "(?:\\." + atom + ")*@" + label + "(?:\\." + label + ")*";
}

static std::string pointer() {
    return "(?:/(?:[^~/]|~[01])*)*";
}

// The text of each, and whether it holds all there is.
static const std::map<std::string, std::pair<std::string, bool>> & patterns() {
    static const std::map<std::string, std::pair<std::string, bool>> all = {
        {"date", {date(), false}},
        {"time", {time_of_day(), false}},
        {"date-time", {date() + "[Tt]" + time_of_day(), false}},
        {"duration", {duration(), true}},
        {"email", {email(), false}},
        {"hostname", {hostname(), false}},
        {"ipv4", {ipv4(), true}},
        {"ipv6", {ipv6(), true}},
        {"uri", {uri(), false}},
        {"url", {uri(), false}},
        {"uri-reference", {uri_reference(), false}},
        {"iri", {uri(), false}},
        {"iri-reference", {uri_reference(), false}},
        {"idn-email", {email(), false}},
        {"idn-hostname", {hostname(), false}},
        {"uuid", {"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", true}},
        {"json-pointer", {pointer(), false}},
        {"relative-json-pointer", {"(?:0|[1-9][0-9]*)(?:#|" + pointer() + ")", false}},
        {"uri-template", {"(?:" + std::string(URI_CHARACTER) + "|[/?#\\[\\]]|\\{[+#./;?&]?[A-Za-z0-9_]+(?:\\.[A-Za-z0-9_]+)*(?::[1-9][0-9]{0,3}|\\*)?"
                          "(?:,[A-Za-z0-9_]+(?:\\.[A-Za-z0-9_]+)*(?::[1-9][0-9]{0,3}|\\*)?)*\\})*", false}},
        {"regex", {"(?:[A-Za-z0-9_ ,:;=<>@#%&~'\"!/-]|\\\\[dwsDWS.])*", false}},
    };
    return all;
}

text_format find_format(const std::string & name) {
    const auto found = patterns().find(name);
    if (found == patterns().end()) {
        return {nullptr, 0, false};
    }
    static std::mutex lock;
    static std::map<std::string, automaton_ptr> compiled;
    const std::lock_guard<std::mutex> held(lock);
    automaton_ptr & words = compiled[name];
    if (!words) {
        words = compile_regex(found->second.first, true);
    }
    const bool is_name = name.find("hostname") != std::string::npos;
    return {words, is_name ? 253 : automaton::INFINITE, found->second.second};
}

}  // namespace lm
