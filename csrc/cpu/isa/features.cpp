#include "cpu/isa/features.h"

#include <cstdlib>
#include <stdexcept>

namespace subbit {

Level machine_level() {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system (XGETBV) whether the registers are saved.
  __builtin_cpu_init();
  // Every processor with AVX2 counts bits too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt")) return Level::kScalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Level::kAvx2;
  const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq") &&
                    __builtin_cpu_supports("gfni") &&
                    __builtin_cpu_supports("bmi2");  // every processor with the first has the others, but one
  return vbmi ? Level::kAvx512Vbmi : Level::kAvx512;
#else
  return Level::kScalar;
#endif
}

Level parse_level(const std::string& text) {
  const Level most = machine_level();
  for (int i = 0; i < kLevelCount; ++i) {
    if (text != kLevelNames[i]) continue;
    const Level level = static_cast<Level>(i);
    if (!runs_on(level, most)) {
      throw std::invalid_argument("SUBBIT_ISA=" + text + " is more than this machine has (" + name(most) +
                                  "): the level can only be lowered");
    }
    return level;
  }
  throw std::invalid_argument("SUBBIT_ISA must be scalar, avx2, avx512 or avx512vbmi, got '" + text + "'");
}

Level active_level() {
  const char* asked = std::getenv("SUBBIT_ISA");
  return asked == nullptr || *asked == '\0' ? machine_level() : parse_level(asked);
}

}  // namespace subbit
