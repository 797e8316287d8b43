// cuBLAS and cuBLASLt: handles exist, every product is a no-op.  torch brings its own workspace.
// cuBLAS headers ask for cuda_fp16.h, which asks for CCCL; only the names of two types are needed here.
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
struct __half;
struct __half2;
struct __nv_bfloat16;
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cstdlib>
#include <cstring>
#undef cublasCreate_v2
#include "vgpu.h"
EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t* h) { *h = (cublasHandle_t)calloc(1, 256); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasDestroy_v2(cublasHandle_t h) { free(h); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* m) { *m = CUBLAS_DEFAULT_MATH; return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* m) { *m = CUBLAS_POINTER_MODE_HOST; return CUBLAS_STATUS_SUCCESS; }
EXPORT size_t cublasLtGetVersion(void) { return 130101; }
EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t, cudaDataType_t) { *d = (cublasLtMatmulDesc_t)calloc(1, 512); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { free(d); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* d, cudaDataType, uint64_t, uint64_t, int64_t) { *d = (cublasLtMatrixLayout_t)calloc(1, 512); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t d) { free(d); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* d) { *d = (cublasLtMatmulPreference_t)calloc(1, 512); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t d) { free(d); return CUBLAS_STATUS_SUCCESS; }
EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int want, cublasLtMatmulHeuristicResult_t* r, int* got) {
  *got = want > 0 ? 1 : 0;
  if (want > 0) { memset(r, 0, sizeof *r); r->state = CUBLAS_STATUS_SUCCESS; r->wavesCount = 1.0f; }
  return CUBLAS_STATUS_SUCCESS;
}
