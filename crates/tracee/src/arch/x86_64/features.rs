//! What the processor can do beyond what every x86-64 can, as the kernel lets programs use it.

macro_rules! features {
    ($($name:tt)*) => {
        &[$(($name, || std::arch::is_x86_feature_detected!($name))),*]
    };
}

type Feature = (&'static str, fn() -> bool);

/// Names and tests. What a program chooses its code by; not what only the kernel uses.
const KNOWN: &[Feature] = features![
    "sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "avx" "avx2" "fma" "f16c" "aes" "pclmulqdq" "sha" "gfni" "vaes" "vpclmulqdq"
    "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
    "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16" "avx512vp2intersect" "bmi1" "bmi2" "lzcnt" "popcnt" "movbe"
    "adx" "rdrand" "rdseed" "cmpxchg16b" "xsave" "xsavec" "xsaveopt"
];

/// The names of those that this processor has.
#[must_use]
pub fn features() -> Vec<&'static str> {
    let there = KNOWN.iter().filter(|(_, has)| has());
    there.map(|(name, _)| *name).collect()
}
