//! FADT: the fixed registers, or what replaces them.

use super::{
    Chipset, FixedPower, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Power, PowerButton, ReducedPower,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// A latency that says "no C2".
const NO_C2: u16 = 101;
/// A latency that says "no C3".
const NO_C3: u16 = 1001;
/// IAPC_BOOT_ARCH: there are devices on an ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: the keyboard controller can be probed.
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
/// IAPC_BOOT_ARCH: do not probe for VGA.
const NO_VGA: u16 = 1 << 2;
/// IAPC_BOOT_ARCH: there is no CMOS clock.
const NO_CMOS_RTC: u16 = 1 << 5;

/// The table.
pub(super) fn build(chipset: &Chipset<'_>, dsdt: u64, facs: Option<u64>) -> FADT {
    let devices = &chipset.devices;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // Neither of the two is a bit of the PM1 event block.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    if devices.power_button != PowerButton::Fixed {
        fadt = fadt.flag(Flags::PwrButton);
    }
    if let Some(reset) = chipset.power.reset() {
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = port(reset.port, 8, AccessSize::ByteAccess);
        fadt.reset_value = reset.value;
    }
    let mut boot_arch = NO_VGA;
    if !devices.serial_ports.is_empty() {
        boot_arch |= LEGACY_DEVICES;
    }
    if devices.has_keyboard_controller {
        boot_arch |= LEGACY_DEVICES | KEYBOARD_CONTROLLER;
    }
    match devices.rtc {
        Some(rtc) => fadt.century = rtc.century.unwrap_or(0),
        None => boot_arch |= NO_CMOS_RTC,
    }
    fadt.iapc_boot_arch = boot_arch.into();
    match chipset.power {
        Power::HardwareReduced(power) => reduced(fadt, power),
        Power::Fixed(power) => fixed(fadt, power, facs.unwrap_or(0)),
    }
    .finalize()
}

fn reduced(mut fadt: FADTBuilder, power: ReducedPower) -> FADTBuilder {
    fadt = fadt.flag(Flags::HwReducedAcpi);
    fadt.sleep_control_reg = port(power.sleep_control, 8, AccessSize::ByteAccess);
    fadt.sleep_status_reg = port(power.sleep_status, 8, AccessSize::ByteAccess);
    fadt
}

fn fixed(fadt: FADTBuilder, power: FixedPower, facs: u64) -> FADTBuilder {
    let mut fadt = fadt.flag(Flags::ProcC1).firmware_ctrl_64(facs);
    fadt.sci_int = u16::from(power.sci).into();
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.pm1a_evt_blk = u32::from(power.pm1_event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(power.pm1_event, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(power.pm1_control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(power.pm1_control, 16, AccessSize::WordAccess);
    if let Some(timer) = power.timer {
        fadt.pm_tmr_blk = u32::from(timer.port).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = port(timer.port, 32, AccessSize::DwordAccess);
        if timer.is_32_bit {
            fadt = fadt.flag(Flags::TmrValExt);
        }
    }
    if let Some(gpe) = power.gpe0 {
        fadt = fadt.gpe_info(gpe.port.into(), 0, gpe.length, 0, 0);
        // A width in bits does not fit for the largest blocks; the length says it then.
        let bits = gpe.length.saturating_mul(8);
        fadt.x_gpe0_blk = port(gpe.port, bits, AccessSize::ByteAccess);
    }
    fadt
}

fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}
