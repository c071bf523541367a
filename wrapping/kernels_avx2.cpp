#define ITK_NIR_TABLE kernels_avx2
#define ITK_NIR_NAME "avx2"
#include "kernels.inl"
