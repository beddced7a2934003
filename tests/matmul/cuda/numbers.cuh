// What operands and conversions are worth (test_numbers.py).
namespace unspool {

struct Numbers {
    const char* in;  // floats
    char* out;       // words, one per float; or 256 floats
    int count;
};

// Every byte as an operand A of that kind, times 1 (an E4M3's bits): one byte per row is not zero.
template <Kind kind, class Sum = float, word one = 0x38>
UNSPOOL_DEVICE void all_bytes(const Numbers& a) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    for (int first = 0; first < 256; first += 16) {
        Sum d[4] = {};
        const word r[4] = {t ? 0 : word(first + g), t ? 0 : word(first + g + 8), 0, 0};
        mma<kind>(d, d, r, lane == 0 ? one : 0, 0);
        if (t) continue;
        store_global<float>(a.out + 4 * (first + g), float(d[0]));
        store_global<float>(a.out + 4 * (first + g + 8), float(d[2]));
    }
}

template <class Convert>
UNSPOOL_DEVICE void convert_all(const Numbers& a, const Convert& convert) {
    for (int i = thread_index(); i < a.count; i += 32)
        store_global<word>(a.out + 4 * i, convert(load_global<float>(a.in + 4 * i)));
}

}  // namespace unspool

using namespace unspool;

UNSPOOL_KERNEL(bytes_e4m3, Numbers, a) { all_bytes<Kind::e4m3>(a); }
UNSPOOL_KERNEL(bytes_e5m2, Numbers, a) { all_bytes<Kind::e5m2>(a); }
UNSPOOL_KERNEL(bytes_e2m1, Numbers, a) { all_bytes<Kind::f8f6f4_e2m1>(a); }
UNSPOOL_KERNEL(bytes_e2m3, Numbers, a) { all_bytes<Kind::f8f6f4_e2m3>(a); }
UNSPOOL_KERNEL(bytes_e3m2, Numbers, a) { all_bytes<Kind::f8f6f4_e3m2>(a); }
UNSPOOL_KERNEL(bytes_s8, Numbers, a) { all_bytes<Kind::s8, int, 1>(a); }
UNSPOOL_KERNEL(to_f16, Numbers, a) { convert_all(a, f16_of); }
UNSPOOL_KERNEL(to_bf16, Numbers, a) { convert_all(a, bf16_of); }
UNSPOOL_KERNEL(to_e4m3, Numbers, a) { convert_all(a, e4m3_of); }
UNSPOOL_KERNEL(to_s8, Numbers, a) { convert_all(a, s8_of); }
UNSPOOL_KERNEL(to_e2m1, Numbers, a) {
    for (int i = thread_index(); i < a.count / 4; i += 32) {
        const Quad of = load_global<Quad>(a.in + 16 * i);
        const word four[4] = {of.x, of.y, of.z, of.w};
        float values[4];
        std::memcpy(values, four, sizeof(four));
        store_global<word>(a.out + 4 * i, e2m1_of(values[0], values[1], values[2], values[3]));
    }
}
