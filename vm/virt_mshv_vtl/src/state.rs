//! A VP's private registers as the host names them.

use crate::hypercall::RegisterValue;
use hv_defs::registers::DeliverabilityNotifications;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::registers::InternalActivity;
use hv_defs::registers::InterruptState;
use hv_defs::registers::PendingEvent;
use hv_defs::registers::PendingInterruption;
use hv_defs::synic::HV_SYNIC_SINT_COUNT;
use hv_defs::synic::SyntheticSource;
use hv_defs::vp_context::HvX64SegmentRegister;
use hv_defs::vp_context::HvX64TableRegister;
use hv_defs::vp_context::SegmentAttributes;
use virt::DescriptorTable;
use virt::Gp;
use virt::Segment;
use virt::VpState;
use x86_defs::apic::APIC_DEFAULT_BASE;
use x86_defs::apic::ApicBase;

/// The registers of one word, and where they are in a state. General registers and CR2 are
/// not among them, because VTLs share them; RSP they do not.
fn words(state: &mut VpState) -> [(Name, &mut u64); 20] {
    [
        (Name::RIP, &mut state.registers.rip),
        (Name::RFLAGS, &mut state.registers.rflags),
        (Name::RSP, &mut state.registers.gp[Gp::Rsp as usize]),
        (Name::CR0, &mut state.cr0),
        (Name::CR3, &mut state.cr3),
        (Name::CR4, &mut state.cr4),
        (Name::CR8, &mut state.cr8),
        (Name::EFER, &mut state.efer),
        (Name::PAT, &mut state.pat),
        (Name::MTRR_DEF_TYPE, &mut state.mtrr_def_type),
        (Name::DR6, &mut state.dr6),
        (Name::DR7, &mut state.dr7),
        (Name::STAR, &mut state.star),
        (Name::LSTAR, &mut state.lstar),
        (Name::CSTAR, &mut state.cstar),
        (Name::SFMASK, &mut state.sfmask),
        (Name::KERNEL_GS_BASE, &mut state.kernel_gs_base),
        (Name::SYSENTER_CS, &mut state.sysenter_cs),
        (Name::SYSENTER_EIP, &mut state.sysenter_eip),
        (Name::SYSENTER_ESP, &mut state.sysenter_esp),
    ]
}

fn segments(state: &mut VpState) -> [(Name, &mut Segment); 8] {
    let [es, cs, ss, ds, fs, gs] = &mut state.segments;
    [
        (Name::ES, es),
        (Name::CS, cs),
        (Name::SS, ss),
        (Name::DS, ds),
        (Name::FS, fs),
        (Name::GS, gs),
        (Name::LDTR, &mut state.ldtr),
        (Name::TR, &mut state.tr),
    ]
}

fn tables(state: &mut VpState) -> [(Name, &mut DescriptorTable); 2] {
    [(Name::GDTR, &mut state.gdtr), (Name::IDTR, &mut state.idtr)]
}

/// The private registers of `state`, with their values.
pub(crate) fn private(mut state: VpState) -> Vec<(Name, RegisterValue)> {
    let mut registers = Vec::new();
    registers.extend(words(&mut state).map(|(name, value)| (name, [*value, 0])));
    registers.extend(segments(&mut state).map(|(name, value)| (name, from_segment(value))));
    registers.extend(tables(&mut state).map(|(name, value)| (name, from_table(value))));
    registers
}

/// Puts `values` into `state`; they are in the order of [`private`].
pub(crate) fn set_private(state: &mut VpState, values: &[RegisterValue]) {
    let mut values = values.iter().copied();
    for ((_, place), [low, _]) in words(state).into_iter().zip(values.by_ref()) {
        *place = low;
    }
    for ((_, place), value) in segments(state).into_iter().zip(values.by_ref()) {
        *place = to_segment(zerocopy::transmute!(value));
    }
    for ((_, place), value) in tables(state).into_iter().zip(values) {
        let HvX64TableRegister { limit, base, .. } = zerocopy::transmute!(value);
        *place = DescriptorTable { base, limit };
    }
}

/// What a VP has besides its private registers, as it is after a reset.
pub(crate) fn rest_at_reset(vp: u32, waits: bool) -> Vec<(Name, RegisterValue)> {
    let apic_base = ApicBase::from(APIC_DEFAULT_BASE)
        .with_enabled(true)
        .with_bsp(vp == 0);
    let activity = InternalActivity::new().with_startup_suspend(waits);
    let masked = SyntheticSource::new().with_masked(true);
    let mut registers: Vec<(Name, u64)> = vec![
        (Name::APIC_BASE, apic_base.into()),
        (
            Name::PENDING_INTERRUPTION,
            PendingInterruption::new().into(),
        ),
        (Name::PENDING_EVENT0, PendingEvent::new().into()),
        (Name::INTERRUPT_STATE, InterruptState::new().into()),
        (
            Name::DELIVERABILITY_NOTIFICATIONS,
            DeliverabilityNotifications::new().into(),
        ),
        (Name::VP_ASSIST_PAGE, 0),
        (Name::SCONTROL, 0),
        (Name::SIEFP, 0),
        (Name::SIMP, 0),
    ];
    registers.extend(
        (Name::SINT0.0..)
            .take(HV_SYNIC_SINT_COUNT)
            .map(|name| (Name(name), masked.into())),
    );
    registers.extend((Name::STIMER0_CONFIG.0..=Name::STIMER3_COUNT.0).map(|name| (Name(name), 0)));
    // The last, because it can let the VP go.
    registers.push((Name::INTERNAL_ACTIVITY_STATE, activity.into()));
    registers
        .into_iter()
        .map(|(name, value)| (name, [value, 0]))
        .collect()
}

/// What the partition has for VTL0, as it is after a reset. The identity is the last: the
/// others need it.
pub(crate) const PARTITION_AT_RESET: [(Name, RegisterValue); 3] = [
    (Name::REFERENCE_TSC, [0; 2]),
    (Name::HYPERCALL, [0; 2]),
    (Name::GUEST_OS_ID, [0; 2]),
];

pub(crate) fn to_segment(register: HvX64SegmentRegister) -> Segment {
    Segment {
        base: register.base,
        limit: register.limit,
        selector: register.selector,
        attributes: register.attributes.into(),
    }
}

fn from_segment(segment: &Segment) -> RegisterValue {
    zerocopy::transmute!(HvX64SegmentRegister {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes: SegmentAttributes::from(segment.attributes),
    })
}

fn from_table(table: &DescriptorTable) -> RegisterValue {
    zerocopy::transmute!(HvX64TableRegister {
        pad: [0; 3],
        limit: table.limit,
        base: table.base,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_way_to_the_host_and_back() {
        let mut state = VpState::at_reset();
        state.registers.set(Gp::Rsp, 0x1234);
        state.lstar = 5;
        state.idtr.base = 0xffff_8000_0000_0000;
        let values: Vec<_> = private(state).into_iter().map(|(_, value)| value).collect();

        let mut read = VpState::at_reset();
        set_private(&mut read, &values);

        assert_eq!(read, state);
    }

    #[test]
    fn no_register_is_named_twice() {
        let mut names: Vec<_> = private(VpState::at_reset())
            .into_iter()
            .chain(rest_at_reset(0, false))
            .chain(PARTITION_AT_RESET)
            .map(|(name, _)| name.0)
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
