//! Guests that do anything.

use crate::testing;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_states_and_bytes_neither_panic_nor_last(
        data in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        testing::run(&data);
    }

    /// With an instruction of the kinds that are emulated in front, more gets through.
    #[test]
    fn arbitrary_operands_of_known_instructions_neither_panic_nor_last(
        state in proptest::collection::vec(any::<u8>(), 200),
        opcode in proptest::sample::select(OPCODES),
        prefixes in proptest::collection::vec(proptest::sample::select(PREFIXES), 0..3),
        operands in proptest::collection::vec(any::<u8>(), 10),
    ) {
        let mut data = state;
        // An odd number of times, so that some end up where the instruction is read.
        for _ in 0..21 {
            data.push(15);
            data.extend(&prefixes);
            data.extend(opcode);
            data.extend(&operands);
        }
        testing::run(&data);
    }
}

const PREFIXES: &[u8] = &[
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x4f, 0x41,
];
const OPCODES: &[&[u8]] = &[
    &[0x00],
    &[0x03],
    &[0x0f, 0xab],
    &[0x0f, 0xb1],
    &[0x0f, 0x7f],
    &[0x0f, 0xc1],
    &[0x6c],
    &[0x6f],
    &[0x80],
    &[0x83],
    &[0x87],
    &[0x89],
    &[0x8b],
    &[0x8c],
    &[0x8f],
    &[0xa1],
    &[0xa3],
    &[0xa4],
    &[0xa7],
    &[0xab],
    &[0xaf],
    &[0xf7],
    &[0xff],
];
