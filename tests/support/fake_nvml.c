/* A stand-in for libnvidia-ml.so.1, so that the real Python binding runs without a GPU.
 * FAKE_NVML_GPUS (default 2) sets the number of devices, FAKE_NVML_INIT the answer to init.
 * With FAKE_NVML_WATTS the counters of energy run by the clock.
 * A test sets what a device tells by fake_set, and what it refuses by fake_refuse; the second
 * device refuses to tell its power limit. With -DOLD it lacks the newer functions. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us; } nvmlValue_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long timeStamp; nvmlValue_t sampleValue; } nvmlSample_t;
typedef struct { unsigned fieldId, scopeId; long long timestamp, latencyUsec; unsigned valueType; nvmlReturn_t nvmlReturn; nvmlValue_t value; } nvmlFieldValue_t;
typedef struct { unsigned pid; unsigned long long usedGpuMemory; unsigned gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct { unsigned pid, isRunning, gpuUtilization, memoryUtilization; unsigned long long maxMemoryUsage; unsigned sampleCount; unsigned long long sumGpuUtil, sumFbUtil, time, startTime; } nvmlAccountingStats_v2_t;
typedef struct { unsigned version, isSupportedDevice; } nvmlGpmSupport_t;
typedef struct { unsigned order; } *nvmlGpmSample_t;
typedef struct { unsigned metricId; nvmlReturn_t nvmlReturn; double value; struct { char *shortName, *longName, *unit; } metricInfo; } nvmlGpmMetric_t;
typedef struct { unsigned version, numMetrics; nvmlGpmSample_t sample1, sample2; nvmlGpmMetric_t metrics[1]; } nvmlGpmMetricsGet_t;

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6, INSUFFICIENT_SIZE };
enum { DEVICES = 4, INSTANCES = 2, ENTRIES = 256, MANY = 64, UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3, GRAPHICS_UTIL = 1 };

/* A card, or a MIG instance of it. */
typedef struct { unsigned card; int instance; } *nvmlDevice_t;
static struct { unsigned card; int instance; } cards[DEVICES], instances[DEVICES][INSTANCES];

static struct { char name[48]; unsigned card; int refused; double value; } entries[ENTRIES];
static nvmlSample_t samples[DEVICES][MANY];
static unsigned n_entries, n_samples[DEVICES], pids[DEVICES][MANY], n_pids[DEVICES], marks, marks_alive, inits;
static pid_t initialised_by;

static int from_environment(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

/* What a test uses. */
static void enter(const char *name, unsigned card, int refused, double value) {
    unsigned i = 0;
    while (i < n_entries && (entries[i].card != card || strcmp(entries[i].name, name))) i++;
    if (i == ENTRIES) abort();
    if (i == n_entries) n_entries++;
    strncpy(entries[i].name, name, sizeof entries[i].name - 1);
    entries[i].card = card;
    entries[i].refused = refused;
    entries[i].value = value;
}
void fake_set(const char *name, unsigned card, double value) { enter(name, card, SUCCESS, value); }
void fake_refuse(const char *name, unsigned card, int code) { enter(name, card, code, 0); }
void fake_sample(unsigned card, unsigned long long microseconds, unsigned percent) {
    nvmlSample_t sample = { microseconds, { .ui = percent } };
    samples[card][n_samples[card]++ % MANY] = sample;
}
void fake_process(unsigned card, unsigned pid) { pids[card][n_pids[card]++ % MANY] = pid; }
void fake_reset(void) {
    n_entries = inits = marks_alive = 0;
    memset(n_samples, 0, sizeof n_samples);
    memset(n_pids, 0, sizeof n_pids);
}
unsigned fake_inits(void) { return inits; }
unsigned fake_marks_alive(void) { return marks_alive; }
unsigned fake_sizeof(const char *name) {
#define SIZE(type) if (!strcmp(name, #type)) return sizeof(type##_t);
    SIZE(nvmlValue) SIZE(nvmlMemory) SIZE(nvmlUtilization) SIZE(nvmlSample) SIZE(nvmlFieldValue) SIZE(nvmlProcessInfo)
    SIZE(nvmlAccountingStats_v2) SIZE(nvmlGpmSupport) SIZE(nvmlGpmMetric)
    return 0;
}

/* The answer of one device: refused by name, or lost altogether ("*"), or what was set. */
static nvmlReturn_t look(const char *name, unsigned card, double otherwise, double *out) {
    *out = otherwise;
    if (getpid() != initialised_by) return UNINITIALIZED;
    for (unsigned i = 0; i < n_entries; i++) {
        if (entries[i].card != card) continue;
        if (!strcmp(entries[i].name, "*") && entries[i].refused) return entries[i].refused;
    }
    for (unsigned i = 0; i < n_entries; i++) {
        if (entries[i].card != card || strcmp(entries[i].name, name)) continue;
        *out = entries[i].value;
        return entries[i].refused;
    }
    return SUCCESS;
}
static nvmlReturn_t tell(const char *name, nvmlDevice_t device, double otherwise, unsigned *out) {
    double value;
    nvmlReturn_t refused = look(name, device->card, otherwise, &value);
    if (!refused) *out = (unsigned)value;
    return refused;
}
static nvmlReturn_t text(const char *name, nvmlDevice_t device, const char *answer, char *out, unsigned length) {
    unsigned ignored;
    nvmlReturn_t refused = tell(name, device, 0, &ignored);
    if (refused) return refused;
    strncpy(out, answer, length - 1);
    out[length - 1] = 0;
    return SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    nvmlReturn_t refused = from_environment("FAKE_NVML_INIT", SUCCESS);
    if (!refused) initialised_by = getpid(), inits++;
    return refused;
}
nvmlReturn_t nvmlShutdown(void) { initialised_by = 0; return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t code) { return "Other"; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    strncpy(out, "555.42", length);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    *count = from_environment("FAKE_NVML_GPUS", 2);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (index >= (unsigned)from_environment("FAKE_NVML_GPUS", 2)) return NOT_FOUND;
    cards[index].card = index;
    cards[index].instance = -1;
    *device = (nvmlDevice_t)&cards[index];
    unsigned ignored;
    return tell("handle", *device, 0, &ignored);
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    return text("name", device, device->card ? "NVIDIA Fake B" : "NVIDIA Fake A", out, length);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    static const char *cards_uuids[DEVICES] = { "GPU-aaaa", "GPU-bbbb", "GPU-aabb", "GPU-cccc" };
    static const char *instances_uuids[INSTANCES] = { "MIG-1111", "MIG-2222" };
    return text("uuid", device, device->instance < 0 ? cards_uuids[device->card] : instances_uuids[device->instance], out, length);
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    double used;
    nvmlReturn_t refused = look("memory", device->card, 1 << 30, &used);
    memory->total = 80ULL << 30;
    memory->used = (unsigned long long)used;
    memory->free = memory->total - memory->used;
    return refused;
}
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts) {
    *milliwatts = 350000;
    return device->card ? NOT_SUPPORTED : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) { return tell("power", device, 100000, milliwatts); }
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int type, unsigned *mhz) {
    return type == 1 ? tell("SM clock", device, 1400, mhz) : type == 2 ? tell("memory clock", device, 2600, mhz) : INVALID_ARGUMENT;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius) {
    return sensor ? INVALID_ARGUMENT : tell("temperature", device, 40, celsius);
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    rates->memory = 7;
    return device->instance >= 0 ? NOT_SUPPORTED : tell("utilisation", device, 50, &rates->gpu);
}
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, int type, unsigned long long after, unsigned *kind, unsigned *count, nvmlSample_t *out) {
    unsigned ignored, found = 0, room = *count;
    nvmlReturn_t refused = tell("samples", device, 0, &ignored);
    if (refused) return refused;
    if (type != 1) return INVALID_ARGUMENT;
    *kind = UNSIGNED_INT;
    *count = MANY;
    if (!out) return SUCCESS;
    for (unsigned i = 0; i < MANY && i < n_samples[device->card]; i++)
        if (samples[device->card][i].timeStamp > after && found < room) out[found++] = samples[device->card][i];
    *count = found;
    return found ? SUCCESS : NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    unsigned ignored;
    nvmlReturn_t refused = tell("fields", device, 0, &ignored);
    if (refused) return refused;
    for (int i = 0; i < count; i++) {
        char name[16] = "field ";
        double value;
        for (unsigned n = fields[i].fieldId, at = n > 99 ? 8 : 7; n; n /= 10) name[at--] = '0' + n % 10;
        fields[i].nvmlReturn = look(name, device->card, 0, &value);
        fields[i].valueType = UNSIGNED_LONG_LONG;
        fields[i].value.ull = (unsigned long long)value;
    }
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *out) { return NOT_SUPPORTED; }

#ifdef OLD
#define nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetComputeRunningProcesses_v2
#endif
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *out) {
    unsigned ignored, n = n_pids[device->card], room = *count;
    nvmlReturn_t refused = tell("processes", device, 0, &ignored);
    if (refused) return refused;
    *count = n;
    if (n > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < n; i++) out[i].pid = pids[device->card][i];
    return SUCCESS;
}

#ifndef OLD
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double value;
    nvmlReturn_t refused = look("energy", device->card, from_environment("FAKE_NVML_WATTS", 0) * (1e3 * now.tv_sec + 1e-6 * now.tv_nsec), &value);
    *millijoules = (unsigned long long)value;
    return refused;
}
nvmlReturn_t nvmlDeviceGetAccountingStats_v2(nvmlDevice_t device, nvmlAccountingStats_v2_t *stats) {
    double sum, count;
    nvmlReturn_t refused = look("accounting samples", device->card, -1, &count);
    look("accounting sum", device->card, 0, &sum);
    if (refused) return refused;
    if (count < 0) return NOT_SUPPORTED;
    if (stats->pid != (unsigned)getpid()) return NOT_FOUND;
    stats->sampleCount = (unsigned)count;
    stats->sumGpuUtil = (unsigned long long)sum;
    return tell("accounting mean", device, count ? sum / 100 / count : 0, &stats->gpuUtilization);
}
nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    return support->version == 1 ? tell("monitor", device, 0, &support->isSupportedDevice) : INVALID_ARGUMENT;
}
nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    marks_alive++;
    *sample = calloc(1, sizeof **sample);
    return SUCCESS;
}
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) { marks_alive--; free(sample); return SUCCESS; }
nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    unsigned ignored;
    sample->order = ++marks;
    return tell("monitor mark", device, 0, &ignored);
}
nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *wanted) {
    if (wanted->version != 1 || wanted->numMetrics != 1 || wanted->sample1->order >= wanted->sample2->order) return INVALID_ARGUMENT;
    wanted->metrics[0].nvmlReturn = wanted->metrics[0].metricId == GRAPHICS_UTIL ? look("monitor percent", 0, 0, &wanted->metrics[0].value) : NOT_SUPPORTED;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    nvmlReturn_t refused = tell("MIG mode", device, 2, current);
    *pending = *current;
    return refused ? refused : *current > 1 ? NOT_SUPPORTED : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) { *count = INSTANCES; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *out) {
    unsigned first;
    nvmlReturn_t refused = tell("first MIG instance", device, 0, &first);
    if (refused || index >= INSTANCES || index < first) return NOT_FOUND;
    instances[device->card][index].card = device->card;
    instances[device->card][index].instance = index;
    *out = (nvmlDevice_t)&instances[device->card][index];
    return SUCCESS;
}
#endif
