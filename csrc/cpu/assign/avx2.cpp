#include "cpu/assign/steps.h"

namespace subbit {

void assign8_avx2(const AssignTask& task) { assign_lanes<8, 8>(task); }
void assign9_avx2(const AssignTask& task) { assign_lanes<9, 8>(task); }

}  // namespace subbit
