//! The whole machine.

use proptest::prelude::*;

use super::*;
use crate::testing;
use crate::testing::SharedWorld;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The fuzz target `chipset` does the same with inputs that are chosen better.
    #[test]
    fn a_restored_machine_lives_on_as_the_saved_one(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        testing::run(&bytes);
    }

    #[test]
    fn any_bytes_are_refused_or_restored(
        device in 0_usize..7,
        data in proptest::collection::vec(any::<u8>(), 0..64),
        version in 0_u32..3,
    ) {
        let world = SharedWorld::default();
        let saved = {
            let chipset = world.chipset();
            chipset.start().unwrap();
            chipset.pause().unwrap();
            let mut saved = chipset.save().unwrap();
            saved.devices[device].state = Some(SavedState { version, data });
            saved
        };
        let chipset = world.chipset();
        if chipset.restore(&saved).is_ok() {
            chipset.start().unwrap();
            chipset.poll();
            for port in 0..0x1000 {
                chipset.bus().read_port(port, crate::bus::Width::Byte);
            }
            chipset.pause().unwrap();
            chipset.save().unwrap();
        } else {
            prop_assert!(chipset.start().is_err());
        }
    }
}
