// Random walks through schemas, and texts judged by them, for who knows what is valid: see bench/walks.py.
#pragma once

#include "schema.h"
#include "schema_walk.h"

#include <algorithm>
#include <iostream>
#include <random>
#include <string>
#include <vector>

// Reads lines: S and a schema; R, a seed and about how many bytes a text may have; T and a text in hexadecimal digits. Answers
// one line each: "ok", "part" (of it is not enforced) or "no" and why; "end", "cut" (it grew and grew) or "dead" and the text;
// "1" or "0".
class schema_walks {
  public:
    void answer(std::istream & in, std::ostream & out) {
        for (std::string line; std::getline(in, line);) {
            switch (line.empty() ? ' ' : line[0]) {
                case 'S': out << read(line.substr(1)); break;
                case 'R': {
                    const size_t space = line.find(' ', 2);
                    out << walk(uint32_t(std::stoul(line.substr(2, space - 2))), std::stoul(line.substr(space)));
                    break;
                }
                case 'T': out << (accepts(from_hex(line.substr(1))) ? "1" : "0"); break;
                default: return;
            }
            out << std::endl;
        }
    }

  private:
    std::string read(const std::string & text) {
        schema_ = nullptr;
        try {
            schema_ = lm::compile_schema(text);
        } catch (const lm::schema_error & e) {
            return std::string("no ") + e.what();
        }
        return schema_->unenforced.empty() ? "ok" : "part";
    }

    // One byte on; false if that leads nowhere.
    static bool step(lm::schema_walk & walk, lm::schema_walk::place & here, lm::schema_walk::mark & made, uint8_t byte) {
        lm::schema_walk::place next;
        walk.forget(made);
        if (!walk.step(here, byte, next)) {
            return false;
        }
        std::swap(here, next);
        walk.settle(here);
        if (walk.n_frames() > 256) {
            walk.compact(here);
        }
        made = walk.here();
        return true;
    }

    bool accepts(const std::string & text) const {
        lm::schema_walk walk(schema_);
        lm::schema_walk::place here = walk.begin();
        lm::schema_walk::mark made = walk.here();
        return std::all_of(text.begin(), text.end(), [&](char c) { return step(walk, here, made, uint8_t(c)); }) && walk.may_end(here);
    }

    std::string walk(uint32_t seed, size_t most) const {
        static const std::string SOME = "\"\"\"\"{[]},,::0123456789-.aabbccdezkxAZ tfn\\ue_\xC3\xA9";
        static const std::string ENDS = "}]\"}]\",:0";
        std::mt19937 rng(seed);
        lm::schema_walk walk(schema_);
        lm::schema_walk::place here = walk.begin();
        lm::schema_walk::mark made = walk.here();
        std::string text;
        for (;;) {
            const bool late = text.size() > most;
            if (walk.may_end(here) && (late || rng() % 2 == 0)) {
                return "end " + to_hex(text);
            }
            if (text.size() > 4 * most + 400) {
                return "cut " + to_hex(text);
            }
            std::string order;
            for (int i = 0; i < 12; i++) {
                order += late && rng() % 4 != 0 ? ENDS[size_t(i) % ENDS.size()] : SOME[rng() % SOME.size()];
            }
            std::string all(256, '\0');
            for (size_t c = 0; c < all.size(); c++) {
                all[c] = char(c);
            }
            std::shuffle(all.begin(), all.end(), rng);
            order += all;
            const auto taken = std::find_if(order.begin(), order.end(), [&](char c) { return step(walk, here, made, uint8_t(c)); });
            if (taken == order.end()) {
                return (walk.may_end(here) ? "end " : "dead ") + to_hex(text);
            }
            text += *taken;
        }
    }

    static std::string to_hex(const std::string & text) {
        std::string hex;
        for (const char c : text) {
            hex += "0123456789abcdef"[uint8_t(c) >> 4];
            hex += "0123456789abcdef"[uint8_t(c) & 15];
        }
        return hex;
    }

    static std::string from_hex(const std::string & hex) {
        std::string text;
        for (size_t i = 0; i + 1 < hex.size(); i += 2) {
            text += char(std::stoi(hex.substr(i, 2), nullptr, 16));
        }
        return text;
    }

    lm::schema_ptr schema_;
};
