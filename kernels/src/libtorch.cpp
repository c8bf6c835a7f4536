// What tch lacks, over libtorch's public C++ API. No exception leaves a function: it comes back as text.
#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/version.h>
#include <dlfcn.h>
#include <cstring>
#include <exception>
#include <memory>

namespace {
char *text(const char *words) { return strdup(words); }
}

extern "C" {

// A tensor over memory that `context` keeps; `drop(context)` is called once, when the last storage over it goes,
// or before this returns an error.
char *aolab_from_blob(void *data, const int64_t *dims, int rank, int kind, void *context,
                      void (*drop)(void *), void **out) {
  std::shared_ptr<void> keep(context, drop);
  try {
    auto options = at::TensorOptions().dtype(static_cast<c10::ScalarType>(kind));
    auto shape = at::IntArrayRef(dims, static_cast<size_t>(rank));
    auto tensor = at::from_blob(data, shape, [keep](void *) mutable { keep.reset(); }, options);
    *out = new at::Tensor(tensor);
    return nullptr;
  } catch (const std::exception &error) {
    return text(error.what());
  }
}

// Whether this is the only tensor over its memory: nothing else could write to it, now or later.
int aolab_sole_owner(void *pointer) {
  try {
    auto &tensor = *static_cast<at::Tensor *>(pointer);
    return tensor.defined() && tensor.layout() == at::kStrided && tensor.device().is_cpu() &&
           !tensor.requires_grad() && tensor.use_count() == 1 && tensor.has_storage() &&
           tensor.storage().use_count() == 1 && !tensor.is_neg() && !tensor.is_conj() &&
           tensor.is_contiguous();
  } catch (const std::exception &) {
    return 0;
  }
}

// The version of libtorch whose headers this was built with, and what the loaded one says of its build.
const char *aolab_built_with() { return TORCH_VERSION; }
char *aolab_show_config() {
  try {
    return text(at::show_config().c_str());
  } catch (const std::exception &) {
    return text("");
  }
}

// Loads the CUDA half of libtorch, if it lies beside the rest. Linkers drop it from the program, because no symbol of it is
// named: it makes itself known when it is loaded. Null when it is there.
char *aolab_open_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) return nullptr;
  const char *why = dlerror();
  return text(why ? why : "libtorch_cuda.so cannot be loaded");
}
}
