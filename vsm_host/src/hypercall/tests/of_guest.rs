//! What the guest in VTL0 may call.

use super::*;
use crate::svm::context;
use hv_defs::intercept::{AccessMask, InterceptType};

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
fn apic_ids_of_the_guest_are_indices() {
    let mut guest = Guest::in_vtl0();
    let mut ask = |id: u32| {
        let header = GetVpIndexFromApicId {
            partition_id: HV_PARTITION_ID_SELF,
            target_vtl: HvInputVtl::new(),
            rsvd: [0; 7],
        };
        let mut input = header.as_bytes().to_vec();
        input.extend(id.to_le_bytes());
        let code = HypercallCode::GET_VP_INDEX_FROM_APIC_ID;
        let status = guest.status_of_guest(code, 1, &input);
        let index = guest.processor.load_word(GUEST_OUTPUT);
        (status == HvStatus::SUCCESS).then_some(index)
    };
    assert_eq!((ask(1), ask(3), ask(4)), (Some(1), Some(3), None));
}

#[test]
fn registers_of_vtl2_are_not_shown() {
    let mut guest = Guest::in_vtl0();
    let mut get = |target, name: HvRegisterName| {
        let mut input = registers_header(target, HV_VP_INDEX_SELF);
        input.extend(name.0.to_le_bytes());
        guest.status_of_guest(HypercallCode::GET_VP_REGISTERS, 1, &input)
    };
    let own = HvInputVtl::new();
    assert_eq!(get(own, HvRegisterName::TIME_REF_COUNT), HvStatus::SUCCESS);
    let denied = HvStatus::ACCESS_DENIED;
    assert_eq!(get(vtl(2), HvRegisterName::VP_INDEX), denied);
    for name in [
        HvRegisterName::VSM_PARTITION_CONFIG,
        HvRegisterName::REG_PAGE,
    ] {
        assert_eq!(get(own, name), denied);
    }
}

#[test]
fn what_the_host_does_not_know_vtl2_may_answer() {
    let mut guest = Guest::in_vtl0();
    let install = |guest: &Guest, intercept_type| {
        let input = InstallIntercept {
            partition_id: HV_PARTITION_ID_SELF,
            access: AccessMask::new().with_execute(true),
            intercept_type,
            parameter: 0,
        };
        guest.partition.intercepts().install(&input).unwrap();
    };
    let mut message = [0; 256];
    // Connection 1, type 1.
    (message[0], message[8]) = (1, 1);
    let code = HypercallCode::POST_MESSAGE;
    let unknown = HvStatus::INVALID_CONNECTION_ID;
    assert_eq!(guest.status_of_guest(code, 0, &message), unknown);
    install(&guest, InterceptType::UNKNOWN_SYNIC_CONNECTION);
    assert_eq!(
        guest.of_guest(control(code), &message),
        Outcome::Intercepted
    );
    let event = control(HypercallCode::SIGNAL_EVENT).with_fast(true);
    assert_eq!(guest.raw(event.into(), 1, 0), Outcome::Intercepted);
    // Not what is wrong in itself.
    message[8] = 0;
    let wrong = HvStatus::INVALID_PARAMETER;
    assert_eq!(guest.status_of_guest(code, 0, &message), wrong);

    let retarget = HypercallCode::RETARGET_DEVICE_INTERRUPT;
    let unknown = HvStatus::INVALID_HYPERCALL_CODE;
    assert_eq!(guest.status_of_guest(retarget, 0, &[]), unknown);
    install(
        &guest,
        InterceptType::RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID,
    );
    assert_eq!(guest.of_guest(control(retarget), &[]), Outcome::Intercepted);
    assert_eq!(guest.status_of_guest(HypercallCode(2), 0, &[]), unknown);
    install(&guest, InterceptType::HYPERCALL);
    assert_eq!(
        guest.of_guest(control(HypercallCode(2)), &[]),
        Outcome::Intercepted
    );
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
