// cuDNN: the real library plans every convolution; nothing is executed.
//
// cuDNN >= 9.8 can query its heuristics and finalise execution plans for a device it is only told about
// ("deviceless ahead-of-time compilation": CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR).  torch plans through a handle
// instead, so this file swaps the handle attributes for a device-properties descriptor and lets the real
// backend answer: engine choice and workspace sizes are cuDNN's own.
#include <cudnn.h>
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include "vgpu.h"
using vgpu::trace;

namespace {
void* sym(const char* name) {
  static void* lib = dlopen("libcudnn.so.9", RTLD_LAZY | RTLD_NOLOAD);
  if (!lib) lib = dlopen("libcudnn.so.9", RTLD_LAZY);
  void* p = lib ? dlsym(lib, name) : nullptr;
  if (!p) { fprintf(stderr, "vgpu: %s not found in libcudnn.so.9\n", name); abort(); }
  return p;
}
#define REAL(f) static auto real = (decltype(&f))sym(#f)

std::mutex mu;
std::unordered_map<cudnnBackendDescriptor_t, cudnnBackendDescriptorType_t> types;

cudnnStatus_t real_set(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t n, cudnnBackendAttributeType_t t, int64_t c, const void* v) {
  static auto f = (decltype(&cudnnBackendSetAttribute))sym("cudnnBackendSetAttribute");
  return f(d, n, t, c, v);
}

cudnnBackendDescriptor_t device() {
  static cudnnBackendDescriptor_t d = [] {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    int clock = 0, mem_clock = 0;
    cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0);
    cudaDeviceGetAttribute(&mem_clock, cudaDevAttrMemoryClockRate, 0);
    char json[2048];
    snprintf(json, sizeof json,
             "{\"maxGridSize\": [%d, %d, %d], \"maxBlockSize\": [%d, %d, %d], \"regsPerBlock\": %d, \"multiProcessorCount\": %d, "
             "\"warpSize\": 32, \"maxCtasPerSM\": %d, \"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": %d, \"pciDeviceId\": 0, "
             "\"isTccDriver\": 0, \"supportCoopLaunch\": 1, \"smClockRateKHz\": %d, \"memClockRateKHz\": %d, "
             "\"l2CacheSize\": %d, \"deviceVer\": %d, \"driverVer\": 13000, \"maxSharedMemoryPerBlock\": 49152, "
             "\"maxSharedMemoryPerBlockOptin\": %zu, \"reservedSharedMemoryPerBlock\": 1024, \"maxRegistersPerSM\": 65536, "
             "\"totalGlobalMem\": %zu, \"cudaDeviceId\": 0, \"deviceName\": \"%s\"}",
             p.maxGridSize[0], p.maxGridSize[1], p.maxGridSize[2], p.maxThreadsDim[0], p.maxThreadsDim[1], p.maxThreadsDim[2],
             p.regsPerBlock, p.multiProcessorCount, p.maxBlocksPerMultiProcessor, p.maxThreadsPerMultiProcessor, clock, mem_clock, p.l2CacheSize,
             p.major * 100 + p.minor * 10, p.sharedMemPerBlockOptin, p.totalGlobalMem, p.name);
    static auto create = (decltype(&cudnnBackendCreateDescriptor))sym("cudnnBackendCreateDescriptor");
    static auto fin = (decltype(&cudnnBackendFinalize))sym("cudnnBackendFinalize");
    cudnnBackendDescriptor_t d = nullptr;
    auto s = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d);
    if (!s) s = real_set(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, strlen(json), json);
    if (!s) s = fin(d);
    if (s) { fprintf(stderr, "vgpu: cuDNN refused the device description (status %d): %s\n", s, json); abort(); }
    return d;
  }();
  return d;
}
struct Handle { unsigned magic = 0x76677075; cudaStream_t stream = nullptr; };
}  // namespace

EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t* h) { *h = (cudnnHandle_t) new Handle; return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnDestroy(cudnnHandle_t h) { delete (Handle*)h; return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s) { ((Handle*)h)->stream = s; return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t h, cudaStream_t* s) { *s = ((Handle*)h)->stream; return CUDNN_STATUS_SUCCESS; }

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t t, cudnnBackendDescriptor_t* d) {
  REAL(cudnnBackendCreateDescriptor);
  auto s = real(t, d);
  if (!s) { std::lock_guard<std::mutex> g(mu); types[*d] = t; }
  return s;
}
EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d) {
  REAL(cudnnBackendDestroyDescriptor);
  { std::lock_guard<std::mutex> g(mu); types.erase(d); }
  return real(d);
}
EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t n, cudnnBackendAttributeType_t t, int64_t c, const void* v) {
  if (t == CUDNN_TYPE_HANDLE) {
    if ((int)n == 400 /* EXECUTION_PLAN_HANDLE */) { auto dev = device(); return real_set(d, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &dev); }
    return CUDNN_STATUS_SUCCESS;  // an operation graph needs no handle
  }
  return real_set(d, n, t, c, v);
}
EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d) {
  REAL(cudnnBackendFinalize);
  cudnnBackendDescriptorType_t t;
  { std::lock_guard<std::mutex> g(mu); auto it = types.find(d); t = it == types.end() ? (cudnnBackendDescriptorType_t)-1 : it->second; }
  if (t == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR || t == CUDNN_BACKEND_ENGINE_DESCRIPTOR) {
    auto dev = device();
    auto s = real_set(d, t == CUDNN_BACKEND_ENGINE_DESCRIPTOR ? CUDNN_ATTR_ENGINE_DEVICEPROP : CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &dev);
    if (s) trace("vgpu: cudnn: device attribute refused (%d) for descriptor type %d", s, t);
  }
  auto s = real(d);
  if (t == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    int64_t ws = -1, n = 0;
    static auto get = (decltype(&cudnnBackendGetAttribute))sym("cudnnBackendGetAttribute");
    if (!s) get(d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &ws);
    trace("vgpu: cudnn plan status %d workspace %ld", s, (long)ws);
  } else if (s) trace("vgpu: cudnn finalize type %d status %d", t, s);
  return s;
}
EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) { trace("vgpu: cudnn execute"); return CUDNN_STATUS_SUCCESS; }
