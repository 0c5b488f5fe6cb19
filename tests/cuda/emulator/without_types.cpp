// In place of attention_<type>.cu, for element types that a quick build leaves out; LONGSPAN_WITHOUT is a list of
// LONGSPAN_LAUNCHERS(type).
#include <stdexcept>

#include "cuda/attention.h"

namespace longspan::cuda {
namespace {
[[noreturn]] void refuse() {
  throw std::runtime_error("this build of the emulator was made without this element type");
}
}  // namespace

template <class T>
void launch_forward(const Problem<T>&, void*) {
  refuse();
}
template <class T>
void launch_backward(const Problem<T>&, void*) {
  refuse();
}
template <class T>
void launch_key_factors(const Problem<T>&, Wide<T>*, void*) {
  refuse();
}
template <class T>
void launch_query_deltas(const Problem<T>&, const Rows<const T>&, const Wide<T>*, Wide<T>*, void*) {
  refuse();
}

LONGSPAN_WITHOUT

}  // namespace longspan::cuda
