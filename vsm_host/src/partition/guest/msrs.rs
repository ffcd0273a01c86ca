//! Model-specific registers of the guest: those of its virtual interrupt controllers, and
//! those that VTL2 answers. All others are as for VTL2.

use super::lapic;
use crate::partition::{Next, Partition, Processor, Vp, msrs, synic};
use crate::svm::vmcb::Exception;
use crate::vtl::Vtl;
use hv_defs::msr::{HV_X64_MSR_CRASH_CTL, HV_X64_MSR_CRASH_P0, HV_X64_MSR_RESET};

/// What an access to an MSR leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access<T> {
    /// It is done.
    Done(T),
    /// The instruction faults.
    Fault(Exception),
    /// VTL2 answers it.
    Intercepted,
}

impl<T> Access<T> {
    /// Goes on with what is done.
    pub(crate) fn map<U>(self, then: impl FnOnce(T) -> U) -> Access<U> {
        match self {
            Self::Done(value) => Access::Done(then(value)),
            Self::Fault(exception) => Access::Fault(exception),
            Self::Intercepted => Access::Intercepted,
        }
    }
}

impl<T> From<Result<T, Exception>> for Access<T> {
    fn from(result: Result<T, Exception>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(exception) => Self::Fault(exception),
        }
    }
}

/// What a write leads to beside the write itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// How the VP goes on.
    pub next: Next,
    /// A level-triggered interrupt of this vector has ended.
    pub ended: Option<u8>,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            next: Next::Resume,
            ended: None,
        }
    }
}

/// Whether the guest tells the end of its software by this MSR, or asks for a reset: that
/// concerns VTL2.
fn is_of_interest(msr: u32) -> bool {
    matches!(
        msr,
        HV_X64_MSR_RESET | HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_CTL
    )
}

/// RDMSR.
pub(crate) fn read(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    msr: u32,
) -> Access<u64> {
    if ::vapic::owns_msr(msr) {
        return lapic::read_msr(partition, vp, processor, msr).into();
    }
    if synic::owns_msr(Vtl::GUEST, msr) {
        return synic::read_msr(partition, vp, Vtl::GUEST, msr).into();
    }
    let told = partition.intercepts().msr(false);
    if told && (is_of_interest(msr) || !msrs::is_known(vp, msr)) {
        return Access::Intercepted;
    }
    partition.read_msr(vp, processor, msr).into()
}

/// WRMSR.
pub(crate) fn write(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    msr: u32,
    value: u64,
) -> Access<Written> {
    let written = Written::default();
    if ::vapic::owns_msr(msr) {
        let result = lapic::write_msr(partition, vp, processor, msr, value);
        return result.map(|ended| Written { ended, ..written }).into();
    }
    if synic::owns_msr(Vtl::GUEST, msr) {
        let result = synic::write_msr(partition, vp, Vtl::GUEST, processor, (msr, value));
        return result.map(|()| written).into();
    }
    let told = partition.intercepts().msr(true);
    if told && (is_of_interest(msr) || !msrs::is_known(vp, msr)) {
        return Access::Intercepted;
    }
    if msr == HV_X64_MSR_RESET && value != 0 {
        // The machine is VTL2's, which does not want to know.
        return Access::Fault(Exception::GeneralProtection);
    }
    let result = partition.write_msr(vp, processor, msr, value);
    result.map(|next| Written { next, ..written }).into()
}
