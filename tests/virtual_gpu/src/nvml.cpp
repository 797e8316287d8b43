// NVML: one card, its memory as this process sees it.  The pip wheels bring no nvml.h, so the few records are here
// (layouts of NVML 12, nvml.h).
#include <cstdio>
#include <cstring>
#include "vgpu.h"
using namespace vgpu;

namespace {
enum Answer { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };
struct MemoryRecord { unsigned long long total, free, used; };
struct MemoryRecord2 { unsigned version; unsigned long long total, reserved, free, used; };
struct PciRecord {
  char legacy_bus[16];
  unsigned domain, bus, device, pci_device, pci_subsystem;
  char bus_id[32];
};
using Handle = void*;
Handle const kCard = (Handle)0x8000;

Answer text(char* out, unsigned room, const char* value) {
  if (strlen(value) >= room) return TOO_SMALL;
  strcpy(out, value);
  return OK;
}
const char* uuid() {  // as torch writes cudaDeviceProp::uuid, with NVML's prefix
  static char written[41] = "GPU-";
  char* at = written + 4;
  if (!*at) for (int i = 0; i < 16; ++i)
    at += sprintf(at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", (unsigned char)kUuid[i]);
  return written;
}
Answer card_if(bool found, Handle* h) {
  if (found) *h = kCard;
  return found ? OK : NOT_FOUND;
}
}  // namespace

#define NVML extern "C" __attribute__((visibility("default"))) Answer
NVML nvmlInit(void) { return OK; }
NVML nvmlInit_v2(void) { return OK; }
NVML nvmlInitWithFlags(unsigned) { return OK; }
NVML nvmlShutdown(void) { return OK; }
EXPORT const char* nvmlErrorString(Answer a) { return a == NOT_SUPPORTED ? "Not Supported" : a == NOT_FOUND ? "Not Found" : a == OK ? "Success" : "Invalid Argument"; }
NVML nvmlSystemGetDriverVersion(char* v, unsigned n) { return text(v, n, cfg().driver); }
NVML nvmlSystemGetCudaDriverVersion(int* v) { *v = 13000; return OK; }
NVML nvmlSystemGetCudaDriverVersion_v2(int* v) { *v = 13000; return OK; }

NVML nvmlDeviceGetCount(unsigned* n) { *n = 1; return OK; }
NVML nvmlDeviceGetCount_v2(unsigned* n) { *n = 1; return OK; }
NVML nvmlDeviceGetHandleByIndex(unsigned i, Handle* h) { return i ? INVALID_ARGUMENT : card_if(true, h); }
NVML nvmlDeviceGetHandleByIndex_v2(unsigned i, Handle* h) { return i ? INVALID_ARGUMENT : card_if(true, h); }
NVML nvmlDeviceGetHandleByUUID(const char* u, Handle* h) { return card_if(!strcmp(u, uuid()), h); }
NVML nvmlDeviceGetHandleByPciBusId_v2(const char* bus, Handle* h) {
  const char *a = strchr(bus, ':'), *b = strchr(kBus, ':');  // the domain is written with four or eight digits
  return card_if(a && !strcmp(a, b), h);
}
NVML nvmlDeviceGetIndex(Handle, unsigned* i) { *i = 0; return OK; }
NVML nvmlDeviceGetName(Handle, char* v, unsigned n) { return text(v, n, cfg().name); }
NVML nvmlDeviceGetUUID(Handle, char* v, unsigned n) { return text(v, n, uuid()); }
NVML nvmlDeviceGetCudaComputeCapability(Handle, int* major, int* minor) { *major = cfg().major; *minor = cfg().minor; return OK; }
NVML nvmlDeviceGetPciInfo_v3(Handle, PciRecord* p) {
  memset(p, 0, sizeof *p);
  p->bus = 1;
  snprintf(p->legacy_bus, sizeof p->legacy_bus, "%s", kBus);
  snprintf(p->bus_id, sizeof p->bus_id, "0000%s", kBus);
  return OK;
}

NVML nvmlDeviceGetMemoryInfo(Handle, MemoryRecord* r) {
  Memory m = memory();
  *r = {m.total, m.free, m.total - m.free};
  return OK;
}
NVML nvmlDeviceGetMemoryInfo_v2(Handle, MemoryRecord2* r) {
  if (r->version != (sizeof *r | 2u << 24)) return INVALID_ARGUMENT;
  Memory m = memory();
  *r = {r->version, m.total, 0, m.free, m.total - m.free};
  return OK;
}

NVML nvmlDeviceGetMaxPcieLinkGeneration(Handle, unsigned* v) { *v = cfg().pcie_generation; return OK; }
NVML nvmlDeviceGetCurrPcieLinkGeneration(Handle, unsigned* v) { *v = cfg().pcie_generation; return OK; }
NVML nvmlDeviceGetMaxPcieLinkWidth(Handle, unsigned* v) { *v = cfg().pcie_width; return OK; }
NVML nvmlDeviceGetCurrPcieLinkWidth(Handle, unsigned* v) { *v = cfg().pcie_width; return OK; }

// Processes that hold memory of the card are not told apart.
NVML nvmlDeviceGetComputeRunningProcesses(Handle, unsigned* n, void*) { *n = 0; return OK; }
NVML nvmlDeviceGetComputeRunningProcesses_v2(Handle, unsigned* n, void*) { *n = 0; return OK; }
NVML nvmlDeviceGetComputeRunningProcesses_v3(Handle, unsigned* n, void*) { *n = 0; return OK; }
NVML nvmlDeviceGetGraphicsRunningProcesses_v3(Handle, unsigned* n, void*) { *n = 0; return OK; }

NVML nvmlDeviceGetMigMode(Handle, unsigned*, unsigned*) { return NOT_SUPPORTED; }
NVML nvmlDeviceGetNvLinkRemoteDeviceType(Handle, unsigned, void*) { return NOT_SUPPORTED; }
NVML nvmlDeviceGetNvLinkRemotePciInfo_v2(Handle, unsigned, void*) { return NOT_SUPPORTED; }
NVML nvmlDeviceGetGpuFabricInfoV(Handle, void*) { return NOT_SUPPORTED; }
