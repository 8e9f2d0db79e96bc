#include "base/settings.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace standin {
namespace {

std::map<std::string, long long Settings::*> names() {
  return {
      {"devices", &Settings::devices},
      {"bytes", &Settings::bytes},
      {"seed", &Settings::seed},
      {"patience", &Settings::patience},
      {"malloc_fails_at", &Settings::malloc_fails_at},
      {"host_alloc_bytes", &Settings::host_alloc_bytes},
      {"register_bytes", &Settings::register_bytes},
      {"register_fails_at", &Settings::register_fails_at},
      {"poison_bytes", &Settings::poison_bytes},
  };
}

Settings from_environment() {
  Settings found;
  for (const auto& [name, member] : names()) {
    std::string variable = "STANDIN_CUDA_";
    for (const char c : name) {
      variable += static_cast<char>(std::toupper(c));
    }
    const char* text = std::getenv(variable.c_str());
    if (text == nullptr) {
      continue;
    }
    char* end = nullptr;
    found.*member = std::strtoll(text, &end, 10);
    if (end == text || *end != '\0') {
      std::fprintf(stderr, "stand-in CUDA: %s is %s, and a whole number is expected\n", variable.c_str(), text);
      std::abort();
    }
  }
  return found;
}

} // namespace

Settings& settings() {
  static auto* known = new Settings(from_environment());
  return *known;
}

long long* setting(const std::string& name) {
  static const auto* known = new std::map<std::string, long long Settings::*>(names());
  const auto found = known->find(name);
  return found == known->end() ? nullptr : &(settings().*found->second);
}

} // namespace standin
