// Reading numbers out of a file that somebody sent: nothing behind its end is ever read.
#pragma once

#include "error.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lm {

enum class byte_order { little, big };

// What is wrong with a picture or a sound. Who knows which one of a request it is, says so.
inline invalid_request bad_media(const std::string & message) {
    return invalid_request("media", message);
}

class byte_reader {
  public:
    // `what` names the file in the message for one that ends too soon: "this PNG".
    byte_reader(std::string_view bytes, byte_order order, const char * what) : bytes_(bytes), order_(order), what_(what) {}

    size_t at() const { return at_; }
    size_t left() const { return bytes_.size() - at_; }
    void go_to(size_t at) {
        at_ = at <= bytes_.size() ? at : cut_off();
    }
    void skip(size_t n) {
        need(n);
        at_ += n;
    }
    std::string_view take(size_t n) {
        need(n);
        at_ += n;
        return bytes_.substr(at_ - n, n);
    }
    uint8_t u8() { return uint8_t(take(1)[0]); }
    uint16_t u16() { return uint16_t(number(2)); }
    uint32_t u24() { return number(3); }
    uint32_t u32() { return number(4); }

  private:
    uint32_t number(size_t n) {
        const std::string_view text = take(n);
        uint32_t value = 0;
        for (size_t i = 0; i < n; i++) {
            value |= uint32_t(uint8_t(text[i])) << 8 * (order_ == byte_order::little ? i : n - 1 - i);
        }
        return value;
    }
    void need(size_t n) const {
        if (n > left()) {
            cut_off();
        }
    }
    [[noreturn]] size_t cut_off() const {
        throw bad_media(std::string(what_) + " is cut off: it ends after " + std::to_string(bytes_.size()) + " bytes");
    }

    std::string_view bytes_;
    byte_order order_;
    const char * what_; // static
    size_t at_ = 0;
};

}  // namespace lm
