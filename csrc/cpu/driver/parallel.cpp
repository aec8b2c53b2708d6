#include "cpu/driver/parallel.h"

#include <unistd.h>

namespace subbit {
namespace {

const pid_t kLoadedIn = getpid();

}  // namespace

bool is_forked_child() { return getpid() != kLoadedIn; }

}  // namespace subbit
