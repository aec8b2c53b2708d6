#include "cpu/assign/steps.h"

namespace subbit {

void assign8_scalar(const AssignTask& task) { assign_lanes<8, 4>(task); }
void assign9_scalar(const AssignTask& task) { assign_lanes<9, 4>(task); }

}  // namespace subbit
