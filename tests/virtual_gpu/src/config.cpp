// The card's properties, read from the environment when first asked for, and again by vgpu_configure().
#include <unistd.h>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "vgpu.h"

namespace vgpu {
namespace {

void read_bytes(const char* variable, size_t* value) {  // G, M and K are binary
  const char* s = getenv(variable);
  if (!s || !*s) return;
  char* end = nullptr;
  size_t unit = 1;
  double number = strtod(s, &end);
  switch (*end) {
    case 'g': case 'G': unit = 1ull << 30; break;
    case 'm': case 'M': unit = 1ull << 20; break;
    case 'k': case 'K': unit = 1ull << 10; break;
    case 0: *value = strtoull(s, nullptr, 10); return;
  }
  *value = (size_t)(number * unit);
}
void read_int(const char* variable, int* value) { if (const char* s = getenv(variable)) *value = atoi(s); }
void read_text(const char* variable, char* value, size_t n) { if (const char* s = getenv(variable)) snprintf(value, n, "%s", s); }

// CUDA C++ Programming Guide, technical specifications per compute capability; multiprocessors and cache of the
// T4, A100, RTX 3070, RTX 4090, H100 SXM, B200 and RTX 5090.
void set_generation(Config& c) {
  switch (c.major * 10 + c.minor) {
    case 75: c.sms = 40; c.threads_per_sm = 1024; c.smem_sm = c.smem_optin = 65536; break;
    case 80: c.sms = 108; c.threads_per_sm = 2048; c.blocks_per_sm = 32; c.smem_sm = 167936; c.smem_optin = 166912; c.l2 = 40 << 20; break;
    case 86: break;
    case 89: c.sms = 128; c.blocks_per_sm = 24; c.l2 = 72 << 20; break;
    case 90: c.sms = 132; c.threads_per_sm = 2048; c.blocks_per_sm = 32; c.smem_sm = 233472; c.smem_optin = 232448; c.l2 = 50 << 20; break;
    case 100: c.sms = 148; c.threads_per_sm = 2048; c.blocks_per_sm = 32; c.smem_sm = 233472; c.smem_optin = 232448; c.l2 = 126 << 20; break;
    case 120: c.sms = 170; c.blocks_per_sm = 24; c.l2 = 96 << 20; break;
  }
}

Config load() {
  Config c;
  if (const char* s = getenv("VGPU_CC")) sscanf(s, "%d.%d", &c.major, &c.minor);
  set_generation(c);
  size_t l2 = c.l2;
  read_bytes("VGPU_MEM", &c.total);
  read_bytes("VGPU_CONTEXT", &c.context);
  read_bytes("VGPU_OTHERS", &c.others);
  read_bytes("VGPU_COPY_LIMIT", &c.copy_limit);
  read_bytes("VGPU_L2", &l2);
  c.l2 = (int)l2;
  read_int("VGPU_SMS", &c.sms);
  read_int("VGPU_CLOCK_KHZ", &c.clock_khz);
  read_int("VGPU_MEM_CLOCK_KHZ", &c.mem_clock_khz);
  read_int("VGPU_PCIE_GENERATION", &c.pcie_generation);
  read_int("VGPU_PCIE_WIDTH", &c.pcie_width);
  read_text("VGPU_NAME", c.name, sizeof c.name);
  read_text("VGPU_DRIVER", c.driver, sizeof c.driver);
  if (const char* s = getenv("VGPU_EVENT_LAG")) c.event_lag = atol(s);
  c.trace = getenv("VGPU_TRACE") != nullptr;
  return c;
}
Config& current() { static Config c = load(); return c; }

void write_line(const char* fmt, va_list ap) {
  char line[512];
  int n = vsnprintf(line, sizeof line - 1, fmt, ap);
  if (n > (int)sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  (void)!write(2, line, n);
}
}  // namespace

const Config& cfg() { return current(); }

void trace(const char* fmt, ...) {
  if (!cfg().trace) return;
  va_list ap;
  va_start(ap, fmt);
  write_line(fmt, ap);
  va_end(ap);
}
}  // namespace vgpu

// For a process forked before its card was known; call it before anything else asks about the device.
EXPORT void vgpu_configure(void) { vgpu::current() = vgpu::load(); }
EXPORT void vgpu_stub_called(const char* name) { vgpu::trace("vgpu: stub %s", name); }
