#include "base/errors.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

namespace standin {
namespace {

thread_local cudaError_t last = cudaSuccess;

struct Shared {
  std::mutex mutex;
  cudaError_t context = cudaSuccess;
  std::map<int, std::string> details; // the newest words for each error
  std::string misuse;
  std::string refused;
};

Shared& shared() {
  static auto* made = new Shared;
  return *made;
}

std::string take(std::string Shared::* member) {
  const std::lock_guard<std::mutex> lock(shared().mutex);
  std::string taken;
  taken.swap(shared().*member);
  return taken;
}

const char* name_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorInvalidMemcpyDirection: return "invalid copy direction for memcpy";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorPeerAccessAlreadyEnabled: return "peer access is already enabled";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorNotPermitted: return "operation not permitted";
    case cudaErrorAssert: return "device-side assert triggered";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorHostMemoryAlreadyRegistered: return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered: return "pointer does not correspond to a registered memory region";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureWrongThread:
      return "attempt to terminate a thread-local capture sequence from another thread";
    case cudaErrorStreamCaptureUnmatched: return "capture was not initiated in this stream";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    default: return "an error that the stand-in has no words for";
  }
}

} // namespace

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) {
    last = error;
  }
  return error;
}

cudaError_t remember(cudaError_t error, const std::string& detail) {
  const std::lock_guard<std::mutex> lock(shared().mutex);
  shared().details[error] = detail;
  return remember(error);
}

cudaError_t take_last_error() {
  const cudaError_t taken = context_error() != cudaSuccess ? context_error() : last;
  last = cudaSuccess;
  return taken;
}

cudaError_t last_error() {
  return context_error() != cudaSuccess ? context_error() : last;
}

void lose_context(cudaError_t error, const std::string& detail) {
  std::fprintf(stderr, "stand-in CUDA: the context is lost: %s: %s\n", name_of(error), detail.c_str());
  const std::lock_guard<std::mutex> lock(shared().mutex);
  if (shared().context == cudaSuccess) {
    shared().context = error;
    shared().details[error] = detail;
  }
}

cudaError_t context_error() {
  const std::lock_guard<std::mutex> lock(shared().mutex);
  return shared().context;
}

void forgive() {
  const std::lock_guard<std::mutex> lock(shared().mutex);
  shared().context = cudaSuccess;
  last = cudaSuccess;
}

void report_misuse(const std::string& what) {
  const std::lock_guard<std::mutex> lock(shared().mutex);
  shared().misuse += what + "\n";
}

std::string take_misuse() {
  return take(&Shared::misuse);
}

cudaError_t refuse_kernel(const std::string& name) {
  {
    const std::lock_guard<std::mutex> lock(shared().mutex);
    shared().refused += name + "\n";
  }
  return remember(
      cudaErrorNotSupported, "the stand-in runs no kernel of the library, and this one was launched: " + name);
}

std::string take_refused_kernels() {
  return take(&Shared::refused);
}

const char* describe(cudaError_t error) {
  thread_local std::string text;
  text = name_of(error);
  const std::lock_guard<std::mutex> lock(shared().mutex);
  const auto found = shared().details.find(error);
  if (found != shared().details.end()) {
    text += " (" + found->second + ")";
  }
  return text.c_str();
}

void abort_missing(const char* entry_point) {
  std::fprintf(stderr, "stand-in CUDA: %s was called, and the stand-in does not have it\n", entry_point);
  std::abort();
}

} // namespace standin
