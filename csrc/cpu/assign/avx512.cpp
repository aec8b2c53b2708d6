#include "cpu/assign/steps.h"

namespace subbit {

void assign8_avx512(const AssignTask& task) { assign_lanes<8, 16>(task); }
void assign9_avx512(const AssignTask& task) { assign_lanes<9, 16>(task); }

}  // namespace subbit
