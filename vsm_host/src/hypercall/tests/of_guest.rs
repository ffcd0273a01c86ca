//! What the guest in VTL0 may call.

use super::*;
use crate::svm::context;

pub(super) const GUEST_INPUT: u64 = GUEST_RAM.start() + 0x1000;
pub(super) const GUEST_OUTPUT: u64 = GUEST_RAM.start() + 0x2000;

impl Guest {
    /// One whose VP is in VTL0.
    pub(super) fn in_vtl0() -> Self {
        let mut guest = Self::new();
        guest.vp.vtl = Vtl::GUEST;
        context::apply(&StartContext::new(linux_ap()).unwrap(), guest.vp.vmcb_mut());
        guest
    }

    /// Outcome of a call of the guest.
    pub(super) fn of_guest(&mut self, control: HypercallControl, input: &[u8]) -> Outcome {
        self.processor.write_ram(GUEST_INPUT, input);
        self.raw(control.into(), GUEST_INPUT, GUEST_OUTPUT)
    }

    fn status_of_guest(&mut self, code: HypercallCode, reps: u16, input: &[u8]) -> HvStatus {
        match self.of_guest(control(code).with_rep_count(reps), input) {
            Outcome::Done(result) => HvStatus(result.status()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_the_paravisors_is_denied() {
    use HypercallCode as Code;
    let mut guest = Guest::in_vtl0();
    for (code, reps) in [
        (Code::MODIFY_VTL_PROTECTION_MASK, 1),
        (Code::ENABLE_VP_VTL, 0),
        (Code::INSTALL_INTERCEPT, 0),
        (Code::SET_VP_REGISTERS, 1),
        (Code::TRANSLATE_VIRTUAL_ADDRESS, 0),
        (Code::ENTER_SLEEP_STATE, 0),
        (Code::START_VIRTUAL_PROCESSOR, 0),
    ] {
        let status = guest.status_of_guest(code, reps, &[0; 256]);
        assert_eq!(status, HvStatus::ACCESS_DENIED, "{code:?}");
    }
    let unknown = guest.status_of_guest(HypercallCode(2), 0, &[0; 16]);
    assert_eq!(unknown, HvStatus::INVALID_HYPERCALL_CODE);
}

#[test]
fn parameters_are_not_read_from_protected_pages() {
    let mut guest = Guest::in_vtl0();
    let mut input = registers_header(HvInputVtl::new(), HV_VP_INDEX_SELF);
    input.extend(HvRegisterName::VP_INDEX.0.to_le_bytes());
    let code = HypercallCode::GET_VP_REGISTERS;
    assert_eq!(guest.status_of_guest(code, 1, &input), HvStatus::SUCCESS);
    let protect = |guest: &Guest, page, flags: u32| {
        let tables = guest.partition.nested_tables(Vtl::GUEST);
        tables
            .protect(page, Access::new(flags.into()).unwrap())
            .unwrap();
    };
    let refused = HvStatus::INVALID_PARAMETER;
    protect(&guest, GUEST_OUTPUT, 1);
    assert_eq!(guest.status_of_guest(code, 1, &input), refused);
    protect(&guest, GUEST_OUTPUT, 0xf);
    protect(&guest, GUEST_INPUT, 0);
    assert_eq!(guest.status_of_guest(code, 1, &input), refused);
}
