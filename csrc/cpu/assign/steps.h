// The same loop, compiled for each level.
#pragma once

#include "cpu/assign/lanes.h"

namespace subbit {

void assign8_scalar(const AssignTask& task);
void assign9_scalar(const AssignTask& task);
void assign8_avx2(const AssignTask& task);
void assign9_avx2(const AssignTask& task);
void assign8_avx512(const AssignTask& task);
void assign9_avx512(const AssignTask& task);

}  // namespace subbit
