// The packed form of a weight: what is stored, and how its bits are read.
//
// Both streams are little-endian bit streams: stream bit b is bit b % 8 (0 = least significant) of
// byte b / 8.
//   indices   one stream an output channel, padded to whole bytes: index i of the channel is the
//             tau-bit number in stream bits [i * tau, (i + 1) * tau), its least significant bit first
//   codebook  one stream: tap t of codeword k is stream bit k * taps + t, 1 for +1 and 0 for -1
#pragma once

#include <cstdint>
#include <vector>

#include "core/unit.h"

namespace subbit {

// ceil(log2(codewords)), but at least 1.
int tau_of(int codewords);

// Bytes of one output channel's packed indices.
std::int64_t packed_row_bytes(std::int64_t units, int tau);

// A weight with one byte per index, every index known to be below the number of codewords.
struct DecodedWeight {
  Unit unit;
  std::int64_t out_channels;
  std::int64_t units;  // of one output channel
  std::vector<Codeword> codebook;
  std::vector<std::uint8_t> indices;  // [out_channels][units]
};

// Reads both streams. Throws std::invalid_argument that names the first index out of range, or a
// stream whose length does not fit the sizes.
DecodedWeight decode(Unit unit, std::int64_t out_channels, std::int64_t units, int codewords,
                     const std::uint8_t* packed_indices, std::int64_t packed_indices_bytes,
                     const std::uint8_t* packed_codebook, std::int64_t packed_codebook_bytes);

}  // namespace subbit
