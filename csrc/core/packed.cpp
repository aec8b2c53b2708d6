#include "core/packed.h"

#include <stdexcept>
#include <string>

#include "core/checked.h"

namespace subbit {
namespace {

void expect_bytes(const char* what, std::int64_t expected, std::int64_t given) {
  if (given != expected) {
    throw std::invalid_argument(std::string(what) + " must hold " + std::to_string(expected) + " bytes, got " +
                                std::to_string(given));
  }
}

}  // namespace

int tau_of(int codewords) {
  int tau = 1;
  while ((1 << tau) < codewords) ++tau;
  return tau;
}

std::int64_t packed_row_bytes(std::int64_t units, int tau) {
  return ceil_div(checked_product({units, tau}, "packed indices"), 8);
}

DecodedWeight decode(Unit unit, std::int64_t out_channels, std::int64_t units, int codewords,
                     const std::uint8_t* packed_indices, std::int64_t packed_indices_bytes,
                     const std::uint8_t* packed_codebook, std::int64_t packed_codebook_bytes) {
  if (codewords < 1 || codewords > kMaxCodewords) {
    throw std::invalid_argument("codebook must have 1 to " + std::to_string(kMaxCodewords) + " codewords, got " +
                                std::to_string(codewords));
  }
  const int tau = tau_of(codewords);
  const int taps = unit_taps(unit);
  const std::int64_t row_bytes = packed_row_bytes(units, tau);
  expect_bytes("packed indices", checked_product({out_channels, row_bytes}, "packed indices"), packed_indices_bytes);
  expect_bytes("packed codebook", ceil_div(std::int64_t{codewords} * taps, 8), packed_codebook_bytes);

  DecodedWeight weight;
  weight.unit = unit;
  weight.out_channels = out_channels;
  weight.units = units;
  weight.codebook.resize(codewords);
  for (int k = 0; k < codewords; ++k) {
    for (int t = 0; t < taps; ++t) {
      const int bit = k * taps + t;
      weight.codebook[k] |= static_cast<Codeword>(((packed_codebook[bit / 8] >> (bit % 8)) & 1) << t);
    }
  }
  weight.indices.resize(checked_product({out_channels, units}, "indices"));
  for (std::int64_t o = 0; o < out_channels; ++o) {
    const std::uint8_t* row = packed_indices + o * row_bytes;
    for (std::int64_t u = 0; u < units; ++u) {
      const std::int64_t bit = u * tau;
      unsigned word = row[bit / 8];
      if (bit % 8 + tau > 8) word |= static_cast<unsigned>(row[bit / 8 + 1]) << 8;
      const int index = static_cast<int>((word >> (bit % 8)) & ((1u << tau) - 1));
      if (index >= codewords) {
        throw std::invalid_argument("indices must be in [0, " + std::to_string(codewords) +
                                    "), the number of codewords; indices[" + std::to_string(o) + ", " +
                                    std::to_string(u) + "] is " + std::to_string(index));
      }
      weight.indices[o * units + u] = static_cast<std::uint8_t>(index);
    }
  }
  return weight;
}

}  // namespace subbit
