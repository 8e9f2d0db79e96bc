// What tests count.
#pragma once

#include <cstddef>

namespace standin {

// X(name)
#define STANDIN_COUNTERS(X)                                                                              \
  X(h2d) /* copies from host to device */                                                                \
  X(h2d_bytes)                                                                                           \
  X(d2h)                                                                                                 \
  X(d2h_bytes)                                                                                           \
  X(d2d)                                                                                                 \
  X(pageable_h2d) /* of the copies to the device, those from memory that is not pinned */                \
  X(host_waits) /* times that the host waited for the device */                                          \
  X(kernels)                                                                                             \
  X(immediate_kernels) /* kernels that could not be late, because only the result tells its own shape */ \
  X(registrations)                                                                                       \
  X(mallocs)                                                                                             \
  X(frees)                                                                                               \
  X(host_allocs)                                                                                         \
  X(graph_launches)

struct Counters {
#define STANDIN_DECLARE(name) long name = 0;
  STANDIN_COUNTERS(STANDIN_DECLARE)
#undef STANDIN_DECLARE
};

Counters& counters();

} // namespace standin
