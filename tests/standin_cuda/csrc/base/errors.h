// Errors, as sticky as those of CUDA.
//
// An error that a call returns stays with its thread until cudaGetLastError has told it. An error of the context (a
// kernel that failed) is returned by every later call of every thread, and nothing takes it away but a new process;
// tests may, with standin_forgive().
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace standin {

// Keeps the error as the thread's last one and returns it.
cudaError_t remember(cudaError_t error);

// Like remember(), with words that cudaGetErrorString adds.
cudaError_t remember(cudaError_t error, const std::string& detail);

cudaError_t take_last_error();
cudaError_t last_error();

// The context is lost from now on.
void lose_context(cudaError_t error, const std::string& detail);
cudaError_t context_error();
void forgive();

// Something the program must not do and CUDA would not notice. Tests fail on it.
void report_misuse(const std::string& what);
std::string take_misuse();

// A kernel of PyTorch that was launched: there is nothing here to run it on.
cudaError_t refuse_kernel(const std::string& name);
std::string take_refused_kernels();

const char* describe(cudaError_t error);

// Says which entry point is missing, and ends the process.
[[noreturn]] __attribute__((visibility("default"))) void abort_missing(const char* entry_point);

} // namespace standin
