#define ITK_NIR_TABLE kernels_base
#define ITK_NIR_NAME "base"
#include "kernels.inl"
