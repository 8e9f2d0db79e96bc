// What the stand-ins of operators ask of the runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#define STANDIN_EXPORT extern "C" __attribute__((visibility("default")))

struct StandinKernel {
  const char* name;
  int (*run)(void* data, char* message, size_t capacity); // returns a cudaError_t, and may write what went wrong
  void (*destroy)(void* data);
  void* data; // the runtime's from here on
  double bytes; // of its operands, for the clock
  double flops;
};

// Gives the stream a kernel.
STANDIN_EXPORT cudaError_t standin_launch(cudaStream_t stream, const StandinKernel* kernel);

// The host waits for the stream, because it runs the next kernel itself.
STANDIN_EXPORT cudaError_t standin_run_now(cudaStream_t stream, const char* name);

// Where the bytes of an address are.
STANDIN_EXPORT void* standin_bytes(const void* pointer);
