// The CUDA driver: virtual memory for expandable segments, and the entry points NVRTC users and cuDNN look up.
#include <sys/mman.h>
#include <mutex>
#include <string>
#include <unordered_map>
#include "vgpu.h"
using namespace vgpu;

static std::mutex mu;
static std::unordered_map<CUmemGenericAllocationHandle, size_t> physical;  // cuMemCreate handles
static CUmemGenericAllocationHandle next_physical = 1;

// Reached by c10 through cudaGetDriverEntryPointByVersion (expandable segments).
static CUresult d_reserve(CUdeviceptr* p, size_t n, size_t align, CUdeviceptr, unsigned long long) {
  void* q = reserve_address(n, align);
  if (!q) return CUDA_ERROR_OUT_OF_MEMORY;
  *p = (CUdeviceptr)q;
  return CUDA_SUCCESS;
}
static CUresult d_address_free(CUdeviceptr p, size_t n) { munmap((void*)p, n); return CUDA_SUCCESS; }
static CUresult d_create(CUmemGenericAllocationHandle* h, size_t n, const CUmemAllocationProp*, unsigned long long) {
  std::lock_guard<std::mutex> g(mu);
  if (!charge(n)) return CUDA_ERROR_OUT_OF_MEMORY;
  *h = next_physical++; physical[*h] = n;
  return CUDA_SUCCESS;
}
static CUresult d_release(CUmemGenericAllocationHandle h) {
  std::lock_guard<std::mutex> g(mu);
  auto it = physical.find(h);
  if (it != physical.end()) { refund(it->second); physical.erase(it); }
  return CUDA_SUCCESS;
}
static CUresult d_map(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) { return CUDA_SUCCESS; }
static CUresult d_unmap(CUdeviceptr p, size_t n) { madvise((void*)p, n, MADV_DONTNEED); return CUDA_SUCCESS; }
static CUresult d_set_access(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return CUDA_SUCCESS; }
static CUresult d_granularity(size_t* g, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) { *g = kGranule; return CUDA_SUCCESS; }
static CUresult d_error_string(CUresult, const char** s) { *s = "vgpu driver error"; return CUDA_SUCCESS; }
static CUresult d_device_get(CUdevice* d, int n) { *d = n; return CUDA_SUCCESS; }
static CUresult d_device_attr(int* v, CUdevice_attribute a, CUdevice d) { return (CUresult)cudaDeviceGetAttribute(v, (cudaDeviceAttr)a, d); }
static CUresult d_ctx_get(CUcontext* c) { *c = (CUcontext)0x4000; return CUDA_SUCCESS; }
static CUresult d_ok(void) { return CUDA_SUCCESS; }
static CUresult d_unsupported(void) { return CUDA_ERROR_NOT_SUPPORTED; }

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* sym, void** f, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* st) {
  static const std::unordered_map<std::string, void*> table = {
      {"cuMemAddressReserve", (void*)d_reserve}, {"cuMemAddressFree", (void*)d_address_free}, {"cuMemCreate", (void*)d_create},
      {"cuMemRelease", (void*)d_release}, {"cuMemMap", (void*)d_map}, {"cuMemUnmap", (void*)d_unmap},
      {"cuMemSetAccess", (void*)d_set_access}, {"cuMemGetAllocationGranularity", (void*)d_granularity},
      {"cuGetErrorString", (void*)d_error_string}, {"cuDeviceGet", (void*)d_device_get}, {"cuDeviceGetAttribute", (void*)d_device_attr},
      {"cuCtxGetCurrent", (void*)d_ctx_get}, {"cuCtxSetCurrent", (void*)d_ok},
  };
  auto it = table.find(sym);
  *f = it == table.end() ? (void*)d_unsupported : it->second;
  trace("vgpu: driver entry %s%s", sym, it == table.end() ? " (unsupported)" : "");
  if (st) *st = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Linked by libcaffe2_nvrtc.so (jiterator, lazily compiled kernels).
EXPORT CUresult cuCtxGetCurrent(CUcontext* c) { return d_ctx_get(c); }
EXPORT CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGet(CUdevice* d, int n) { return d_device_get(d, n); }
EXPORT CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice d) { return d_device_attr(v, a, d); }
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* f, int* active) { *f = 0; *active = 1; return CUDA_SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { return d_ctx_get(c); }
EXPORT CUresult cuGetErrorString(CUresult e, const char** s) { return d_error_string(e, s); }
EXPORT CUresult cuPointerGetAttribute(void* v, CUpointer_attribute a, CUdeviceptr) {
  if (a == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) *(int*)v = 0; else *(void**)v = (void*)0x4000;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleLoadData(CUmodule* m, const void*) { *m = (CUmodule)0x5000; return CUDA_SUCCESS; }
EXPORT CUresult cuModuleLoadDataEx(CUmodule* m, const void*, unsigned, CUjit_option*, void**) { *m = (CUmodule)0x5000; return CUDA_SUCCESS; }
EXPORT CUresult cuModuleLoad(CUmodule* m, const char*) { *m = (CUmodule)0x5000; return CUDA_SUCCESS; }
EXPORT CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char*) { *f = (CUfunction)0x6000; return CUDA_SUCCESS; }
EXPORT CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) { *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0; return CUDA_SUCCESS; }
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int block, size_t) { occupancy(n, block); return CUDA_SUCCESS; }
EXPORT CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**) { launched(); trace("vgpu: cuLaunchKernel"); return CUDA_SUCCESS; }

// Looked up by the real cuDNN when it plans.
EXPORT CUresult cuDriverGetVersion(int* v) { *v = 13000; return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int* n) { *n = 1; return CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorName(CUresult, const char** s) { *s = "CUDA_ERROR_VGPU"; return CUDA_SUCCESS; }
// It compiles some kernels (NVRTC, for real) and loads them before a plan counts as built.
EXPORT CUresult cuLibraryLoadData(CUlibrary* l, const void*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned) { *l = (CUlibrary)0x7000; trace("vgpu: cuLibraryLoadData"); return CUDA_SUCCESS; }
EXPORT CUresult cuLibraryLoadFromFile(CUlibrary* l, const char*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned) { *l = (CUlibrary)0x7000; return CUDA_SUCCESS; }
EXPORT CUresult cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
EXPORT CUresult cuLibraryGetKernel(CUkernel* k, CUlibrary, const char*) { *k = (CUkernel)0x7100; return CUDA_SUCCESS; }
EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute, int, CUkernel, CUdevice) { return CUDA_SUCCESS; }
EXPORT CUresult cuKernelGetAttribute(int* v, CUfunction_attribute a, CUkernel, CUdevice) { return cuFuncGetAttribute(v, a, nullptr); }
EXPORT CUresult cuOccupancyMaxPotentialClusterSize(int* n, CUfunction, const CUlaunchConfig*) { *n = cfg().major >= 9 ? 8 : 1; return CUDA_SUCCESS; }
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction, void**, void**) { launched(); return CUDA_SUCCESS; }
#undef cuCtxPushCurrent
#undef cuCtxPopCurrent
#undef cuStreamGetCtx
#undef cuLinkCreate
#undef cuLinkAddData
#undef cuLinkDestroy
EXPORT CUresult cuCtxPushCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxPopCurrent(CUcontext* c) { return d_ctx_get(c); }
EXPORT CUresult cuStreamGetCtx(CUstream, CUcontext* c) { return d_ctx_get(c); }
EXPORT CUresult cuCtxGetLimit(size_t* v, CUlimit) { *v = 1 << 20; return CUDA_SUCCESS; }
EXPORT CUresult cuLinkCreate(unsigned, CUjit_option*, void**, CUlinkState* s) { *s = (CUlinkState)0x7200; return CUDA_SUCCESS; }
EXPORT CUresult cuLinkAddData(CUlinkState, CUjitInputType, void*, size_t, const char*, unsigned, CUjit_option*, void**) { return CUDA_SUCCESS; }
EXPORT CUresult cuLinkDestroy(CUlinkState) { return CUDA_SUCCESS; }
static char empty_cubin[64];
EXPORT CUresult cuLinkComplete(CUlinkState, void** c, size_t* n) { *c = empty_cubin; *n = sizeof empty_cubin; return CUDA_SUCCESS; }

