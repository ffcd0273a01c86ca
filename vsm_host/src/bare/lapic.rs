//! The local APIC of the CPU that runs here, by its registers in memory.
//!
//! It belongs to VTL2, except that VTL2's writes go through `partition::apic`. The host
//! uses it before VTL2 runs (to start the other CPUs and to measure the timer), and
//! afterwards to send: NMIs that call CPUs, and interrupts that VTL2 has asked for. It
//! leaves the registers as it found them.

#![expect(unsafe_code, reason = "local APIC registers")]

const BASE: u64 = 0xfee0_0000;

const ID: u64 = 0x20;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const TIMER_INITIAL_COUNT: u64 = 0x380;
const TIMER_CURRENT_COUNT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const ICR_BUSY: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_NMI: u32 = 4 << 8;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const ICR_ALL_BUT_SELF: u32 = 3 << 18;
const LVT_MASKED: u32 = 1 << 16;
const DIVIDE_BY_ONE: u32 = 0b1011;

fn read(register: u64) -> u32 {
    // SAFETY: a register in the local APIC's page, which is identity-mapped; none of
    // those above has a side effect on reading.
    unsafe { core::ptr::read_volatile((BASE + register) as *const u32) }
}

fn write(register: u64, value: u32) {
    // SAFETY: a register in the local APIC's page. The functions below write only
    // values that are described there and that touch no memory.
    unsafe { core::ptr::write_volatile((BASE + register) as *mut u32, value) }
}

fn wait_until_sent() {
    // Hardware accepts an IPI within microseconds, QEMU at once.
    while read(ICR_LOW) & ICR_BUSY != 0 {
        core::hint::spin_loop();
    }
}

/// APIC id of this CPU.
pub(crate) fn id() -> u32 {
    read(ID) >> 24
}

/// Sends INIT to all other CPUs.
pub(crate) fn init_others() {
    write(ICR_LOW, ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_INIT);
    wait_until_sent();
}

/// Sends the start-up IPI to all other CPUs; they begin at `page` << 12 in real mode.
pub(crate) fn start_others(page: u8) {
    write(
        ICR_LOW,
        ICR_ALL_BUT_SELF | ICR_ASSERT | ICR_STARTUP | u32::from(page),
    );
    wait_until_sent();
}

/// Sends an NMI to the CPU with APIC id `apic_id` (physical destination, xAPIC). Returns
/// when it has been accepted.
pub(crate) fn send_nmi(apic_id: u8) {
    send(apic_id, ICR_ASSERT | ICR_NMI);
}

/// Sends a fixed interrupt to the CPU with APIC id `apic_id`, likewise.
pub(crate) fn send_fixed(apic_id: u8, vector: u8) {
    send(apic_id, ICR_ASSERT | u32::from(vector));
}

fn send(apic_id: u8, command: u32) {
    // VTL2 may have filled in the destination of an IPI of its own.
    wait_until_sent();
    let destination = read(ICR_HIGH);
    write(ICR_HIGH, u32::from(apic_id) << 24);
    write(ICR_LOW, command);
    wait_until_sent();
    write(ICR_HIGH, destination);
}

/// Writes a register of this CPU's local APIC or of the IOAPIC on behalf of VTL2.
pub(crate) fn write_for_vtl(address: u64, value: u32) {
    // SAFETY: `partition::apic` has checked that the address is a register, which is
    // identity-mapped, and that the value reaches no CPU of the host.
    unsafe { core::ptr::write_volatile(address as *mut u32, value) }
}

/// Starts the timer for measuring: longest period, no division, no interrupt.
pub(crate) fn timer_start() {
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_ONE);
    write(TIMER_INITIAL_COUNT, u32::MAX);
}

/// Ticks since [`timer_start`].
pub(crate) fn timer_elapsed() -> u32 {
    u32::MAX - read(TIMER_CURRENT_COUNT)
}

/// Stops the timer and leaves it as after reset.
pub(crate) fn timer_stop() {
    write(TIMER_INITIAL_COUNT, 0);
    write(TIMER_DIVIDE, 0);
}
