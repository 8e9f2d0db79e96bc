// Operators of PyTorch for CUDA, replaced where the stand-in is loaded.
#pragma once

#include <torch/library.h>

namespace standin::library {

void add_copies(torch::Library& library);
void add_attention(torch::Library& library);
void add_normalization(torch::Library& library);
void add_recurrent(torch::Library& library);

} // namespace standin::library
