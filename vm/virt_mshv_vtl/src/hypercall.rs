//! The hypercalls that are made from here, typed.

use crate::device::HvcallFile;
use crate::device::kernel;
use crate::error::Error;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::HV_VP_INDEX_SELF;
use hv_defs::hypercall::GetSetVpRegisters;
use hv_defs::hypercall::HV_VP_SET_SPARSE;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::hypercall::HypercallControl;
use hv_defs::hypercall::HypercallResult;
use hv_defs::hypercall::SendClusterIpi;
use hv_defs::hypercall::SendClusterIpiEx;
use hv_defs::intercept::AccessMask;
use hv_defs::intercept::InstallIntercept;
use hv_defs::intercept::InterceptType;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::AssertVirtualInterrupt;
use hv_defs::synic::HvInterruptFlags;
use hv_defs::synic::HvInterruptType;
use inspect::Inspect;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

/// No hypercall but these.
const ALLOWED: [u16; 6] = [
    HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI.0,
    HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX.0,
    HypercallCode::INSTALL_INTERCEPT.0,
    HypercallCode::GET_VP_REGISTERS.0,
    HypercallCode::SET_VP_REGISTERS.0,
    HypercallCode::ASSERT_VIRTUAL_INTERRUPT.0,
];

/// VTL0, for those that may mean another.
pub(crate) const VTL0: HvInputVtl = HvInputVtl::new().with_use_target_vtl(true);
/// The VTL that asks.
pub(crate) const OWN_VTL: HvInputVtl = HvInputVtl::new();

/// A value of a register; most have only a lower half.
pub(crate) type RegisterValue = [u64; 2];

/// The way to the host.
#[derive(Inspect)]
pub(crate) struct Hypercalls {
    #[inspect(skip)]
    file: HvcallFile,
    /// Hypercalls made.
    #[inspect(counter)]
    calls: AtomicU64,
}

impl Hypercalls {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            file: HvcallFile::open(&ALLOWED)?,
            calls: AtomicU64::new(0),
        })
    }

    /// Has the host tell what `what` says.
    pub(crate) fn install_intercept(
        &self,
        what: InterceptType,
        access: AccessMask,
        parameter: u64,
    ) -> Result<(), Error> {
        let input = InstallIntercept {
            partition_id: HV_PARTITION_ID_SELF,
            access,
            intercept_type: what,
            parameter,
        };
        self.simple(HypercallCode::INSTALL_INTERCEPT, &input)
    }

    /// Asserts an interrupt of VTL0.
    pub(crate) fn assert_interrupt(
        &self,
        interrupt_type: HvInterruptType,
        flags: HvInterruptFlags,
        destination: u64,
        vector: u32,
    ) -> Result<(), Error> {
        let input = AssertVirtualInterrupt {
            partition_id: HV_PARTITION_ID_SELF,
            interrupt_type,
            flags,
            destination,
            vector,
            target_vtl: 0,
            rsvd: [0; 3],
        };
        self.simple(HypercallCode::ASSERT_VIRTUAL_INTERRUPT, &input)
    }

    /// Sends an INIT to `vp` in VTL0.
    pub(crate) fn init(&self, vp: u32) -> Result<(), Error> {
        let flags = HvInterruptFlags::new();
        self.assert_interrupt(HvInterruptType::INIT, flags, vp.into(), 0)
    }

    /// Interrupts `vp` while it is in our VTL, or as soon as it is.
    pub(crate) fn interrupt_vp(&self, vp: u32, vector: u8) -> Result<(), Error> {
        const BANK: u32 = u64::BITS;
        let (vector, processors) = (vector.into(), 1_u64 << (vp % BANK));
        if vp < BANK {
            let input = SendClusterIpi {
                vector,
                target_vtl: OWN_VTL,
                rsvd: [0; 3],
                processors,
            };
            return self.simple(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, &input);
        }
        let header = SendClusterIpiEx {
            vector,
            target_vtl: OWN_VTL,
            rsvd: [0; 3],
            format: HV_VP_SET_SPARSE,
            // A set has room for the VPs that a machine can have.
            valid_banks: 1 << (vp / BANK % u64::BITS),
        };
        let code = HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX;
        let control = HypercallControl::new()
            .with_code(code.0)
            .with_variable_header_size(1);
        let input = [header.as_bytes(), processors.as_bytes()].concat();
        self.checked(code, control, &input)
    }

    /// Reads registers of the VP that the caller runs on.
    /// `values` has as many elements as `names`.
    pub(crate) fn get(
        &self,
        vtl: HvInputVtl,
        names: &[HvRegisterName],
        values: &mut [RegisterValue],
    ) -> Result<(), Error> {
        let mut input = header(vtl).as_bytes().to_vec();
        for name in names {
            input.extend_from_slice(name.0.as_bytes());
        }
        let code = HypercallCode::GET_VP_REGISTERS;
        self.repeated(code, names.iter().copied(), &input, values.as_mut_bytes())
    }

    /// Writes registers of the VP that the caller runs on.
    pub(crate) fn set(
        &self,
        vtl: HvInputVtl,
        registers: &[(HvRegisterName, RegisterValue)],
    ) -> Result<(), Error> {
        // As many as one call takes.
        for chunk in registers.chunks(100) {
            let mut input = header(vtl).as_bytes().to_vec();
            for (name, value) in chunk {
                let assoc = HvRegisterAssoc {
                    name: name.0,
                    pad: [0; 3],
                    value: *value,
                };
                input.extend_from_slice(assoc.as_bytes());
            }
            let code = HypercallCode::SET_VP_REGISTERS;
            let names = chunk.iter().map(|(name, _)| *name);
            self.repeated(code, names, &input, &mut [])?;
        }
        Ok(())
    }

    fn simple(
        &self,
        code: HypercallCode,
        input: &(impl IntoBytes + Immutable),
    ) -> Result<(), Error> {
        let control = HypercallControl::new().with_code(code.0);
        self.checked(code, control, input.as_bytes())
    }

    fn checked(
        &self,
        code: HypercallCode,
        control: HypercallControl,
        input: &[u8],
    ) -> Result<(), Error> {
        let result = self.call(control, input, &mut [])?;
        match HvStatus(result.status()) {
            HvStatus::SUCCESS => Ok(()),
            status => Err(Error::Hypercall { code, status }),
        }
    }

    /// A call with an element for each of `names`.
    fn repeated(
        &self,
        code: HypercallCode,
        mut names: impl ExactSizeIterator<Item = HvRegisterName>,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), Error> {
        let control = HypercallControl::new()
            .with_code(code.0)
            // The input would not fit into its page before this did not into its bits.
            .with_rep_count(names.len() as u16);
        let result = self.call(control, input, output)?;
        let status = HvStatus(result.status());
        if status == HvStatus::SUCCESS {
            return Ok(());
        }
        Err(match names.nth(result.reps_completed().into()) {
            Some(register) => Error::Register {
                code,
                register,
                status,
            },
            None => Error::Hypercall { code, status },
        })
    }

    fn call(
        &self,
        control: HypercallControl,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<HypercallResult, Error> {
        self.calls.fetch_add(1, Relaxed);
        let result = self.file.call(control.into(), input, output);
        result
            .map(HypercallResult::from)
            .map_err(kernel("make a hypercall"))
    }
}

fn header(vtl: HvInputVtl) -> GetSetVpRegisters {
    GetSetVpRegisters {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: HV_VP_INDEX_SELF,
        target_vtl: vtl,
        rsvd: [0; 3],
    }
}
