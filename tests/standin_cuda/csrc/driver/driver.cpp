// The functions of the driver that PyTorch and the libraries of CUDA call when they are loaded. Others abort by name.
#include <cstring>

#define STANDIN_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0;
int context; // its address is the one context

} // namespace

STANDIN_API int cuInit(unsigned) {
  return kSuccess;
}

STANDIN_API int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

STANDIN_API int cuGetErrorString(int, const char** text) {
  *text = "an error of the stand-in's driver";
  return kSuccess;
}

STANDIN_API int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}

STANDIN_API int cuDeviceGetAttribute(int* value, int, int) {
  *value = 0;
  return kSuccess;
}

STANDIN_API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return kSuccess;
}

STANDIN_API int cuDevicePrimaryCtxRetain(void** found, int) {
  *found = &context;
  return kSuccess;
}

STANDIN_API int cuCtxGetCurrent(void** found) {
  *found = &context;
  return kSuccess;
}

STANDIN_API int cuCtxSetCurrent(void*) {
  return kSuccess;
}
