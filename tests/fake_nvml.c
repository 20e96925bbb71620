/* A stand-in for libnvidia-ml.so.1, so that the real Python binding runs without a GPU.
 * FAKE_NVML_GPUS (default 2) sets the number of devices, FAKE_NVML_INIT the answer to init;
 * the second device refuses to tell its power limit. */
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct { unsigned index; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };

static struct { unsigned index; } devices[8];

static int from_environment(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static nvmlReturn_t give(const char *text, char *out, unsigned length) {
    strncpy(out, text, length - 1);
    out[length - 1] = 0;
    return SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) { return from_environment("FAKE_NVML_INIT", SUCCESS); }
nvmlReturn_t nvmlInit_v2(void) { return from_environment("FAKE_NVML_INIT", SUCCESS); }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t code) {
    return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : code == NOT_SUPPORTED ? "Not Supported" : "Other";
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    *count = from_environment("FAKE_NVML_GPUS", 2);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (index >= (unsigned)from_environment("FAKE_NVML_GPUS", 2)) return NOT_FOUND;
    devices[index].index = index;
    *device = (nvmlDevice_t)&devices[index];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    return give(device->index ? "NVIDIA Fake B" : "NVIDIA Fake A", out, length);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    return give(device->index ? "GPU-bbbb" : "GPU-aaaa", out, length);
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = 80ULL << 30;
    memory->free = 79ULL << 30;
    memory->used = 1ULL << 30;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts) {
    if (device->index) return NOT_SUPPORTED;
    *milliwatts = 350000;
    return SUCCESS;
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) { return give("555.42", out, length); }
