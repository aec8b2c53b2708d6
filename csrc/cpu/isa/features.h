// What this processor can run.
#pragma once

#include <string>

#include "cpu/isa/level.h"

namespace subbit {

// The highest level that processor, operating system and build can all run.
Level machine_level();

// The level calls run at: SUBBIT_ISA where it is set, else machine_level(). Throws
// std::invalid_argument when SUBBIT_ISA is not a level's name or asks for more than the machine has.
Level active_level();

// The level with this name, checked as for SUBBIT_ISA.
Level parse_level(const std::string& name);

}  // namespace subbit
