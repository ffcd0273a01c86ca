use super::*;
use crate::guest_memory::RamAccess;
use crate::nested::Access;
use crate::partition::Next;
use crate::partition::counters::MAX_REPORTS;
use crate::partition::mailbox::Sleeper;
use crate::partition::tests::{FakeProcessor, GUEST_RAM, VTL2_END, setup};
use crate::svm::context::tests::linux_ap;
use hv_defs::hypercall::{HvInputVtl, HypercallCode};
use hv_defs::registers::HvRegisterName;
use hv_defs::vsm::VsmPartitionConfig;
use hv_defs::{HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF};
use igvm_loader::StartContext;
use proptest::prelude::*;
use zerocopy::IntoBytes;

mod for_guest;
mod guest_state;
mod ipi;
mod lower_vtl;
mod of_guest;
mod own_synic;
mod suspend;

const INPUT: u64 = 0x1000;
const OUTPUT: u64 = 0x2000;

struct Guest {
    partition: Partition,
    vp: Vp,
    processor: FakeProcessor,
}

impl Guest {
    fn new() -> Self {
        let (partition, vp, processor) = setup();
        Self {
            partition,
            vp,
            processor,
        }
    }

    fn raw(&mut self, control: u64, input: u64, output: u64) -> Outcome {
        self.vp.gprs[gpr::RCX] = control;
        self.vp.gprs[gpr::RDX] = input;
        self.vp.gprs[gpr::R8] = output;
        handle(&self.partition, &mut self.vp, &self.processor)
    }

    /// Status and repetitions done.
    fn call(&mut self, control: HypercallControl, input: &[u8]) -> (HvStatus, u16) {
        self.processor.ram.0.borrow_mut()[INPUT as usize..][..input.len()].copy_from_slice(input);
        match self.raw(control.into(), INPUT, OUTPUT) {
            Outcome::Done(result) => (HvStatus(result.status()), result.reps_completed()),
            other => panic!("{other:?}"),
        }
    }

    fn output<const N: usize>(&self) -> [u8; N] {
        self.processor.ram.0.borrow()[OUTPUT as usize..][..N]
            .try_into()
            .unwrap()
    }

    fn get(&mut self, vtl: HvInputVtl, names: &[HvRegisterName]) -> (HvStatus, u16) {
        let mut input = registers_header(vtl, HV_VP_INDEX_SELF);
        for name in names {
            input.extend(name.0.to_le_bytes());
        }
        let control = control(HypercallCode::GET_VP_REGISTERS).with_rep_count(names.len() as u16);
        self.call(control, &input)
    }

    fn set(&mut self, name: HvRegisterName, value: u64) -> HvStatus {
        let mut input = registers_header(HvInputVtl::new(), HV_VP_INDEX_SELF);
        input.extend(
            HvRegisterAssoc {
                name: name.0,
                pad: [0; 3],
                value: [value, 0],
            }
            .as_bytes(),
        );
        self.call(
            control(HypercallCode::SET_VP_REGISTERS).with_rep_count(1),
            &input,
        )
        .0
    }
}

fn control(code: HypercallCode) -> HypercallControl {
    HypercallControl::new().with_code(code.0)
}

fn registers_header(target_vtl: HvInputVtl, vp_index: u32) -> Vec<u8> {
    GetSetVpRegisters {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index,
        target_vtl,
        rsvd: [0; 3],
    }
    .as_bytes()
    .to_vec()
}

fn vp_vtl(vp_index: u32, target_vtl: u8) -> EnableVpVtl {
    EnableVpVtl {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index,
        target_vtl,
        rsvd: [0; 3],
        vp_context: linux_ap(),
    }
}

fn vtl(number: u8) -> HvInputVtl {
    HvInputVtl::new()
        .with_use_target_vtl(true)
        .with_target_vtl(number)
}

#[test]
fn linux_finds_its_vtl_and_the_entry_points() {
    let mut guest = Guest::new();
    let names = [
        HvRegisterName::VSM_VP_STATUS,
        HvRegisterName::VSM_CODE_PAGE_OFFSETS,
        HvRegisterName::VSM_CAPABILITIES,
    ];
    assert_eq!(guest.get(HvInputVtl::new(), &names), (HvStatus::SUCCESS, 3));
    let output: [u8; 48] = guest.output();
    assert_eq!(output[0] & 0xf, 2);
    assert_eq!(output[16..20], (0x20_u32 << 12 | 0x10).to_le_bytes());
    assert_eq!(output[32..36], (1_u32 << 27).to_le_bytes());
}

#[test]
fn a_bad_element_ends_a_call_behind_the_good_ones() {
    let mut guest = Guest::new();
    let names = [
        HvRegisterName::VP_INDEX,
        HvRegisterName(0xdead),
        HvRegisterName::VP_INDEX,
    ];
    assert_eq!(
        guest.get(HvInputVtl::new(), &names),
        (HvStatus::INVALID_PARAMETER, 1)
    );
}

#[test]
fn a_call_can_begin_in_the_middle() {
    let mut guest = Guest::new();
    let mut input = registers_header(HvInputVtl::new(), HV_VP_INDEX_SELF);
    input.extend(0xdead_u32.to_le_bytes());
    input.extend(HvRegisterName::VSM_CAPABILITIES.0.to_le_bytes());
    let control = control(HypercallCode::GET_VP_REGISTERS)
        .with_rep_count(2)
        .with_rep_start(1);
    assert_eq!(guest.call(control, &input), (HvStatus::SUCCESS, 2));
    let output: [u8; 20] = guest.output();
    assert_eq!(output[..16], [0; 16]);
    assert_eq!(output[19], 1 << 3);
}

#[test]
fn only_vtls_that_exist_have_registers() {
    let mut guest = Guest::new();
    let name = [HvRegisterName::VP_INDEX];
    assert_eq!(guest.get(vtl(0), &name).0, HvStatus::SUCCESS);
    assert_eq!(guest.get(vtl(1), &name).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(guest.get(vtl(2), &name).0, HvStatus::SUCCESS);
}

#[test]
fn apic_ids_become_vp_indexes() {
    let mut guest = Guest::new();
    let mut input = GetVpIndexFromApicId {
        partition_id: HV_PARTITION_ID_SELF,
        target_vtl: vtl(0),
        rsvd: [0; 7],
    }
    .as_bytes()
    .to_vec();
    for id in [1u32, 2, 4, 0] {
        input.extend(id.to_le_bytes());
    }
    let control = control(HypercallCode::GET_VP_INDEX_FROM_APIC_ID).with_rep_count(4);
    // The parked CPU is no VP.
    assert_eq!(
        guest.call(control, &input),
        (HvStatus::INVALID_PARAMETER, 3)
    );
    assert_eq!(guest.output::<12>(), [0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn a_vp_is_enabled_then_started_once() {
    let mut guest = Guest::new();
    let input = vp_vtl(2, 2);
    let start = control(HypercallCode::START_VIRTUAL_PROCESSOR);
    let enable = control(HypercallCode::ENABLE_VP_VTL);
    let mut call = |control| guest.call(control, input.as_bytes()).0;
    assert_eq!(call(start), HvStatus::INVALID_VP_STATE);
    assert_eq!(call(enable), HvStatus::SUCCESS);
    assert_eq!(call(enable), HvStatus::VTL_ALREADY_ENABLED);
    assert_eq!(call(start), HvStatus::SUCCESS);
    assert_eq!(call(start), HvStatus::INVALID_VP_STATE);
    assert_eq!(*guest.processor.woken.borrow(), [3]);

    struct Awake;
    impl Sleeper for Awake {
        fn sleep(&mut self) {
            panic!("the VP was started");
        }
        fn drain(&mut self) {}
        fn relax(&mut self) {}
    }
    let mut vp = Vp::new(&guest.partition, 2);
    guest.partition.wait_for_start(&mut vp, &mut Awake);
    assert_eq!(vp.vmcb().save.rip, linux_ap().rip);
}

#[test]
fn bad_targets_and_contexts_are_refused() {
    let mut guest = Guest::new();
    let mut enable = |change: fn(&mut EnableVpVtl)| {
        let mut input = vp_vtl(1, 2);
        change(&mut input);
        guest
            .call(control(HypercallCode::ENABLE_VP_VTL), input.as_bytes())
            .0
    };
    assert_eq!(enable(|i| i.vp_index = 4), HvStatus::INVALID_VP_INDEX);
    assert_eq!(
        enable(|i| i.partition_id = 1),
        HvStatus::INVALID_PARTITION_ID
    );
    assert_eq!(enable(|i| i.target_vtl = 3), HvStatus::INVALID_PARAMETER);
    assert_eq!(
        enable(|i| i.target_vtl = 0),
        HvStatus::INVALID_PARTITION_STATE
    );
    assert_eq!(enable(|i| i.rsvd[0] = 1), HvStatus::INVALID_PARAMETER);
    assert_eq!(
        enable(|i| i.vp_context.efer |= 1 << 12),
        HvStatus::INVALID_REGISTER_VALUE
    );
    for _ in 0..20 {
        enable(|i| i.vp_context.efer |= 1 << 12);
    }
    assert_eq!(enable(|_| ()), HvStatus::SUCCESS);
    let log = guest.processor.log.borrow();
    assert_eq!(log.len(), MAX_REPORTS as usize, "{log:?}");
}

#[test]
fn control_words_are_checked() {
    let mut guest = Guest::new();
    let get = control(HypercallCode::GET_VP_REGISTERS);
    let sleep = control(HypercallCode::ENTER_SLEEP_STATE);
    for wrong in [
        get,
        get.with_rep_count(1).with_rep_start(1),
        get.with_rep_count(1).with_fast(true),
        get.with_rep_count(1).with_variable_header_size(1),
        get.with_rep_count(1).with_nested(true),
        HypercallControl::from(u64::from(get.with_rep_count(1)) | 1 << 60),
        sleep.with_rep_count(1),
    ] {
        assert_eq!(
            guest.call(wrong, &[0; 64]).0,
            HvStatus::INVALID_HYPERCALL_INPUT,
            "{wrong:?}"
        );
    }
    assert_eq!(
        guest.call(HypercallControl::new().with_code(0x7777), &[]).0,
        HvStatus::INVALID_HYPERCALL_CODE
    );
}

#[test]
fn parameter_blocks_are_aligned_in_one_page_and_the_vtls_own() {
    let mut guest = Guest::new();
    let get = u64::from(control(HypercallCode::GET_VP_REGISTERS).with_rep_count(2));
    let mut status = |input, output| match guest.raw(get, input, output) {
        Outcome::Done(result) => HvStatus(result.status()),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(INPUT + 4, OUTPUT), HvStatus::INVALID_ALIGNMENT);
    assert_eq!(status(INPUT + 0xff0, OUTPUT), HvStatus::INVALID_ALIGNMENT);
    assert_eq!(status(INPUT, OUTPUT + 0xff0), HvStatus::INVALID_ALIGNMENT);
    assert_eq!(status(VTL2_END, OUTPUT), HvStatus::INVALID_PARAMETER);
    assert_eq!(status(INPUT, VTL2_END), HvStatus::INVALID_PARAMETER);
    assert_eq!(status(INPUT, !0xfff), HvStatus::INVALID_PARAMETER);
}

#[test]
fn power_off_ends_the_machine_also_by_a_fast_call() {
    let mut guest = Guest::new();
    let sleep = control(HypercallCode::ENTER_SLEEP_STATE).with_fast(true);
    assert!(matches!(guest.raw(sleep.into(), 3, 0), Outcome::Done(_)));
    assert_eq!(
        guest.raw(sleep.into(), 5, 0),
        Outcome::End(ExitReason::PowerOff)
    );
    assert_eq!(*guest.processor.log.borrow(), ["VTL2 powers off"]);
}

#[test]
fn user_mode_and_vtl_switches_fault() {
    let mut guest = Guest::new();
    let fault = Outcome::Fault(Exception::InvalidOpcode);
    assert_eq!(guest.raw(0x11, 0, 0), fault);
    assert_eq!(guest.raw(0x12, 0, 0), fault);
    guest.vp.vmcb_mut().save.cpl = 3;
    assert_eq!(guest.raw(0x50, 0, 0), fault);
}

#[test]
fn protection_cannot_be_taken_back() {
    let mut guest = Guest::new();
    let config = HvRegisterName::VSM_PARTITION_CONFIG;
    // Protection by default is not offered.
    assert_eq!(guest.set(config, 0x1), HvStatus::INVALID_REGISTER_VALUE);
    assert_eq!(guest.set(config, 0x1e), HvStatus::SUCCESS);
    // What Linux writes.
    assert_eq!(guest.set(config, 0x163f), HvStatus::SUCCESS);
    assert_eq!(guest.set(config, 0x163e), HvStatus::INVALID_REGISTER_VALUE);
    assert_eq!(
        guest.set(config, 1 << 40 | 1),
        HvStatus::INVALID_REGISTER_VALUE
    );
    assert_eq!(
        guest.set(HvRegisterName::REG_PAGE, VTL2_END | 1),
        HvStatus::INVALID_REGISTER_VALUE
    );
    assert_eq!(
        guest.set(HvRegisterName::REG_PAGE, 0x5001),
        HvStatus::SUCCESS
    );
    assert_eq!(
        guest.set(HvRegisterName::VSM_VP_STATUS, 0),
        HvStatus::ACCESS_DENIED
    );
}

proptest! {
    #[test]
    fn hostile_hypercalls_get_a_status(
        code in prop_oneof![any::<u16>(), prop::sample::select(FORMS.iter().map(|f| f.code.0).collect::<Vec<_>>())],
        fast: bool, reps in 0u16..8, start in 0u16..4, extra in prop_oneof![Just(0u64), any::<u64>()],
        input in prop_oneof![Just(INPUT), any::<u64>(), 0..VTL2_END * 2],
        output in prop_oneof![Just(OUTPUT), any::<u64>(), 0..VTL2_END * 2],
        memory in prop::collection::vec(any::<u8>(), 0..512),
        header: bool, vtl: u8, vp in 0u32..6, of_guest: bool,
    ) {
        let mut guest = if of_guest { Guest::in_vtl0() } else { Guest::new() };
        let (input, output) = if of_guest {
            (GUEST_RAM.start() + input % VTL2_END, GUEST_RAM.start() + output % VTL2_END)
        } else {
            (input, output)
        };
        {
            let ram = if of_guest { &guest.processor.guest_ram } else { &guest.processor.ram };
            let mut ram = ram.0.borrow_mut();
            ram[INPUT as usize..][..memory.len()].copy_from_slice(&memory);
            if header {
                ram[INPUT as usize..][..16].copy_from_slice(&registers_header(vtl.into(), vp));
            }
        }
        let control = control(HypercallCode(code))
            .with_fast(fast)
            .with_rep_count(reps)
            .with_rep_start(start);
        if let Outcome::Done(result) = guest.raw(u64::from(control) | extra & !0xffff, input, output) {
            prop_assert!(result.reps_completed() <= 0xfff);
        }
        guest.vp.vmcb_mut().control.exit_code = x86_defs::svm::ExitCode::CPUID;
        prop_assert_eq!(guest.partition.handle_exit(&mut guest.vp, &guest.processor), Next::Resume);
    }
}
