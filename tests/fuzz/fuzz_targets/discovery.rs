#![no_main]

#[allow(dead_code)] // each target uses its part
#[path = "../harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    harness::discovery(data);
});
