// Device memory as counted address space; pinned host memory; copies.
#include <sys/mman.h>
#include <cstring>
#include <map>
#include <mutex>
#include "vgpu.h"

namespace vgpu {
namespace {
constexpr uintptr_t kBase = 0x100000000000ull, kSpan = 0x200000000000ull;  // 32 TiB of addresses

std::recursive_mutex mu;
uintptr_t next_address = kBase;
bool context_made = false;
size_t used = 0, peak = 0;
std::map<uintptr_t, size_t> blocks;       // cudaMalloc'd, rounded sizes
std::map<uintptr_t, size_t> host_blocks;  // pinned host memory
using Lock = std::lock_guard<std::recursive_mutex>;

bool on_device(const void* p) { auto a = (uintptr_t)p; return a >= kBase && a < kBase + kSpan; }

cudaError_t device_malloc(void** out, size_t size) {
  Lock lock(mu);
  *out = nullptr;
  if (!size) return cudaSuccess;
  size_t n = round_up(size, kGranule);
  if (!charge(n)) {
    trace("vgpu: cudaMalloc %zu -> out of memory (%zu used, %zu free)", size, used, memory().free);
    return fail(cudaErrorMemoryAllocation);
  }
  void* p = reserve_address(n, kGranule);
  if (!p) { refund(n); return fail(cudaErrorMemoryAllocation); }
  blocks[(uintptr_t)p] = n;
  *out = p;
  return cudaSuccess;
}

cudaError_t device_free(void* p) {
  if (!p) return cudaSuccess;
  Lock lock(mu);
  auto it = blocks.find((uintptr_t)p);
  if (it == blocks.end()) return fail(cudaErrorInvalidValue);
  munmap(p, it->second);
  refund(it->second);
  blocks.erase(it);
  return cudaSuccess;
}

// Zero host memory without committing its pages.
void zero_host(void* dst, size_t n) {
  uintptr_t a = (uintptr_t)dst, lo = round_up(a, 4096), hi = (a + n) / 4096 * 4096;
  if (lo >= hi || madvise((void*)lo, hi - lo, MADV_DONTNEED) != 0) { memset(dst, 0, n); return; }
  memset(dst, 0, lo - a);
  memset((void*)hi, 0, a + n - hi);
}

void copy(void* dst, const void* src, size_t n) {
  if (!n || dst == src) return;
  bool to = on_device(dst), from = on_device(src);
  if ((!to && !from) || n <= cfg().copy_limit) memmove(dst, src, n);
  else if (!to) zero_host(dst, n);  // a large copy to the host brings finite values
}

void set(void* dst, int value, size_t n) {
  if (!on_device(dst) || n <= cfg().copy_limit) memset(dst, value, n);
}
}  // namespace

Memory memory() {
  Lock lock(mu);
  size_t taken = used + cfg().others + (context_made ? cfg().context : 0);
  return {cfg().total, cfg().total > taken ? cfg().total - taken : 0};
}
void make_context() { Lock lock(mu); context_made = true; }
bool charge(size_t n) {
  Lock lock(mu);
  make_context();
  if (n > memory().free) return false;
  used += n;
  if (used > peak) peak = used;
  return true;
}
void refund(size_t n) { Lock lock(mu); used -= n; }
size_t allocated() { return used; }

void* reserve_address(size_t n, size_t align) {
  Lock lock(mu);
  uintptr_t a = round_up(next_address, align < kGranule ? kGranule : align);
  void* p = mmap((void*)a, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  next_address = a + n;
  return p;
}
}  // namespace vgpu
using namespace vgpu;

EXPORT cudaError_t cudaMalloc(void** p, size_t n) { return device_malloc(p, n); }
EXPORT cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return device_malloc(p, n); }
EXPORT cudaError_t cudaFree(void* p) { return device_free(p); }
EXPORT cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return device_free(p); }
EXPORT cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  make_context();
  Memory m = memory();
  *f = m.free; *t = m.total;
  return cudaSuccess;
}

EXPORT cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  size_t r = round_up(n ? n : 1, 4096);
  void* q = mmap(nullptr, r, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (q == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  Lock lock(mu);
  make_context();
  host_blocks[(uintptr_t)q] = r;
  *p = q;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void* p) {
  Lock lock(mu);
  auto it = host_blocks.find((uintptr_t)p);
  if (it == host_blocks.end()) return cudaSuccess;
  munmap(p, it->second);
  host_blocks.erase(it);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void* p, size_t n, unsigned) { Lock lock(mu); host_blocks[(uintptr_t)p] = n; return cudaSuccess; }
EXPORT cudaError_t cudaHostUnregister(void* p) { Lock lock(mu); host_blocks.erase((uintptr_t)p); return cudaSuccess; }

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  if (on_device(p)) { a->type = cudaMemoryTypeDevice; a->devicePointer = (void*)p; return cudaSuccess; }
  Lock lock(mu);
  auto it = host_blocks.upper_bound((uintptr_t)p);
  if (it != host_blocks.begin() && (--it, (uintptr_t)p < it->first + it->second)) {
    a->type = cudaMemoryTypeHost; a->hostPointer = a->devicePointer = (void*)p;
  } else { a->type = cudaMemoryTypeUnregistered; a->device = -1; a->hostPointer = (void*)p; }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) { copy(d, s, n); synchronized(); return cudaSuccess; }
EXPORT cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t) { launched(); copy(d, s, n); return cudaSuccess; }
EXPORT cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t) { copy(d, s, n); return cudaSuccess; }
EXPORT cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind, cudaStream_t) {
  launched();
  if (w * h <= cfg().copy_limit || !on_device(d)) for (size_t i = 0; i < h; ++i) copy((char*)d + i * dp, (const char*)s + i * sp, w);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
EXPORT cudaError_t cudaMemset(void* d, int v, size_t n) { set(d, v, n); return cudaSuccess; }
EXPORT cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t) { launched(); set(d, v, n); return cudaSuccess; }
EXPORT cudaError_t cudaGetSymbolAddress(void** p, const void*) {
  static void* area = reserve_address(16 << 20, kGranule);
  *p = area; return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) { *p = (cudaMemPool_t)0x1000; return cudaSuccess; }
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) { *(uint64_t*)v = used; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* v) { *(uint64_t*)v = 0; return cudaSuccess; }

// For tests: what the driver counted, independent of torch's own statistics.
EXPORT size_t vgpu_used(void) { return used; }
EXPORT size_t vgpu_peak(void) { return peak; }
EXPORT void vgpu_reset_peak(void) { peak = used; }
