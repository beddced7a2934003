// The driver's functions with the types of cuda.h, so that what ctypes passes is checked in registers
// and on the stack. 64 bits where cuda.h has size_t or a pointer, 32 elsewhere.
#include <cstddef>
#include <cstdint>
#include <cstring>

using Status = int;
using Pointer = void*;

static Pointer current;
static std::uint64_t seen[12];

extern "C" {
Status cuInit(unsigned flags) { return flags; }
Status cuDriverGetVersion(int* version) { return *version = 12080, 0; }
Status cuDeviceGetCount(int* count) { return *count = 2, 0; }
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 40, 0; }
Status cuDeviceGetName(char* name, int size, int device) {
    return std::strncpy(name, device == 41 ? "NVIDIA Stub" : "other", size), 0;
}
Status cuDeviceTotalMem_v2(std::size_t* bytes, int device) {
    return *bytes = std::size_t(device) << 32, 0;
}
Status cuDeviceGetAttribute(int* value, int which, int device) {
    if (device != 41) return 101;
    return *value = which == 75 ? 9 : which == 76 ? 0 : which == 97 ? 232448 : 1000 * which, 0;
}
Status cuDevicePrimaryCtxRetain(Pointer* context, int device) {
    return *context = reinterpret_cast<Pointer>(0x7fff00000000ull + device), 0;
}
Status cuCtxSetCurrent(Pointer context) { return current = context, 0; }
Status cuModuleLoadData(Pointer* module, const void* image) {
    if (!current || std::memcmp(image, "\x7f" "ELF", 4)) return 201;
    return *module = reinterpret_cast<Pointer>(0x7fff11111111ull), 0;
}
Status cuModuleGetFunction(Pointer* function, Pointer module, const char* name) {
    if (module != reinterpret_cast<Pointer>(0x7fff11111111ull) || std::strcmp(name, "k")) return 500;
    return *function = reinterpret_cast<Pointer>(0x7fff22222222ull), 0;
}
Status cuFuncSetAttribute(Pointer function, int which, int value) {
    return function == reinterpret_cast<Pointer>(0x7fff22222222ull) && which == 8 && value == 200000
               ? 0 : 1;
}
Status cuFuncGetAttribute(int* value, int which, Pointer function) {
    return *value = which, function == reinterpret_cast<Pointer>(0x7fff22222222ull) ? 0 : 1;
}
Status cuFuncGetParamInfo(Pointer, std::size_t index, std::size_t* offset, std::size_t* size) {
    return *offset = 0, *size = 24, int(index);
}
Status cuGetErrorName(int status, const char** name) {
    return *name = status == 701 ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" : nullptr, 0;
}
Status cuLaunchKernel(
    Pointer function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, Pointer stream, void** parameters, void** extra) {
    if (extra || function != reinterpret_cast<Pointer>(0x7fff22222222ull)) return 1;
    if (gy == 77) return 701;
    const unsigned sizes[] = {gx, gy, gz, bx, by, bz, shared};
    for (int i = 0; i < 7; ++i) seen[i] = sizes[i];
    seen[7] = reinterpret_cast<std::uint64_t>(stream);
    return std::memcpy(seen + 8, parameters[0], 24), 0;
}
const std::uint64_t* stub_seen() { return seen; }
}
