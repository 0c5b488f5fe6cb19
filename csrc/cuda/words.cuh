// The words of the machine that kernels are written in: everything that is PTX, or that the emulator of the tests
// replaces by a word of its own (LONGSPAN_EMULATED). Kernels are ordinary CUDA beside them.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef LONGSPAN_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace longspan::cuda {

using half = c10::Half;
using bf16 = c10::BFloat16;

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr size_t kMostSharedMemory = 99 * 1024;  // of a block on compute capability 8.6, 8.9 and 12.0: the least of all

template <class T>
constexpr bool is_16_bit = sizeof(T) == 2;

// Sums and softmax statistics.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

#ifdef LONGSPAN_EMULATED

#define LONGSPAN_SHARED(name) unsigned char* name = emulator::shared_memory()
#define LONGSPAN_GRID_CONSTANT
#define LONGSPAN_LAUNCH(kernel, blocks, threads, shared, stream, ...)                                        \
  emulator::launch(                                                                                          \
      #kernel, reinterpret_cast<const void*>(kernel), blocks, threads, shared, [=] { kernel(__VA_ARGS__); }, \
      __VA_ARGS__)

using emulator::cp_async_16, emulator::cp_async_commit, emulator::cp_async_wait, emulator::ldmatrix_x4,
    emulator::ldmatrix_x4_transposed, emulator::mma_m16n8k16, emulator::pack;
inline float exp2_fast(float x) { return exp2f(x); }
inline float log2_fast(float x) { return log2f(x); }
inline float reciprocal_fast(float x) { return 1 / x; }

#else

// A failed launch says why.
inline void check_cuda(cudaError_t error) {
  STD_TORCH_CHECK(
      error != cudaErrorNoKernelImageForDevice,
      "longspan: its CUDA kernels were not compiled for this GPU (python -m longspan.info names those that they were "
      "compiled for). Install longspan again with TORCH_CUDA_ARCH_LIST set to this GPU's compute capability, 8.0 or "
      "newer; or set LONGSPAN_NO_EXT=1 to run the PyTorch references");
  STD_TORCH_CHECK(error == cudaSuccess, "longspan: CUDA error: ", cudaGetErrorString(error));
}
#define LONGSPAN_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define LONGSPAN_GRID_CONSTANT __grid_constant__
#define LONGSPAN_LAUNCH(kernel, blocks, threads, shared, stream, ...)                                           \
  do {                                                                                                          \
    if ((shared) > 48 * 1024)                                                                                   \
      longspan::cuda::check_cuda(                                                                               \
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared))); \
    kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    longspan::cuda::check_cuda(cudaGetLastError());                                                             \
  } while (0)

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts to copy 16 bytes from global to shared memory, or to clear them.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool copy) {
  const int bytes = copy ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most `pending` of the groups that this thread committed are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers: lane 8m + r gives row r of matrix m; each lane gets two numbers of each
// matrix.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// c[16 x 8] += a[16 x 16] b[16 x 8] over the lanes of a warp, in the layout of the PTX manual.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers in one word, `low` in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

#endif

__device__ __forceinline__ double exp2_fast(double x) { return exp2(x); }
__device__ __forceinline__ double log2_fast(double x) { return log2(x); }
__device__ __forceinline__ double reciprocal_fast(double x) { return 1 / x; }

// Hands out aligned pieces of the dynamic shared memory. In the emulator a forbidden zone follows each.
class Carver {
 public:
  __host__ __device__ explicit Carver(unsigned char* base) : base_(base) {}  // null: only to measure

  template <class T>
  __host__ __device__ T* take(size_t count) {
    T* piece = reinterpret_cast<T*>(base_ + used_);
    size_t bytes = (count * sizeof(T) + 127) / 128 * 128;
#ifdef LONGSPAN_EMULATED
    bytes += 128;
    if (base_) emulator::forbid(base_ + used_ + count * sizeof(T), base_ + used_ + bytes);
#endif
    used_ += bytes;
    return piece;
  }
  __host__ __device__ size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

// Over the four lanes that share a row of an mma tile.
template <class T>
__device__ __forceinline__ T quad_sum(T x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}
__device__ __forceinline__ float larger(float x, float y) { return fmaxf(x, y); }  // one instruction, `?:` takes two
__device__ __forceinline__ double larger(double x, double y) { return fmax(x, y); }
template <class T>
__device__ __forceinline__ T quad_max(T x) {
  x = larger(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return larger(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int lane = 16; lane; lane /= 2) x += __shfl_xor_sync(kWholeWarp, x, lane);
  return x;
}

}  // namespace longspan::cuda
