#include "inflate.h"

#include "byte_reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

namespace lm {

namespace {

constexpr size_t WINDOW = 1 << 15;    // that later bytes are copied from
constexpr size_t HELD = 4 * WINDOW;   // it, and what is not given on yet
constexpr size_t LONGEST_RUN = 258;
constexpr unsigned LONGEST_CODE = 15;
constexpr unsigned FAST_BITS = 10;
constexpr size_t N_LENGTHS = 288, N_DISTANCES = 30;

class bit_source {
  public:
    bit_source(const std::vector<std::string_view> & parts, const char * what) : parts_(parts), what_(what) {}

    [[noreturn]] void damaged(const char * how) const { throw bad_media(std::string(what_) + " is damaged: " + how); }

    // The next 32 bits and more, of which those behind the end are zeros.
    uint64_t look() {
        while (n_ <= 56) {
            bits_ |= uint64_t(next_byte()) << n_;
            n_ += 8;
        }
        return bits_;
    }
    void drop(unsigned n) {
        bits_ >>= n;
        n_ -= n;
    }
    uint32_t take(unsigned n) {
        const uint32_t value = uint32_t(look() & ((uint64_t(1) << n) - 1));
        drop(n);
        return value;
    }
    void align() { drop(n_ % 8); }
    // Whether bits were taken that are none of the file's.
    bool is_past_end() const { return 8 * n_behind_ > n_; }

  private:
    uint8_t next_byte() {
        while (at_ == end_) {
            if (part_ == parts_.size()) {
                if (++n_behind_ > 16) {
                    damaged("its packed data end too soon");
                }
                return 0;
            }
            at_ = parts_[part_].data();
            end_ = at_ + parts_[part_].size();
            part_++;
        }
        return uint8_t(*at_++);
    }

    const std::vector<std::string_view> & parts_;
    const char * what_;
    size_t part_ = 0;
    const char * at_ = nullptr;
    const char * end_ = nullptr;
    uint64_t bits_ = 0;
    unsigned n_ = 0;
    unsigned n_behind_ = 0;
};

// A prefix code, given by the lengths of its words.
class code {
  public:
    void make(const uint8_t * lengths, size_t n, const bit_source & in) {
        count_ = {};
        fast_ = {};
        for (size_t i = 0; i < n; i++) {
            count_[lengths[i]]++;
        }
        count_[0] = 0;
        std::array<uint16_t, LONGEST_CODE + 2> at = {}; // of the first symbol with a word of each length
        std::array<uint32_t, LONGEST_CODE + 2> word = {};
        int left = 1;
        for (unsigned length = 1; length <= LONGEST_CODE; length++) {
            left = 2 * left - count_[length];
            if (left < 0) {
                in.damaged("its codes do not fit together");
            }
            at[length + 1] = uint16_t(at[length] + count_[length]);
            word[length + 1] = (word[length] + count_[length]) << 1;
        }
        for (size_t i = 0; i < n; i++) {
            const unsigned length = lengths[i];
            if (length == 0) {
                continue;
            }
            symbols_[at[length]++] = uint16_t(i);
            uint32_t turned = 0; // words come with their first bit lowest
            for (unsigned bit = 0; bit < length; bit++) {
                turned |= (word[length] >> bit & 1) << (length - 1 - bit);
            }
            word[length]++;
            for (uint32_t w = turned; length <= FAST_BITS && w < fast_.size(); w += 1u << length) {
                fast_[w] = uint16_t(i << 4 | length);
            }
        }
    }

    unsigned take(bit_source & in) const {
        uint64_t bits = in.look();
        if (const uint16_t known = fast_[bits & (fast_.size() - 1)]) {
            in.drop(known & 15);
            return known >> 4;
        }
        int word = 0, first = 0, index = 0;
        for (unsigned length = 1; length <= LONGEST_CODE; length++, bits >>= 1) {
            word |= int(bits & 1);
            const int count = count_[length];
            if (word - count < first) {
                in.drop(length);
                return symbols_[size_t(index + word - first)];
            }
            index += count;
            first = (first + count) << 1;
            word <<= 1;
        }
        in.damaged("it has a code that stands for nothing");
    }

  private:
    std::array<uint16_t, LONGEST_CODE + 1> count_;
    std::array<uint16_t, N_LENGTHS> symbols_;
    std::array<uint16_t, 1 << FAST_BITS> fast_; // symbol and length of the word that bits begin with; 0: it is longer
};

class unpacker {
  public:
    unpacker(const std::vector<std::string_view> & parts, const char * what, const std::function<void(const uint8_t *, size_t)> & take)
        : in_(parts, what), take_(take), held_(HELD + LONGEST_RUN) {}

    void run() {
        read_head();
        for (bool last = false; !last;) {
            last = in_.take(1) != 0;
            switch (in_.take(2)) {
                case 0: copy_stored(); break;
                case 1:
                    make_usual_codes();
                    copy_coded();
                    break;
                case 2:
                    read_codes();
                    copy_coded();
                    break;
                default: in_.damaged("it has a block of no kind that there is");
            }
        }
        if (in_.is_past_end()) {
            in_.damaged("its packed data end too soon");
        }
        take_(held_.data() + given_, n_ - given_);
    }

  private:
    void read_head() {
        const uint32_t method = in_.take(8);
        const uint32_t flags = in_.take(8);
        if ((method & 15) != 8 || method >> 4 > 7 || (method << 8 | flags) % 31 != 0 || (flags & 32) != 0) {
            in_.damaged("its data are not packed as they should be");
        }
    }

    void make_room() {
        if (n_ >= HELD) {
            take_(held_.data() + given_, n_ - given_);
            memmove(held_.data(), held_.data() + n_ - WINDOW, WINDOW);
            n_ = given_ = WINDOW;
        }
    }

    void copy_stored() {
        in_.align();
        const uint32_t length = in_.take(16);
        if (in_.take(16) != (length ^ 0xFFFF)) {
            in_.damaged("a block says two things of its length");
        }
        for (uint32_t i = 0; i < length; i++) {
            make_room();
            held_[n_++] = uint8_t(in_.take(8));
        }
    }

    void make_usual_codes() {
        std::array<uint8_t, N_LENGTHS> lengths;
        for (size_t i = 0; i < lengths.size(); i++) {
            lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        }
        lengths_.make(lengths.data(), lengths.size(), in_);
        std::fill(lengths.begin(), lengths.end(), uint8_t(5));
        distances_.make(lengths.data(), N_DISTANCES, in_);
    }

    void read_codes() {
        static constexpr uint8_t ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
        const size_t n_lengths = in_.take(5) + 257;
        const size_t n_distances = in_.take(5) + 1;
        const size_t n_words = in_.take(4) + 4;
        if (n_lengths > 286 || n_distances > N_DISTANCES) {
            in_.damaged("it has more codes than there are");
        }
        std::array<uint8_t, N_LENGTHS + 32> lengths = {};
        for (size_t i = 0; i < n_words; i++) {
            lengths[ORDER[i]] = uint8_t(in_.take(3));
        }
        lengths_.make(lengths.data(), 19, in_);
        lengths = {};
        for (size_t i = 0; i < n_lengths + n_distances;) {
            const unsigned symbol = lengths_.take(in_);
            if (symbol < 16) {
                lengths[i++] = uint8_t(symbol);
                continue;
            }
            if (symbol == 16 && i == 0) {
                in_.damaged("its codes do not fit together");
            }
            const uint8_t value = symbol == 16 ? lengths[i - 1] : 0;
            const size_t n = symbol == 16 ? 3 + in_.take(2) : symbol == 17 ? 3 + in_.take(3) : 11 + in_.take(7);
            if (i + n > n_lengths + n_distances) {
                in_.damaged("its codes do not fit together");
            }
            std::fill_n(lengths.begin() + long(i), n, value);
            i += n;
        }
        if (lengths[256] == 0) {
            in_.damaged("a block has no end");
        }
        lengths_.make(lengths.data(), n_lengths, in_);
        distances_.make(lengths.data() + n_lengths, n_distances, in_);
    }

    void copy_coded() {
        static constexpr uint16_t LENGTH[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
        static constexpr uint8_t LENGTH_BITS[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
        static constexpr uint16_t DISTANCE[N_DISTANCES] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                                           193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
        for (;;) {
            make_room();
            const unsigned symbol = lengths_.take(in_);
            if (symbol < 256) {
                held_[n_++] = uint8_t(symbol);
                continue;
            }
            if (symbol == 256) {
                return;
            }
            if (symbol > 285) {
                in_.damaged("it has a code that stands for nothing");
            }
            const size_t length = LENGTH[symbol - 257] + in_.take(LENGTH_BITS[symbol - 257]);
            const unsigned far = distances_.take(in_);
            const size_t distance = DISTANCE[far] + in_.take(far < 2 ? 0 : far / 2 - 1);
            if (distance > n_) {
                in_.damaged("it repeats what was never there");
            }
            uint8_t * to = held_.data() + n_;
            const uint8_t * from = to - distance;
            if (distance >= length) {
                memcpy(to, from, length);
            } else {
                for (size_t i = 0; i < length; i++) { // which may repeat itself
                    to[i] = from[i];
                }
            }
            n_ += length;
        }
    }

    bit_source in_;
    const std::function<void(const uint8_t *, size_t)> & take_;
    std::vector<uint8_t> held_;
    size_t n_ = 0;
    size_t given_ = 0;
    code lengths_, distances_;
};

}  // namespace

void inflate(const std::vector<std::string_view> & parts, const char * what, const std::function<void(const uint8_t *, size_t)> & take) {
    unpacker(parts, what, take).run();
}

}  // namespace lm
