// half.hpp - the two floats of 16 bits, widened to 32 without a change of value.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_HALF_HPP
#define WIDENET_EXAMPLES_SUPPORT_HALF_HPP

#include "widenet.hpp"

#include <cstdint>  // uint16_t, uint32_t
#include <cstring>  // memcpy
#include <string>   // string

namespace widenet::support {

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// The value of a float16, of sign s, exponent e (5 bits) and mantissa m (10 bits):
///
///   (-1)^s 2^(e-15) (1 + m/1024)   where 0 < e < 31
///   (-1)^s 2^-14 m/1024            where e = 0: zeros and subnormals
///   (-1)^s infinity, or NaN        where e = 31, m = 0 or not; a NaN keeps its bits
///
///   Source    IEEE 754-2019, 3.4, binary16
inline float float_of_float16(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  if (rest >= 0x0400u) return float_of_bits(sign | (rest + ((127u - 15u) << 10)) << 13);
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // normal in float32
  return sign ? -magnitude : magnitude;
}

/// The value of a bfloat16: the upper half of a float32.
inline float float_of_bfloat16(std::uint16_t bits) {
  return float_of_bits(static_cast<std::uint32_t>(bits) << 16);
}

/// A tensor of F16 or BF16 as one of F32 with the same values; any other as it is.
inline StoredTensor widened(const StoredTensor& tensor) {
  const bool is_float16 = tensor.dtype == "F16";
  if (!is_float16 && tensor.dtype != "BF16") return tensor;
  StoredTensor wide{"F32", tensor.shape, {}};
  wide.bytes.resize(2 * tensor.bytes.size());
  for (std::size_t at = 0; at < tensor.bytes.size(); at += 2) {
    std::uint16_t bits;
    std::memcpy(&bits, tensor.bytes.data() + at, sizeof bits);
    const float value = is_float16 ? float_of_float16(bits) : float_of_bfloat16(bits);
    std::memcpy(wide.bytes.data() + 2 * at, &value, sizeof value);
  }
  return wide;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_HALF_HPP
