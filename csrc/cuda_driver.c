// What ggml's CUDA backend calls of NVIDIA's driver, looked up when it is called first: a library that was linked with
// libcuda could be built only where that lies, and loaded only where the driver is installed.
#include <cuda.h>
#include <dlfcn.h>
#include <stddef.h>

// Null where there is no driver. Two threads at once find the same.
static void * driver(const char * name) {
    static void * library = NULL;
    void * found = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
    if (found == NULL) {
        found = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
        __atomic_store_n(&library, found, __ATOMIC_RELEASE);
    }
    return found == NULL ? NULL : dlsym(found, name);
}

#define NAME(symbol) TEXT(symbol)
#define TEXT(symbol) #symbol // after cuda.h's own macros, which name the version of a function

#define FORWARD(symbol, parameters, arguments)                                                                                 \
    CUresult CUDAAPI symbol parameters {                                                                                       \
        CUresult (*function) parameters;                                                                                       \
        *(void **)&function = driver(NAME(symbol));                                                                            \
        return function == NULL ? CUDA_ERROR_NOT_INITIALIZED : function arguments;                                             \
    }

FORWARD(cuDeviceGet, (CUdevice * device, int ordinal), (device, ordinal))
FORWARD(cuDeviceGetAttribute, (int * value, CUdevice_attribute attribute, CUdevice device), (value, attribute, device))
FORWARD(cuMemGetAllocationGranularity,
    (size_t * granularity, const CUmemAllocationProp * properties, CUmemAllocationGranularity_flags option),
    (granularity, properties, option))
FORWARD(cuMemAddressReserve,
    (CUdeviceptr * at, size_t size, size_t alignment, CUdeviceptr wanted, unsigned long long flags),
    (at, size, alignment, wanted, flags))
FORWARD(cuMemAddressFree, (CUdeviceptr at, size_t size), (at, size))
FORWARD(cuMemCreate,
    (CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp * properties, unsigned long long flags),
    (handle, size, properties, flags))
FORWARD(cuMemRelease, (CUmemGenericAllocationHandle handle), (handle))
FORWARD(cuMemMap,
    (CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags),
    (at, size, offset, handle, flags))
FORWARD(cuMemUnmap, (CUdeviceptr at, size_t size), (at, size))
FORWARD(cuMemSetAccess, (CUdeviceptr at, size_t size, const CUmemAccessDesc * access, size_t count), (at, size, access, count))

CUresult CUDAAPI cuGetErrorString(CUresult error, const char ** text) {
    CUresult (*function)(CUresult, const char **);
    *(void **)&function = driver("cuGetErrorString");
    if (function != NULL) {
        return function(error, text);
    }
    *text = "NVIDIA's driver is not installed";
    return CUDA_SUCCESS;
}
