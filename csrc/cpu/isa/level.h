// The instruction levels that kernels are written for, lowest first.
#pragma once

namespace subbit {

enum class Level { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vbmi = 3 };

constexpr int kLevelCount = 4;
constexpr const char* kLevelNames[kLevelCount] = {"scalar", "avx2", "avx512", "avx512vbmi"};

constexpr const char* name(Level level) { return kLevelNames[static_cast<int>(level)]; }

// Whether what needs one level runs at another. Nothing else compares levels: this is the place for levels that do not
// include each other.
constexpr bool runs_on(Level needed, Level level) { return needed <= level; }

}  // namespace subbit
