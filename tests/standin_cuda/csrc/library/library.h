// Operators of PyTorch for CUDA, replaced where the stand-in is loaded.
#pragma once

#include <torch/library.h>

namespace standin::library {

void add_copies(torch::Library& library);
void add_attention(torch::Library& library);
void add_normalization(torch::Library& library);
void add_recurrent_cells(torch::Library& library);
void add_recurrent_layers(torch::Library& library);

// Of a library for tensors of CUDA, and of one for those that autograd looks at: these operators are made of others.
void add_recurrent_calls(torch::Library& library);

} // namespace standin::library
