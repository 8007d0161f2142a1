#include "exif.h"

#include "byte_reader.h"

namespace lm {

static constexpr uint16_t ORIENTATION = 0x0112;
static constexpr uint16_t SHORT = 3;
static constexpr uint16_t MOST_ENTRIES = 512; // cameras write a few dozen

static int read_turn(std::string_view tiff) {
    const bool little = tiff.substr(0, 4) == std::string_view("II*\0", 4);
    if (!little && tiff.substr(0, 4) != std::string_view("MM\0*", 4)) {
        return 1;
    }
    byte_reader in(tiff, little ? byte_order::little : byte_order::big, "Exif");
    in.skip(4);
    in.go_to(in.u32());
    const uint16_t n = in.u16();
    for (uint16_t i = 0; i < n && i < MOST_ENTRIES; i++) {
        const uint16_t tag = in.u16();
        const uint16_t type = in.u16();
        const uint32_t count = in.u32();
        const uint16_t value = in.u16();
        in.skip(2);
        if (tag == ORIENTATION) {
            return type == SHORT && count == 1 && value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

int exif_turn(std::string_view tiff) {
    try {
        return read_turn(tiff);
    } catch (const invalid_request &) { // a picture is not refused for what its camera wrote beside it
        return 1;
    }
}

}  // namespace lm
