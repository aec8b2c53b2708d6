// The sharing kernel: for each unit of input, the response of every codeword at the block's pixels goes to shared
// memory once; then each output adds one row of responses, the one its index names.
//
//     out[o, p] = sum over units u, in their order, of R[u][index[o, u]][p]
//
// Pixels lie along lanes: lane l of every warp has words 4 l ... 4 l + 3 of a row (or 2 l, 2 l + 1), so whatever row an
// index names is read by one conflict-free LDS.128 (64). Word v of lane l is pixel 32 v + l of the tile (pixels 64 v +
// l and 64 v + 32 + l where a word has two), so that the lanes read and write global memory side by side.
//
// The inner loop: a byte of an index word picks a row, one load, words_per_lane additions. An addition stands for nine
// multiply-adds of a 3x3 convolution and costs 4 bytes of shared memory, 4/9 of a byte per multiply-add (2/9 with two
// sums per word). 128 bytes per cycle bound it: 16 outputs take 64 cycles, in which a multiprocessor issues 256
// instructions, and nvcc 13.0 makes 120 of them (sm_90). What else shared memory does for a unit, in rows of responses:
// for each of K codewords one is written and about 2.2 are read; the sums take about 25. So of its time
//
//     outputs / (outputs + 3.2 K + 25)      0.67 with 256 outputs and 32 codewords, 0.80 with 512 (words_per_lane 2)
//
// gathers. More outputs than a block has are computed by blocks that each compute the responses: hence 16 warps, and
// as many outputs as registers hold. All these are expected from arithmetic, not yet measured.
//
// Blocks of 1 to 4 units go through a pipeline: between two barriers the same warps gather from block b, make the
// responses of b + 1 and the sums of b + 2, into buffers that block b does not use; some are ahead with the one while
// others still do the other, so that the rest hides what is slow in one (loads from global memory, chains of
// additions). Where shared memory holds the responses only once, one more barrier parts gathering and responding.
//
// Responses are made as on the CPU (csrc/cpu/families/rows/rows/scalar.cpp), addition for addition: 4 signless sums
// of each of the three rows of taps, (x0 +- x1) +- x2, or 8 of each half of an 8x1x1 unit; a codeword is then a sum of
// each part times its sign, added in order. Codewords are sorted by their parts, so that neighbours share the first
// sums.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/epilogue.cuh"
#include "cuda/common/params.h"
#include "cuda/common/pixel.cuh"
#include "cuda/common/platform.h"
#include "cuda/sharing/codeword_parts.cuh"
#include "cuda/sharing/source.cuh"
#include "cuda/sharing/task.h"
#include "cuda/sharing/tile.h"

namespace subbit {

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) LaneWords {
  T at[kCount];
};

// kTwoPerWord: two pixels' sums per word, the even pixel's in the low 16 bits. The signs a and b of two pixels make the
// float a + 65536 b; sums of them are exact below 2^24, so the arithmetic is that of floats up to the last addition,
// which lands on 1.5 * 2^23 + the integer: its bits are those of 1.5 * 2^23 plus the integer. These are added up as
// 32-bit integers; what is too much is taken off at the end, and the two sums come apart as long as the low one is
// within 16 bits (kSharingMostUnits16).
template <Unit kUnit, int kWords, bool kTwoPerWord>
class Sharing {
 public:
  static constexpr int kOutputs = kSharingAccumulators / kWords;  // of a warp
  static constexpr int kPixelsOfWord = kTwoPerWord ? 2 : 1;
  static constexpr int kPixels = kWarp * kWords * kPixelsOfWord;
  static constexpr int kRowBytes = kWarp * kWords * 4;
  using Parts = CodewordParts<kUnit>;
  static constexpr int kParts = Parts::kParts, kPartTaps = Parts::kPartTaps;
  static constexpr int kPartSums = Parts::kPartSums, kPartBits = Parts::kPartBits;
  static constexpr float kIntegerStart = 12582912.0f;  // 1.5 * 2^23
  static constexpr unsigned kIntegerStartBits = 0x4b400000;

  using Sum = std::conditional_t<kTwoPerWord, unsigned, float>;
  using Floats = LaneWords<float, kWords>;
  using Sums = LaneWords<Sum, kWords>;

  SUBBIT_DEVICE explicit Sharing(const SharingTask& task)
      : task_(task),
        conv_(task.params.conv),
        shared_(shared_memory()),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        units_(task.tile.units) {
    const unsigned parts = static_cast<unsigned>(task.tile.parts), groups = static_cast<unsigned>(conv_.groups);
    const unsigned column = blockIdx.x / parts;
    first_output_ = static_cast<int>(blockIdx.x % parts) * task.tile.warps * kOutputs;
    group_ = static_cast<int>(column % groups);
    first_pixel_ = column / groups * kPixels;
  }

  SUBBIT_DEVICE void run() {
    Sum sums[kOutputs][kWords] = {};
    const int blocks = (task_.units + units_ - 1) / units_;
    place_pixels();
    sort_codewords();
    start_indices();
    __syncthreads();
    for (int b = -2; b < blocks; ++b) {
      make_sums(b + 2);
      unpack_indices(b + 1);
      gather(b, sums);
      if (task_.tile.buffers == 1) __syncthreads();
      respond(b + 1);
      __syncthreads();
    }
    finish_all(sums);
  }

 private:
  // Units of a block; 0 before the first and after the last.
  SUBBIT_DEVICE int unit_count(int b) const {
    if (b < 0) return 0;
    const int left = task_.units - b * units_;
    return left < 0 ? 0 : left < units_ ? left : units_;
  }

  template <class T>
  SUBBIT_DEVICE T* shared(int place) const {
    return reinterpret_cast<T*>(shared_ + place);
  }

  // In 32 bits: a 64-bit division would be a call.
  SUBBIT_DEVICE Pixel pixel_of(unsigned number) const {
    const unsigned width = static_cast<unsigned>(conv_.out_width), height = static_cast<unsigned>(conv_.out_height);
    const unsigned line = number / width, image = line / height;
    return {image, line - image * height, number - line * width};
  }

  // Where each pixel's first tap lies, and which of its taps lie inside the image (bit t is tap t).
  SUBBIT_DEVICE void place_pixels() const {
    for (int p = static_cast<int>(threadIdx.x); p < kPixels; p += static_cast<int>(blockDim.x)) {
      std::int64_t offset = 0;
      unsigned mask = 0;
      if (first_pixel_ + p < task_.pixels) {
        const Pixel pixel = pixel_of(first_pixel_ + p);
        const std::int64_t row = pixel.row * conv_.stride_h - conv_.pad_h;
        const std::int64_t column = pixel.column * conv_.stride_w - conv_.pad_w;
        offset = pixel.image * conv_.x_n + row * conv_.x_h + column * conv_.x_w;
        for (int tap = 0; tap < kernel_taps(kUnit); ++tap) {
          const std::int64_t h = row + tap / kernel_size(kUnit) * conv_.dilation_h;
          const std::int64_t w = column + tap % kernel_size(kUnit) * conv_.dilation_w;
          if (h >= 0 && h < conv_.height && w >= 0 && w < conv_.width) mask |= 1u << tap;
        }
      }
      shared<std::int64_t>(0)[p] = offset;
      shared<std::uint16_t>(task_.tile.masks)[p] = static_cast<std::uint16_t>(mask);
    }
  }

  // A codeword as it is responded to: key, number, and the signs of its parts as floats.
  SUBBIT_DEVICE void sort_codewords() const {
    const int codewords = task_.params.codewords;
    for (int k = static_cast<int>(threadIdx.x); k < codewords; k += static_cast<int>(blockDim.x)) {
      const unsigned key = Parts::key_of(task_.operands.codebook[k]);
      int rank = 0;
      for (int other = 0; other < codewords; ++other) {
        const unsigned key_of_other = Parts::key_of(task_.operands.codebook[other]);
        rank += key_of_other < key || (key_of_other == key && other < k);
      }
      const auto sign = [&](int part) {
        const unsigned is_plus = part < kParts ? key >> ((kParts - part) * kPartBits - 1) & 1 : 0;
        return __float_as_uint(is_plus ? 1.0f : -1.0f);
      };
      shared<uint4>(task_.tile.terms)[rank] =
          make_uint4(key | static_cast<unsigned>(k) << 16, sign(0), sign(1), sign(2));
    }
  }

  // The signless sums of every part of block b's units; a warp makes those of one part at a time.
  SUBBIT_DEVICE void make_sums(int b) const {
    const int items = unit_count(b) * kParts;
    if (warp_ >= items) return;
    with_source(task_.params, task_.operands, [&](const auto& source) {
      for (int item = warp_; item < items; item += task_.tile.warps) {
        make_part_sums(source, b * units_ + item / kParts, item % kParts,
                       sums_at(b, item / kParts) + item % kParts * kPartSums * kRowBytes);
      }
    });
  }

  SUBBIT_DEVICE unsigned char* sums_at(int b, int unit) const {
    return shared_ + task_.tile.sums + ((b & 1) * units_ + unit) * (kParts * kPartSums * kRowBytes);
  }

  template <class Source>
  SUBBIT_DEVICE void make_part_sums(const Source& source, int unit, int part, unsigned char* to) const {
    const int channel = (group_ * task_.units + unit) * unit_channels(kUnit);
    const auto is_inside = [&](int p, int t) {
      return (shared<std::uint16_t>(task_.tile.masks)[p] >> (kUnit == Unit::k3x3 ? part * 3 + t : 0) & 1) != 0;
    };
    Floats taps[kPartTaps];
    SUBBIT_UNROLL
    for (int v = 0; v < kWords; ++v) {
      float pair[2][kPartTaps];
      SUBBIT_UNROLL
      for (int half = 0; half < kPixelsOfWord; ++half) {
        const int p = (v * kPixelsOfWord + half) * kWarp + lane_;
        const std::int64_t offset = shared<std::int64_t>(0)[p];
        SUBBIT_UNROLL
        for (int t = 0; t < kPartTaps; ++t) {
          const bool valid = is_inside(p, t);
          if constexpr (kUnit == Unit::k3x3) {
            const std::int64_t step = part * conv_.dilation_h * conv_.x_h + t * conv_.dilation_w * conv_.x_w;
            pair[half][t] = source.load(offset + step, channel, valid);
          } else {
            pair[half][t] = source.load(offset, channel + part * kPartTaps + t, valid);
          }
          if constexpr (kTwoPerWord) pair[half][t] = source.sign(pair[half][t], valid);
        }
      }
      SUBBIT_UNROLL
      for (int t = 0; t < kPartTaps; ++t) {
        taps[t].at[v] = kTwoPerWord ? __fmaf_rn(65536.0f, pair[1][t], pair[0][t]) : pair[0][t];
      }
    }
    if (!kTwoPerWord && source.binarize) {  // too many units for 16 bits
      SUBBIT_UNROLL
      for (int v = 0; v < kWords; ++v) {
        SUBBIT_UNROLL
        for (int t = 0; t < kPartTaps; ++t) {
          taps[t].at[v] = source.sign(taps[t].at[v], is_inside(v * kWarp + lane_, t));
        }
      }
    }
    SUBBIT_UNROLL
    for (int pattern = 0; pattern < kPartSums; ++pattern) {
      Floats sums;
      SUBBIT_UNROLL
      for (int v = 0; v < kWords; ++v) sums.at[v] = Parts::signless_sum(taps, v, pattern);
      *reinterpret_cast<Floats*>(to + pattern * kRowBytes + lane_ * sizeof(Floats)) = sums;
    }
  }

  // Output i of the block belongs to thread i here: it keeps the two words of the output's indices that its bits for
  // the next block of units lie in, and so reads each word once.
  SUBBIT_DEVICE void start_indices() {
    const int output = first_output_ + static_cast<int>(threadIdx.x);
    has_indices_ = static_cast<int>(threadIdx.x) < task_.tile.warps * kOutputs && output < task_.group_outputs;
    index_words_ =
        task_.operands.indices + static_cast<std::int64_t>(group_ * task_.group_outputs + output) * task_.row_words;
    next_word_ = 0;
    take_index_word();
    take_index_word();
  }

  SUBBIT_DEVICE void take_index_word() {
    low_ = high_;
    high_ = has_indices_ && next_word_ < task_.row_words ? index_words_[next_word_] : 0;
    ++next_word_;
  }

  // Block b's indices, a byte each: [unit][output]. Blocks come in their order. Outputs that are not there get 0.
  SUBBIT_DEVICE void unpack_indices(int b) {
    const int count = unit_count(b), outputs = task_.tile.warps * kOutputs;
    if (count == 0 || static_cast<int>(threadIdx.x) >= outputs) return;
    const std::int64_t bit = static_cast<std::int64_t>(b * units_) * task_.tau;
    if (bit / 32 + 2 > next_word_) take_index_word();
    const unsigned bits = __funnelshift_r(low_, high_, static_cast<unsigned>(bit % 32));
    unsigned char* to = indices_at(b) + threadIdx.x;
    for (int u = 0; u < count; ++u) {
      to[u * outputs] = static_cast<unsigned char>(bits >> (u * task_.tau) & ((1u << task_.tau) - 1));
    }
  }

  SUBBIT_DEVICE unsigned char* indices_at(int b) const {
    return shared_ + task_.tile.indices + (b & 1) * units_ * task_.tile.warps * kOutputs;
  }

  SUBBIT_DEVICE unsigned char* responses_at(int b, int unit) const {
    const int buffer = task_.tile.buffers == 2 ? b & 1 : 0;
    return shared_ + task_.tile.responses + (buffer * units_ + unit) * task_.params.codewords * kRowBytes;
  }

  // The responses of block b's units: codewords of all units in one list, of which each warp has a run.
  SUBBIT_DEVICE void respond(int b) const {
    const int codewords = task_.params.codewords;
    const int begin = warp_ * task_.responses_of_warp;
    const int left = unit_count(b) * codewords - begin;
    const int end = begin + (left < task_.responses_of_warp ? left : task_.responses_of_warp);
    if (begin >= end) return;
    int unit = static_cast<int>(static_cast<unsigned>(begin) / static_cast<unsigned>(codewords));
    int place = begin - unit * codewords;
    const uint4* terms = shared<uint4>(task_.tile.terms);
    uint4 next = terms[place];
    unsigned last = ~0u;
    Floats prefix[kParts] = {};  // sums of the first parts, the same for neighbours that have these in common
    for (int i = begin; i < end; ++i) {
      const uint4 term = next;
      const int unit_of_term = unit;
      if (++place == codewords) {
        place = 0;
        ++unit;
      }
      next = terms[place];
      const unsigned key = term.x & 0xffff;
      const unsigned changed = key ^ last;
      const unsigned char* sums = sums_at(b, unit_of_term) + lane_ * sizeof(Floats);
      SUBBIT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const int shift = (kParts - 1 - part) * kPartBits;
        if ((changed >> shift) == 0) continue;
        const int row = part * kPartSums + static_cast<int>(key >> shift & (kPartSums - 1));
        const Floats sum = *reinterpret_cast<const Floats*>(sums + row * kRowBytes);
        const float sign = __uint_as_float(part == 0 ? term.y : part == 1 ? term.z : term.w);
        SUBBIT_UNROLL
        for (int v = 0; v < kWords; ++v) {
          const float before = part ? prefix[part ? part - 1 : 0].at[v] : kTwoPerWord ? kIntegerStart : 0.0f;
          prefix[part].at[v] = __fmaf_rn(sign, sum.at[v], before);  // the product is exact: an addition
        }
      }
      unsigned char* row = responses_at(b, unit_of_term) + static_cast<int>(term.x >> 16) * kRowBytes;
      *reinterpret_cast<Floats*>(row + lane_ * sizeof(Floats)) = prefix[kParts - 1];
      last = place == 0 ? ~0u : key;
    }
  }

  SUBBIT_DEVICE void gather(int b, Sum (&sums)[kOutputs][kWords]) const {
    const int count = unit_count(b);
    const int outputs = task_.tile.warps * kOutputs;
    const unsigned char* indices = indices_at(b) + warp_ * kOutputs;
    const unsigned char* rows = responses_at(b, 0) + lane_ * sizeof(Sums);
    const int unit_bytes = task_.params.codewords * kRowBytes;
    for (int u = 0; u < count; ++u) {
      LaneWords<unsigned, 4> words[kOutputs / 16];
      SUBBIT_UNROLL
      for (int i = 0; i < kOutputs / 16; ++i) words[i] = reinterpret_cast<const LaneWords<unsigned, 4>*>(indices)[i];
      SUBBIT_UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        const unsigned index = __byte_perm(words[o / 16].at[o / 4 % 4], 0, 0x4440 | (o % 4));
        const Sums row = *reinterpret_cast<const Sums*>(rows + index * kRowBytes);
        SUBBIT_UNROLL
        for (int v = 0; v < kWords; ++v) sums[o][v] = plus(sums[o][v], row.at[v]);
      }
      indices += outputs;
      rows += unit_bytes;
    }
  }

  static SUBBIT_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
  static SUBBIT_DEVICE unsigned plus(unsigned a, unsigned b) { return a + b; }

  // The sums of half a word's pixel; see the class.
  SUBBIT_DEVICE float sum_of(unsigned bits, int half) const {
    const unsigned total = bits - static_cast<unsigned>(task_.units) * kIntegerStartBits;
    const auto low = static_cast<std::int16_t>(total & 0xffff);
    if (half == 0) return static_cast<float>(low);
    return static_cast<float>(static_cast<std::int32_t>(total - static_cast<unsigned>(static_cast<int>(low))) >> 16);
  }
  SUBBIT_DEVICE float sum_of(float sum, int) const { return sum; }

  // Sums pass through rows of shared memory that only this warp uses, so that loops over outputs need not be unrolled.
  SUBBIT_DEVICE void finish_all(const Sum (&sums)[kOutputs][kWords]) const {
    Sum* column = shared<Sum>(warp_ * kOutputs * kWarp * 4) + lane_;
    SUBBIT_UNROLL
    for (int v = 0; v < kWords; ++v) {
      SUBBIT_UNROLL
      for (int o = 0; o < kOutputs; ++o) column[o * kWarp] = sums[o][v];
      for (int half = 0; half < kPixelsOfWord; ++half)
        finish_pixel((v * kPixelsOfWord + half) * kWarp + lane_, half, column);
    }
  }

  SUBBIT_DEVICE void finish_pixel(int p, int half, const Sum* column) const {
    const unsigned number = first_pixel_ + p;
    if (number >= task_.pixels) return;
    const Pixel pixel = pixel_of(number);
    const CudaOperands& to = task_.operands;
    const int first = first_output_ + warp_ * kOutputs;
    const std::int64_t y = pixel.image * conv_.y_n + pixel.row * conv_.y_h + pixel.column * conv_.y_w;
    const std::int64_t residual =
        pixel.image * conv_.residual_n + pixel.row * conv_.residual_h + pixel.column * conv_.residual_w;
    unsigned is_plus = 0, is_nonzero = 0;
    for (int o = 0; o < kOutputs && first + o < task_.group_outputs; ++o) {
      const int c = group_ * task_.group_outputs + first + o;
      const ChannelEpilogue channel = load_epilogue(to, c);
      const float added =
          to.residual ? load_element(to.residual, task_.params.element, residual + c * conv_.residual_c) : 0.0f;
      const float v = finish_sum(sum_of(column[o * kWarp], half), channel, conv_.activation, added);
      if (to.y) store_element(to.y, task_.params.element, y + c * conv_.y_c, v);
      const SignBits bits = sign_bits(v, channel.pack_shift, to.y_nonzero == nullptr);
      is_plus |= static_cast<unsigned>(bits.plus) << o;
      is_nonzero |= static_cast<unsigned>(bits.nonzero) << o;
    }
    if (to.y_plus == nullptr || first >= task_.group_outputs) return;
    const std::int64_t bit =
        static_cast<std::int64_t>(number) * (task_.words * kWordChannels) + group_ * task_.group_outputs + first;
    store_bits(to.y_plus, bit, is_plus);
    if (to.y_nonzero) store_bits(to.y_nonzero, bit, is_nonzero);
  }

  // A warp's signs of one pixel. Where the warp's channels do not begin at a multiple of 16, other warps and blocks
  // have bits of the same pieces: the words were cleared before the launch, and bits are added to them.
  SUBBIT_DEVICE void store_bits(std::uint64_t* words, std::int64_t bit, unsigned bits) const {
    if (task_.packs_pieces) {
      auto* piece = reinterpret_cast<std::uint16_t*>(words) + bit / 16;
      SUBBIT_UNROLL
      for (int i = 0; i < kOutputs / 16; ++i) {
        if (first_output_ + warp_ * kOutputs + i * 16 < task_.group_outputs)
          piece[i] = static_cast<std::uint16_t>(bits >> (16 * i));
      }
      return;
    }
    auto* word = reinterpret_cast<unsigned*>(words) + bit / 32;
    const auto shift = static_cast<unsigned>(bit % 32);
    atomicOr(word, bits << shift);
    if (shift != 0 && bits >> (32 - shift) != 0) atomicOr(word + 1, bits >> (32 - shift));
  }

  const SharingTask& task_;
  const ConvProblem& conv_;
  unsigned char* shared_;
  int warp_, lane_, units_;
  int first_output_, group_;
  unsigned first_pixel_;
  bool has_indices_ = false;
  const std::uint32_t* index_words_ = nullptr;
  int next_word_ = 0;
  unsigned low_ = 0, high_ = 0;
};

template <class T>
struct Kind {
  using type = T;
};

// Calls f with the Kind of the Sharing that a tile is for.
template <class F>
auto with_sharing(const SharingTask& task, F f) {
  const auto with_words = [&](auto unit, auto two_per_word) {
    constexpr Unit kUnit = decltype(unit)::value;
    constexpr bool kTwoPerWord = decltype(two_per_word)::value;
    if constexpr (sharing_most_words(kUnit, kTwoPerWord) == 4) {
      if (task.tile.words_per_lane == 4) return f(Kind<Sharing<kUnit, 4, kTwoPerWord>>{});
    }
    return f(Kind<Sharing<kUnit, 2, kTwoPerWord>>{});
  };
  const auto with_unit = [&](auto unit) {
    return task.tile.two_per_word ? with_words(unit, std::true_type{}) : with_words(unit, std::false_type{});
  };
  return task.params.conv.unit == Unit::k3x3 ? with_unit(std::integral_constant<Unit, Unit::k3x3>{})
                                             : with_unit(std::integral_constant<Unit, Unit::k8x1x1>{});
}

}  // namespace subbit
