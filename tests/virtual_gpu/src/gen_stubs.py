"""Write a C file with a do-nothing body for every CUDA symbol torch imports and the given objects do not define.

gen_stubs.py STUBS.c OBJECT...
"""

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

CUDA = re.compile(r"(__cuda|cuda|cublas|cudnn|cusolver|cusparse|cufft|cu(?=[A-Z]))")
REAL = re.compile(
    r"cudnn(Create|Destroy|Set|Get)\w*Descriptor\w*$|cudnnSetConvolution|cudnnBackendGetAttribute|cuFile"
    r"|cudnnGet(Version|ErrorString|LastErrorString|Property|CudartVersion)$"
)
"""Parts of cuDNN that work on the host alone, and cuFile: left to the real libraries."""
LIBRARIES = {
    "torch": "torch/lib/lib*.so",
    "torchvision": "torchvision/*.so",
    "xformers": "xformers/**/*.so",
    "bitsandbytes": "bitsandbytes/libbitsandbytes_cuda13*.so",
}
"""By distribution."""
STUB = '__attribute__((visibility("default"))) int {0}(void) {{ vgpu_stub_called("{0}"); return 0; }}\n'


def symbols(path: Path, *options: str) -> set[str]:
    listing = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}


def libraries() -> list[Path]:
    places = [(known.locate_file(""), files) for name, files in LIBRARIES.items() for known in distributions(name=name)]
    return [found for place, files in places for found in Path(str(place)).glob(files)]


def main(out: str, *objects: str) -> None:
    asked = (name for library in libraries() for name in symbols(library, "-D", "--undefined-only"))
    wanted = {name for name in asked if CUDA.match(name)}
    have = {name for made in objects for name in symbols(Path(made), "--defined-only", "-g")}
    names = sorted(name for name in wanted - have if not REAL.match(name))
    Path(out).write_text("extern void vgpu_stub_called(const char*);\n" + "".join(map(STUB.format, names)))


if __name__ == "__main__":
    main(*sys.argv[1:])
