// The tokens of a step and their widths.
#pragma once

#include "native/common.h"

namespace octavo {
namespace {

// Values of a token's state, of its heads' results, between the matrices of the MLP and of a mixture's shared expert, and
// of what recurrent layers have in place of heads.
struct Widths {
    int64_t hidden, heads, inner, shared, mixed;
};

// Tokens that go through the matrices: consecutive ones of a step, or those in a list.
struct Tokens {
    int64_t first, count;
    const int64_t* list;  // or null

    int64_t operator[](int64_t i) const { return list ? list[first + i] : first + i; }
    Tokens part(Range range) const { return {first + range.begin, range.end - range.begin, list}; }
};

int64_t blocks_of(int64_t outputs) { return (outputs + 15) / 16; }

}  // namespace
}  // namespace octavo
