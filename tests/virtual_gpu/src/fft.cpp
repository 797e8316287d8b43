// cuFFT: plans exist, transforms are no-ops.  What work area a plan takes cuFFT tells nobody without a card: none here.
// cuFFT headers ask for cuda_fp16.h, too, and use nothing of it.
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
struct __half;
struct __half2;
struct __nv_bfloat16;
#include <cufftXt.h>
#include "vgpu.h"
EXPORT cufftResult cufftXtMakePlanMany(cufftHandle, int, long long*, long long*, long long, long long, cudaDataType, long long*, long long, long long,
    cudaDataType, long long, size_t* work, cudaDataType) {
  *work = 0;
  return CUFFT_SUCCESS;
}
