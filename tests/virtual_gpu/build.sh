#!/bin/sh
# build.sh [PYTHON [OUT]]: compile libvgpu.so for the torch that PYTHON imports, into OUT (default build/ beside this file).
# Needs g++ and nm.  CUDA headers come with torch's own dependencies: nvidia/cu13, nvidia/cudnn, and triton.
set -e
here=$(cd "$(dirname "$0")" && pwd)
PYTHON=${1:-python3}
OUT=${2:-$here/build}
SITE=$("$PYTHON" -c 'from importlib.metadata import distribution; print(distribution("torch").locate_file(""))')
[ -f "$SITE/nvidia/cu13/include/cuda.h" ] || { echo "build.sh: $SITE has no nvidia/cu13: install a CUDA 13 build of torch" >&2; exit 1; }
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

INCLUDE="-I$SITE/nvidia/cu13/include -I$SITE/nvidia/cudnn/include -I$SITE/triton/backends/nvidia/include"
objects=
for part in config memory runtime driver blas fft dnn nvml; do
  g++ -std=c++17 -O2 -fPIC -fvisibility=hidden -Wall -Wno-deprecated-declarations $INCLUDE -c "$here/src/$part.cpp" -o "$work/$part.o"
  objects="$objects $work/$part.o"
done
"$PYTHON" "$here/src/gen_stubs.py" "$work/stubs.c" $objects
gcc -O1 -fPIC -fno-builtin -w -c "$work/stubs.c" -o "$work/stubs.o"
g++ -shared -Wl,-soname,libvgpu.so -o "$OUT/libvgpu.so" $objects "$work/stubs.o" -ldl -lpthread

# Opened by name: empty libraries that depend on libvgpu.so, where the symbols are (xformers is built for CUDA 12).
for name in libcuda.so.1 libnvidia-ml.so.1 libcudart.so.12; do
  echo 'void vgpu_empty(void) {}' | gcc -shared -fPIC -x c - -Wl,--no-as-needed -L"$OUT" -lvgpu -Wl,-rpath,'$ORIGIN' -Wl,-soname,$name -o "$OUT/$name"
done
