// How packed weights are read: sixteen rows side by side, so that one vector instruction feeds sixteen outputs.
//
// A unit is 32 columns (256 for the K formats) of 16 rows: scales first, then the codes group by group (32 columns).
// Step i of a group is 64 bytes: columns 4 i .. 4 i + 3 of row 0, of row 1, ... A step's codes lie in bit planes:
//   4 bits: plane p of 4 holds step p in the low and step p + 4 in the high nibbles;
//   2 bits: plane p of 2 holds steps p, p + 2, p + 4, p + 6, lowest bits first;
//   1 bit:  one plane, step i in bit i;
//   8 bits: one plane a step.
// 5 = 4 + 1 bits, 6 = 4 + 2, 3 = 2 + 1; the later plane is the upper part. Signed codes are stored with `zero` added.
#pragma once

#include <type_traits>

#include "linear/cpu.h"
#include "linear/vector.h"

namespace octavo::packed {

constexpr int GROUP = 32;   // columns that share an activation scale
constexpr int LANES = 16;   // rows of a block
constexpr int STEPS = 8;    // of 4 columns, in a group

// step<I>: the codes of step I of the group that starts at p.
struct Planes4 {
    static constexpr int bytes = 256;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) {
        const Bytes x = load_bytes(p + 64 * (I % 4));
        if constexpr (I < 4) return byte_and(x, all_bytes(15));
        else return byte_and(bits_right<4>(x), all_bytes(15));
    }
};

// Bits moved from position FROM of a byte to AT.
template <int FROM, int AT> OCTAVO_INLINE Bytes move_bits(Bytes x) {
    if constexpr (FROM > AT) return bits_right<FROM - AT>(x);
    else return bits_left<AT - FROM>(x);
}

// Two-bit planes, their values shifted left by AT.
template <int AT> struct Planes2 {
    static constexpr int bytes = 128;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) {
        return byte_and(move_bits<I / 2 * 2, AT>(load_bytes(p + 64 * (I % 2))), all_bytes(3 << AT));
    }
};

template <int AT> struct Planes1 {
    static constexpr int bytes = 64;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) {
        return byte_and(move_bits<I, AT>(load_bytes(p)), all_bytes(1 << AT));
    }
};

struct Planes8 {
    static constexpr int bytes = 512;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) { return load_bytes(p + 64 * I); }
};

template <class Low, class High> struct Planes {
    static constexpr int bytes = Low::bytes + High::bytes;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) {
        return byte_or(Low::template step<I>(p), High::template step<I>(p + Low::bytes));
    }
};

// f(i) for i = 0, 4, 1, 5, ..., 7 as a constant: steps whose codes share a plane of four bits follow each other.
template <class F> OCTAVO_INLINE void for_steps(const F& f) {
    const auto two = [&](auto i) __attribute__((always_inline)) {
        f(i);
        f(std::integral_constant<int, i + STEPS / 2>());
    };
    two(std::integral_constant<int, 0>());
    two(std::integral_constant<int, 1>());
    two(std::integral_constant<int, 2>());
    two(std::integral_constant<int, 3>());
}

template <int BITS> struct CodesOf;
template <> struct CodesOf<2> { using type = Planes2<0>; };
template <> struct CodesOf<3> { using type = Planes<Planes2<0>, Planes1<2>>; };
template <> struct CodesOf<4> { using type = Planes4; };
template <> struct CodesOf<5> { using type = Planes<Planes4, Planes1<4>>; };
template <> struct CodesOf<6> { using type = Planes<Planes4, Planes2<4>>; };
template <> struct CodesOf<8> { using type = Planes8; };

// Of one group of sixteen rows: weight = scale (code - zero) + min. HALVES = 2: a scale and a min for each sixteen
// columns.
struct Scales {
    Floats scale[2], min[2];
};

// One group of sixteen rows, ready to multiply.
struct Group : Scales {
    Bytes codes[STEPS];
};

// What all grouped formats share. ZERO_BITS: log2 of the zero point, -1 where codes are unsigned.
template <int BITS_, int ZERO_BITS_, int GROUPS_, int SCALE_BYTES_, int HALVES_, bool HAS_MIN_,
          class Codes_ = typename CodesOf<BITS_>::type>
struct Grouped {
    using Codes = Codes_;
    static constexpr int BITS = BITS_, ZERO_BITS = ZERO_BITS_, GROUPS = GROUPS_, HALVES = HALVES_;
    static constexpr bool HAS_MIN = HAS_MIN_;
    static constexpr int unit_columns = GROUPS * GROUP;
    static constexpr int unit_bytes = SCALE_BYTES_ + GROUPS * Codes::bytes;
    static OCTAVO_INLINE const uint8_t* codes_at(const uint8_t* unit, int index) {
        return unit + SCALE_BYTES_ + index * Codes::bytes;
    }
    static OCTAVO_INLINE void read_codes(const uint8_t* unit, int index, Group& group) {
        const uint8_t* p = codes_at(unit, index);
        for_steps([&](auto i) __attribute__((always_inline)) { group.codes[i] = Codes::template step<i>(p); });
    }
};

// Q4_0, Q5_0, Q8_0: float16 scales.
template <int BITS> struct Symmetric : Grouped<BITS, BITS - 1, 1, 32, 1, false> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int, Scales& group) { group.scale[0] = load_halves(unit); }
};

// Q4_1, Q5_1: float16 scales, float16 minima.
template <int BITS> struct WithMin : Grouped<BITS, -1, 1, 64, 1, true> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int, Scales& group) {
        group.scale[0] = load_halves(unit);
        group.min[0] = load_halves(unit + 32);
    }
};

// Z4, Z8: float16 scales, uint8 zero points. weight = scale (code - zero) without rounding: a scale has 11 bits, the
// product with a code or a zero point of 8 at most 19. (A float16 minimum, as Q4_1 has it, would round scale * zero.)
template <int BITS> struct WithZero : Grouped<BITS, -1, 1, 48, 1, true> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int, Scales& group) {
        group.scale[0] = load_halves(unit);
        group.min[0] = negate(mul(group.scale[0], to_floats(load_uint8s(unit + 32))));
    }
};

// Q4_K, Q5_K: float16 scales of scales and of minima, then for each two groups 48 bytes: the low nibbles of both groups
// (scale | min << 4) and their upper two bits (first scale | first min << 2 | second scale << 4 | second min << 6).
template <int BITS> struct WithMinK : Grouped<BITS, -1, 8, 256, 1, true> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int index, Scales& group) {
        const uint8_t* pair = unit + 64 + 48 * (index / 2);
        const Ints low = load_uint8s(pair + 16 * (index % 2));
        const Ints high = int_right(load_uint8s(pair + 32), 4 * (index % 2));
        const Ints scale = int_or(int_and(low, 15), int_left(int_and(high, 3), 4));
        const Ints min = int_or(int_right(low, 4), int_left(int_and(high, 12), 2));
        group.scale[0] = mul(load_halves(unit), to_floats(scale));
        group.min[0] = negate(mul(load_halves(unit + 32), to_floats(min)));
    }
};

// Q6_K, Q3_K: float16 scales of int8 scales, one of these for 16 columns.
template <int BITS> struct SymmetricK : Grouped<BITS, BITS - 1, 8, 288, 2, false> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int index, Scales& group) {
        const Floats super = load_halves(unit);
        for (int half = 0; half < 2; ++half) {
            group.scale[half] = mul(super, to_floats(load_int8s(unit + 32 + 16 * (2 * index + half))));
        }
    }
};

// Q2_K: float16 scales of scales and of minima, then (scale | min << 4) for each 16 columns.
struct Q2K : Grouped<2, -1, 8, 320, 2, true> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int index, Scales& group) {
        const Floats super_scale = load_halves(unit), super_min = load_halves(unit + 32);
        for (int half = 0; half < 2; ++half) {
            const Ints x = load_uint8s(unit + 64 + 16 * (2 * index + half));
            group.scale[half] = mul(super_scale, to_floats(int_and(x, 15)));
            group.min[half] = negate(mul(super_min, to_floats(int_right(x, 4))));
        }
    }
};

// Twice the values of four-bit floats (1 sign, 2 exponent, 1 mantissa), plus 16.
struct Floats4 {
    static constexpr uint8_t codes[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
    static constexpr int bytes = Planes4::bytes;
    template <int I> static OCTAVO_INLINE Bytes step(const uint8_t* p) { return look_up(codes, Planes4::step<I>(p)); }
};

// MXFP4: four-bit floats with powers of two as scales, of which the exponent is stored.
struct Mxfp4 : Grouped<5, 4, 1, 16, 1, false, Floats4> {
    static OCTAVO_INLINE void read_scales(const uint8_t* unit, int, Scales& group) {
        group.scale[0] = mul(as_floats(int_left<23>(load_uint8s(unit))), all_floats(0.5f));  // of twice the values
    }
};

// The `index`-th group of a unit as 32 x 16 floats, columns first: exactly GGUF's dequantised values.
template <class Format> OCTAVO_INLINE const float* decode(const uint8_t* unit, int index, float* buffer) {
    Group group;
    Format::read_scales(unit, index, group);
    Format::read_codes(unit, index, group);
    for (int step = 0; step < STEPS; ++step) {
        const int half = Format::HALVES == 2 ? step / 4 : 0;
        for (int column = 0; column < 4; ++column) {
            Ints code = int_and(int_right(as_ints(group.codes[step]), 8 * column), 255);
            if constexpr (Format::ZERO_BITS >= 0) code = int_sub(code, all_ints(1 << Format::ZERO_BITS));
            const Floats q = to_floats(code);
            Floats w;
            if constexpr (Format::HAS_MIN) w = fma(group.scale[half], q, group.min[half]);
            else w = mul(group.scale[half], q);
            store_floats(buffer + (4 * step + column) * LANES, w);
        }
    }
    return buffer;
}

// The float formats: a unit is 32 columns. f32 and f16 lie column by column; bf16 in pairs of columns, as the dot
// product of bf16 pairs takes them: columns 2 i and 2 i + 1 of row 0, of row 1, ...
template <int VALUE_BYTES> struct Plain {
    static constexpr int GROUPS = 1, unit_columns = GROUP, unit_bytes = GROUP * LANES * VALUE_BYTES;
};
struct Float32 : Plain<4> {};
struct Float16 : Plain<2> {};
struct Bfloat16 : Plain<2> {};

template <class Format> constexpr bool is_grouped = !std::is_base_of_v<Plain<2>, Format> && !std::is_base_of_v<Plain<4>, Format>;

template <> OCTAVO_INLINE const float* decode<Float32>(const uint8_t* unit, int, float*) {
    return reinterpret_cast<const float*>(unit);
}

template <> OCTAVO_INLINE const float* decode<Float16>(const uint8_t* unit, int, float* buffer) {
    for (int i = 0; i < GROUP; ++i) store_floats(buffer + LANES * i, load_halves(unit + 2 * LANES * i));
    return buffer;
}

template <> OCTAVO_INLINE const float* decode<Bfloat16>(const uint8_t* unit, int, float* buffer) {
    for (int i = 0; i < GROUP / 2; ++i) {
        const Ints pair = load_ints(unit + 64 * i);
        store_floats(buffer + LANES * 2 * i, as_floats(int_left(pair, 16)));
        store_floats(buffer + LANES * (2 * i + 1), as_floats(int_and(pair, int32_t(0xffff0000))));
    }
    return buffer;
}

// Call f with a value of the format's type.
template <class F> auto with_format(WeightFormat format, F&& f) {
    switch (format) {
        case WeightFormat::f16: return f(Float16{});
        case WeightFormat::bf16: return f(Bfloat16{});
        case WeightFormat::q4_0: return f(Symmetric<4>{});
        case WeightFormat::q4_1: return f(WithMin<4>{});
        case WeightFormat::q5_0: return f(Symmetric<5>{});
        case WeightFormat::q5_1: return f(WithMin<5>{});
        case WeightFormat::q8_0: return f(Symmetric<8>{});
        case WeightFormat::q2_k: return f(Q2K{});
        case WeightFormat::q3_k: return f(SymmetricK<3>{});
        case WeightFormat::q4_k: return f(WithMinK<4>{});
        case WeightFormat::q5_k: return f(WithMinK<5>{});
        case WeightFormat::q6_k: return f(SymmetricK<6>{});
        case WeightFormat::z4: return f(WithZero<4>{});
        case WeightFormat::z8: return f(WithZero<8>{});
        case WeightFormat::mxfp4: return f(Mxfp4{});
        default: return f(Float32{});
    }
}

}  // namespace octavo::packed
