// The CUDA runtime: device properties, streams and events, kernels that are not run.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <vector>
#include "vgpu.h"

namespace vgpu {
namespace {
thread_local cudaError_t last_error = cudaSuccess;

// With VGPU_EVENT_LAG=0 the device keeps up with the host; otherwise an event completes that many launches later, or
// when the host waits for its stream.
std::atomic<long> launches{0}, synced{0};
struct Stream { int priority = 0; long synced = 0; };
struct Event { long at = 0; Stream* stream = nullptr; };
Stream default_stream;
Stream* stream_of(cudaStream_t s) { return (uintptr_t)s > 2 ? (Stream*)s : &default_stream; }
bool done(const Event* e) {
  return cfg().event_lag == 0 || e->at < synced || (e->stream && e->at < e->stream->synced) || launches - e->at >= cfg().event_lag;
}
}  // namespace

cudaError_t fail(cudaError_t e) { last_error = e; return e; }
void launched() { launches.fetch_add(1, std::memory_order_relaxed); }
void synchronized() { synced = launches.load() + 1; }
cudaError_t occupancy(int* n, int block) {
  int b = block > 0 ? cfg().threads_per_sm / block : 1;
  *n = b < 1 ? 1 : b > cfg().blocks_per_sm ? cfg().blocks_per_sm : b;
  return cudaSuccess;
}
}  // namespace vgpu
using namespace vgpu;

// ------------------------------------------------------------------------------------------ device
EXPORT cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice); }
EXPORT cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSynchronize(void) { synchronized(); return cudaSuccess; }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* lo, int* hi) { if (lo) *lo = 0; if (hi) *hi = -5; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) { snprintf(s, n, "%s", kBus); return cudaSuccess; }
EXPORT cudaError_t cudaGetLastError(void) { auto e = last_error; last_error = cudaSuccess; return e; }
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT const char* cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaSuccess ? "cudaSuccess" : "cudaErrorVgpu"; }
EXPORT const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorNotReady ? "device not ready" : e == cudaSuccess ? "no error" : "vgpu: not supported"; }

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  const Config& c = cfg();
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", c.name);
  memcpy(p->uuid.bytes, kUuid, 16);
  p->totalGlobalMem = c.total;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = c.smem_optin; p->sharedMemPerMultiprocessor = c.smem_sm;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32; p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = c.threads_per_sm; p->maxBlocksPerMultiProcessor = c.blocks_per_sm;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536; p->major = c.major; p->minor = c.minor;
  p->textureAlignment = 512; p->texturePitchAlignment = 32; p->surfaceAlignment = 512;
  p->multiProcessorCount = c.sms; p->canMapHostMemory = 1; p->concurrentKernels = 1; p->asyncEngineCount = 2;
  p->pciBusID = 1; p->unifiedAddressing = 1; p->memoryBusWidth = 256; p->l2CacheSize = c.l2; p->streamPrioritiesSupported = 1;
  p->globalL1CacheSupported = p->localL1CacheSupported = 1; p->managedMemory = 1; p->concurrentManagedAccess = 1;
  p->computePreemptionSupported = 1; p->canUseHostPointerForRegisteredMem = 1; p->cooperativeLaunch = 1;
  p->hostRegisterSupported = 1; p->memoryPoolsSupported = 1; p->clusterLaunch = c.major >= 9;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  const Config& c = cfg();
  switch ((int)a) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrClockRate: *v = c.clock_khz; break;
    case cudaDevAttrMemoryClockRate: *v = c.mem_clock_khz; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = 256; break;
    case cudaDevAttrMultiProcessorCount: *v = c.sms; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = c.threads_per_sm; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = c.blocks_per_sm; break;
    case cudaDevAttrComputeCapabilityMajor: *v = c.major; break;
    case cudaDevAttrComputeCapabilityMinor: *v = c.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = c.smem_sm; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = c.smem_optin; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrL2CacheSize: *v = c.l2; break;
    case cudaDevAttrTextureAlignment: *v = 512; break;
    case cudaDevAttrConcurrentKernels: case cudaDevAttrUnifiedAddressing: case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrStreamPrioritiesSupported: case cudaDevAttrManagedMemory: case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCanMapHostMemory: case cudaDevAttrHostRegisterSupported: *v = 1; break;
    default: *v = 0; trace("vgpu: cudaDeviceGetAttribute %d -> 0", (int)a);
  }
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------ streams, events
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int prio) { *s = (cudaStream_t) new Stream{prio, 0}; return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) { return cudaStreamCreateWithPriority(s, f, 0); }
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int* p) { *p = stream_of(s)->priority; return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { stream_of(s)->synced = launches.load() + 1; return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* st) { *st = cudaStreamCaptureStatusNone; return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* st, unsigned long long* id, cudaGraph_t* g,
                                            const cudaGraphNode_t** deps, const cudaGraphEdgeData** edges, size_t* n) {
  *st = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (g) *g = nullptr;
  if (deps) *deps = nullptr;
  if (edges) *edges = nullptr;
  if (n) *n = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return fail(cudaErrorNotSupported); }
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* d, unsigned) { f(s, cudaSuccess, d); return cudaSuccess; }
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* d) { f(d); return cudaSuccess; }

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = (cudaEvent_t) new Event; return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) { delete (Event*)e; return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { *(Event*)e = {launches, stream_of(s)}; return cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return done((Event*)e) ? cudaSuccess : cudaErrorNotReady; }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  Event* v = (Event*)e;
  if (v->stream && v->stream->synced <= v->at) v->stream->synced = v->at + 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1e-3f * (((Event*)b)->at - ((Event*)a)->at); return cudaSuccess; }

// ------------------------------------------------------------------------------------------ kernels
struct LaunchCfg { dim3 grid, block; size_t smem; cudaStream_t stream; };
static thread_local std::vector<LaunchCfg> launch_stack;

EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t sm, CUstream_st* st) { launch_stack.push_back({g, b, sm, (cudaStream_t)st}); return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* sm, void* st) {
  if (launch_stack.empty()) return fail(cudaErrorUnknown);
  auto& l = launch_stack.back();
  *g = l.grid; *b = l.block; *sm = l.smem; *(cudaStream_t*)st = l.stream;
  launch_stack.pop_back();
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) { *k = (cudaKernel_t)f; return cudaSuccess; }
EXPORT void** __cudaRegisterFatBinary(void*) { static void* handle[4]; return handle; }
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT char __cudaInitModule(void**) { return 1; }

static std::unordered_map<const void*, const char*>* kernel_names;
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  if (!cfg().trace) return;
  if (!kernel_names) kernel_names = new std::unordered_map<const void*, const char*>;
  (*kernel_names)[host] = name;
}
static cudaError_t launch(const void* f) {
  launched();
  if (cfg().trace) { const char* n = kernel_names && kernel_names->count(f) ? (*kernel_names)[f] : "?"; trace("vgpu: launch %.400s", n); }
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3, dim3, void**, size_t, cudaStream_t) { return launch((const void*)k); }
EXPORT cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) { return launch(f); }
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* f, void**) { return launch(f); }
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) { return launch(f); }

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  static const int built[] = {75, 80, 86, 90, 100, 120};   // what the torch wheel was built for
  int cc = cfg().major * 10 + cfg().minor, best = 75;
  for (int b : built) if (b <= cc && b / 10 == cc / 10) best = b;
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->ptxVersion = a->binaryVersion = best;
  a->maxDynamicSharedSizeBytes = cfg().smem_optin;
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int block, size_t) { return occupancy(n, block); }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int block, size_t, unsigned) { return occupancy(n, block); }
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t* l, const void*, cudaJitOption*, void**, unsigned, cudaLibraryOption*, void**, unsigned) { *l = (cudaLibrary_t)0x2000; return cudaSuccess; }
EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t, const char*) { *k = (cudaKernel_t)0x3000; return cudaSuccess; }

EXPORT long vgpu_launches(void) { return launches; }
