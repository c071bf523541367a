#define ITK_NIR_TABLE kernels_avx512
#define ITK_NIR_NAME "avx512"
#include "kernels.inl"
