// What a test sets: from the environment when the process starts (STANDIN_CUDA_<NAME>), or while it runs.
#pragma once

#include <string>

namespace standin {

struct Settings {
  long long devices = 1;
  long long bytes = 8LL << 30; // memory of each device
  long long seed = -1; // of the order of work; -1: as late as possible, -2: at once
  long long patience = 2; // how often a query of unfinished work says "not ready" before the work is done
  long long malloc_fails_at = 0; // the n-th call of cudaMalloc from now on fails; 0: none
  long long host_alloc_bytes = -1; // pinned memory by cudaHostAlloc beyond this fails; -1: no limit
  long long register_bytes = -1; // registered memory beyond this fails; -1: no limit
  long long register_fails_at = 0; // the n-th registration from now on fails; 0: none
  long long poison_bytes = 64LL << 20; // allocations up to this size begin as 0xFF; larger ones are zeros
};

Settings& settings();

// The setting of that name; null if there is none.
long long* setting(const std::string& name);

} // namespace standin
