//! The register interface, after the PC16550D data sheet (National Semiconductor, June
//! 1995); sections and tables named here are its own.

use proptest::prelude::*;

use super::*;
use crate::bus::Width;
use crate::line::PinTarget;
use crate::line::Pins;
use crate::testing::SharedWorld;

mod flow;
mod receive;

const RBR: u64 = 0;
const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;
/// DTR, RTS and OUT2: what a driver sets.
const OPEN: u8 = 0x0b;

/// What IIR holds without and with FIFOs.
mod iir {
    pub(super) const NONE: u8 = 0x01;
    pub(super) const EMPTY: u8 = 0x02;
    pub(super) const RECEIVED: u8 = 0x04;
    pub(super) const LINE: u8 = 0x06;
    pub(super) const MODEM: u8 = 0x00;
    pub(super) const TIMEOUT: u8 = 0x0c;
    pub(super) const FIFO: u8 = 0xc0;
}

struct Fixture {
    world: SharedWorld,
    uart: Uart,
}

impl Fixture {
    fn new() -> Self {
        let world = SharedWorld::default();
        let target: Arc<dyn PinTarget> = Arc::new(world.clone());
        let line = Pins::new(&target, 24).line(4).unwrap();
        let clock = Arc::new(world.clone());
        let uart = Uart::new(COM1_BASE, clock, line, world.cable(0));
        Self { world, uart }
    }

    /// With FIFOs, a trigger level of 14, 115200 baud 8N1, and the lines raised.
    fn open() -> Self {
        let mut fixture = Self::new();
        for (register, value) in [
            (LCR, 0x80),
            (THR, 1),
            (IER, 0),
            (LCR, 3),
            (FCR, 0xc1),
            (MCR, OPEN),
        ] {
            fixture.write(register, value);
        }
        fixture
    }

    fn read(&mut self, offset: u64) -> u8 {
        self.uart.read(access(offset)) as u8
    }

    fn try_write(&mut self, offset: u64, value: u8) -> Written {
        self.uart.write(access(offset), value.into())
    }

    fn write(&mut self, offset: u64, value: u8) {
        assert_eq!(self.try_write(offset, value), Written::Done);
    }

    fn input(&mut self, bytes: &[u8]) {
        self.world.lock().serial[0].input.extend(bytes);
        self.uart.poll();
    }

    fn room(&mut self, room: usize) {
        self.world.lock().serial[0].room = room;
        self.uart.poll();
    }

    fn output(&self) -> Vec<u8> {
        self.world.lock().serial[0].output.clone()
    }

    fn asserted(&self) -> bool {
        self.uart.line.is_asserted()
    }

    /// Changes of the line since the last call.
    fn edges(&self) -> Vec<bool> {
        let pins = std::mem::take(&mut self.world.lock().pins);
        pins.into_iter().map(|(_, asserted)| asserted).collect()
    }
}

fn access(offset: u64) -> Access {
    Access {
        region: 0,
        offset,
        width: Width::Byte,
    }
}

#[test]
fn values_after_a_reset_are_those_of_table_i() {
    let mut uart = Fixture::new();
    for (register, value) in [(IER, 0), (IIR, 1), (LCR, 0), (MCR, 0), (LSR, 0x60)] {
        assert_eq!(uart.read(register), value, "register {register}");
    }
    // The upper half is the lines, which a null-modem cable holds; nothing has changed.
    assert_eq!(uart.read(MSR), 0xb0);
    assert!(!uart.asserted());
}

#[test]
fn registers_keep_the_bits_that_they_have() {
    let mut uart = Fixture::new();
    for (register, existing) in [(IER, 0x0f), (LCR, 0x7f), (SCR, 0xff)] {
        for value in [0xff, 0x00, 0xa5, 0x5a, 0xff] {
            uart.write(register, value & if register == LCR { 0x7f } else { 0xff });
            assert_eq!(uart.read(register), value & existing);
        }
    }
    uart.write(MCR, 0xff);
    assert_eq!(uart.read(MCR), 0x1f);
}

#[test]
fn status_registers_cannot_be_written() {
    let mut uart = Fixture::new();
    uart.write(LSR, 0xff);
    uart.write(MSR, 0xff);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(uart.read(MSR), 0xb0);
}

#[test]
fn the_divisor_is_behind_dlab_and_nothing_else_is() {
    let mut uart = Fixture::new();
    uart.write(IER, 0x0f);
    uart.write(LCR, 0x83);
    uart.write(RBR, 0x34);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(RBR), uart.read(IER)), (0x34, 0x12));
    assert_eq!(uart.read(LCR), 0x83);
    uart.write(LCR, 0x03);
    assert_eq!(uart.read(IER), 0x0f);
    assert!(uart.output().is_empty());
}

#[test]
fn a_character_takes_as_long_as_its_bits() {
    let mut uart = Fixture::new();
    // (divisor, LCR, bits): "Programmable baud generator".
    for (divisor, control, bits) in [
        (1, 0x03, 10),     // 8N1
        (1, 0x00, 7),      // 5N1
        (12, 0x07, 11),    // 8N2
        (12, 0x1a, 10),    // 7E1
        (0x900, 0x1f, 12), // 8E2 at 50 baud
    ] {
        uart.write(LCR, 0x80);
        let [low, high] = u16::to_le_bytes(divisor);
        uart.write(THR, low);
        uart.write(IER, high);
        uart.write(LCR, control);
        let nanoseconds = bits * u64::from(divisor) * 1_000_000_000 / 115_200;
        assert_eq!(
            uart.uart.character_time(),
            Duration::from_nanos(nanoseconds)
        );
    }
}

#[test]
fn a_divisor_of_zero_stops_nothing() {
    let mut uart = Fixture::open();
    uart.write(LCR, 0x83);
    uart.write(THR, 0);
    uart.write(LCR, 0x03);
    assert!(uart.uart.character_time() > Duration::ZERO);
}

#[test]
fn fcr_takes_other_bits_only_with_the_first() {
    let mut uart = Fixture::new();
    uart.write(FCR, 0xc0);
    assert_eq!(uart.read(IIR), iir::NONE);
    uart.write(FCR, 0x01);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
    // The trigger level is 1 still.
    uart.write(IER, 0x01);
    uart.input(b"a");
    assert_eq!(uart.read(IIR), iir::FIFO | iir::RECEIVED);
    uart.write(FCR, 0x00);
    assert_eq!(uart.read(IIR), iir::NONE);
    assert_eq!(uart.read(LSR), 0x60, "changing the mode clears the FIFOs");
}

#[test]
fn interrupts_come_in_the_order_of_table_iv() {
    let mut uart = Fixture::new();
    uart.write(MCR, OPEN);
    // All sources at once: a break, its byte, the empty transmitter, a modem line.
    assert!(uart.uart.receive_break());
    uart.uart.set_modem_inputs(ModemInputs {
        dcd: false,
        ..ModemInputs::CONNECTED
    });
    uart.write(IER, 0x0f);
    assert!(uart.asserted());
    assert_eq!(uart.read(IIR), iir::LINE);
    // Each is reset by the access that the table names.
    assert_eq!(uart.read(LSR), 0x61 | 0x18);
    assert_eq!(uart.read(IIR), iir::RECEIVED);
    assert_eq!(uart.read(RBR), 0);
    assert_eq!(uart.read(IIR), iir::EMPTY);
    // That read was the reset of this source.
    assert_eq!(uart.read(IIR), iir::MODEM);
    assert_eq!(uart.read(IIR), iir::MODEM);
    assert_eq!(uart.read(MSR), 0x38);
    assert_eq!(uart.read(IIR), iir::NONE);
    assert!(!uart.asserted());
}

#[test]
fn each_interrupt_has_its_enable_bit() {
    for (enable, id) in [
        (0x01, iir::RECEIVED),
        (0x02, iir::EMPTY),
        (0x04, iir::LINE),
        (0x08, iir::MODEM),
    ] {
        let mut uart = Fixture::new();
        uart.write(MCR, OPEN);
        assert!(uart.uart.receive_break());
        uart.uart.set_modem_inputs(ModemInputs {
            cts: false,
            ..ModemInputs::CONNECTED
        });
        assert_eq!(uart.read(IIR), iir::NONE);
        uart.write(IER, enable);
        assert!(uart.asserted());
        assert_eq!(uart.read(IIR), id);
        uart.write(IER, 0);
        assert!(!uart.asserted());
    }
}

#[test]
fn iir_resets_only_the_interrupt_that_it_shows() {
    let mut uart = Fixture::new();
    uart.input(b"x");
    uart.write(IER, 0x03);
    assert_eq!(uart.read(IIR), iir::RECEIVED);
    uart.read(RBR);
    assert_eq!(uart.read(IIR), iir::EMPTY);
    assert_eq!(uart.read(IIR), iir::NONE);
}

#[test]
fn enabling_the_interrupt_of_an_empty_transmitter_causes_it_each_time() {
    let mut uart = Fixture::new();
    uart.write(MCR, OPEN);
    for _ in 0..2 {
        uart.write(IER, 0x02);
        assert_eq!(uart.read(IIR), iir::EMPTY);
        assert_eq!(uart.read(IIR), iir::NONE);
        // Writing the same again does not.
        uart.write(IER, 0x02);
        assert_eq!(uart.read(IIR), iir::NONE);
        uart.write(IER, 0x00);
    }
    assert_eq!(uart.edges(), [true, false, true, false]);
}

#[test]
fn out2_gates_the_line_and_loopback_closes_the_gate() {
    let mut uart = Fixture::new();
    uart.write(IER, 0x02);
    assert!(!uart.asserted());
    uart.write(MCR, OUT2);
    assert!(uart.asserted());
    uart.write(MCR, OUT2 | LOOP);
    assert!(!uart.asserted());
    assert_eq!(uart.read(IIR), iir::EMPTY, "interrupts go on inside");
}

#[test]
fn modem_lines_show_their_changes_until_msr_is_read() {
    type Change = fn(&mut ModemInputs);

    // MSR: DCTS, DDSR, DDCD for any change; TERI for the end of a ring only.
    let mut uart = Fixture::new();
    let mut lines = ModemInputs::CONNECTED;
    lines.ri = true;
    uart.uart.set_modem_inputs(lines);
    assert_eq!(uart.read(MSR), 0xf0, "a ring that begins is no change");
    lines.ri = false;
    uart.uart.set_modem_inputs(lines);
    assert_eq!(uart.read(MSR), 0xb4);
    assert_eq!(uart.read(MSR), 0xb0);
    let changes: [(Change, u8); 3] = [
        (|lines| lines.cts = false, 0xa1),
        (|lines| lines.dsr = false, 0x82),
        (|lines| lines.dcd = false, 0x08),
    ];
    for (change, status) in changes {
        change(&mut lines);
        uart.uart.set_modem_inputs(lines);
        assert_eq!(uart.read(MSR), status);
    }
    // Back and forth leaves the mark.
    lines.cts = true;
    uart.uart.set_modem_inputs(lines);
    lines.cts = false;
    uart.uart.set_modem_inputs(lines);
    assert_eq!(uart.read(MSR), 0x01);
}

#[test]
fn loopback_joins_outputs_and_inputs() {
    // MCR bit 4: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
    let mut uart = Fixture::new();
    for (outputs, inputs) in [(0x1, 0x20), (0x2, 0x10), (0x4, 0x40), (0x8, 0x80)] {
        uart.write(MCR, LOOP | outputs);
        assert_eq!(uart.read(MSR) & 0xf0, inputs);
    }
    uart.read(MSR);
    uart.write(MCR, LOOP | 0x4);
    uart.write(MCR, LOOP);
    assert_eq!(
        uart.read(MSR) & 0x0f,
        0x04 | 0x08,
        "end of ring; DCD from before"
    );
    // The line outside does not matter meanwhile, but afterwards.
    uart.uart.set_modem_inputs(ModemInputs {
        dsr: false,
        ..ModemInputs::CONNECTED
    });
    assert_eq!(uart.read(MSR), 0x00);
    uart.write(MCR, 0);
    assert_eq!(uart.read(MSR), 0x90 | 0x09);
}

#[test]
fn loopback_returns_bytes_and_sends_none() {
    let mut uart = Fixture::open();
    uart.write(MCR, LOOP);
    uart.world.lock().serial[0].input.extend(b"outside");
    for byte in *b"inside" {
        uart.write(THR, byte);
    }
    uart.uart.poll();
    let mut back = Vec::new();
    while uart.read(LSR) & 1 != 0 {
        back.push(uart.read(RBR));
    }
    assert_eq!(back, b"inside");
    assert!(uart.output().is_empty());
    uart.write(MCR, OPEN);
    uart.uart.poll();
    assert_eq!(uart.read(RBR), b'o');
}

#[test]
fn a_reset_forgets_all_but_the_outside() {
    let mut uart = Fixture::open();
    uart.input(b"abc");
    uart.write(IER, 0x0f);
    uart.write(SCR, 7);
    let lines = ModemInputs {
        dcd: false,
        ..ModemInputs::CONNECTED
    };
    uart.uart.set_modem_inputs(lines);
    assert!(uart.asserted());
    uart.uart.reset();
    assert!(!uart.asserted());
    for (register, value) in [
        (IER, 0),
        (IIR, 1),
        (LCR, 0),
        (MCR, 0),
        (LSR, 0x60),
        (MSR, 0x30),
        (SCR, 0),
    ] {
        assert_eq!(uart.read(register), value, "register {register}");
    }
    assert_eq!(uart.uart.counters().discarded, 3);
}

#[test]
fn hostile_states_are_refused_by_name() {
    let good = Fixture::open();
    for (field, broken) in saved::broken_states(&good.uart) {
        let mut uart = Fixture::new();
        let error = uart.uart.restore(&broken).unwrap_err();
        assert!(error.to_string().contains(field), "{field}: {error}");
        assert_eq!(uart.uart.save(), Fixture::new().uart.save());
    }
}

proptest! {
    /// The line is what the registers say, after whatever has happened.
    #[test]
    fn the_line_follows_the_interrupt(
        steps in proptest::collection::vec((0_u64..8, any::<u8>(), 0_u8..6), 0..200),
    ) {
        let mut uart = Fixture::new();
        for (offset, value, kind) in steps {
            match kind {
                0 | 1 => drop(uart.read(offset)),
                2 | 3 => drop(uart.try_write(offset, value)),
                4 => uart.input(&[value]),
                _ => {
                    uart.room(usize::from(value % 4));
                    uart.world.advance(Duration::from_millis(value.into()));
                    uart.uart.poll();
                }
            }
            let control = uart.uart.registers.modem_control;
            let gate = control.out2() && !control.loopback();
            let interrupt = uart.uart.interrupt() != InterruptId::None;
            prop_assert_eq!(uart.asserted(), gate && interrupt);
            // After a poll the next one is later, or for input.
            if let Some(deadline) = uart.uart.deadline() && deadline != VmTime::ZERO {
                uart.uart.poll();
                let now = uart.world.lock().clock;
                let next = uart.uart.deadline();
                prop_assert!(next.is_none_or(|at| at == VmTime::ZERO || at > now));
            }
        }
    }

    /// Whatever the guest does, it gets each byte once and in order, and so does the
    /// other end.
    #[test]
    fn no_byte_is_lost_between_any_paces(
        fifo: bool,
        trigger in 0_u8..4,
        rooms in proptest::collection::vec(0_usize..20, 1..40),
        reads in proptest::collection::vec(0_usize..20, 1..40),
    ) {
        let mut uart = Fixture::open();
        uart.write(FCR, if fifo { trigger << 6 | 1 } else { 0 });
        let sent: Vec<u8> = (0..=255).collect();
        uart.input(&sent);
        let (mut to_send, mut sent_back, mut received) = (sent.iter(), Vec::new(), Vec::new());
        let mut next = to_send.next();
        for round in 0.. {
            if next.is_none() && received.len() == sent.len() && !uart.uart.wants_output() {
                break;
            }
            prop_assert!(round < 4000, "stuck");
            uart.room(1 + rooms[round % rooms.len()]);
            for _ in 0..1 + reads[round % reads.len()] {
                if uart.read(LSR) & 1 != 0 {
                    received.push(uart.read(RBR));
                }
                // A guest without manners.
                if let Some(&byte) = next && uart.try_write(THR, byte) == Written::Done {
                    sent_back.push(byte);
                    next = to_send.next();
                }
            }
            uart.uart.poll();
        }
        prop_assert_eq!(&received, &sent);
        prop_assert_eq!(&sent_back, &sent);
        prop_assert_eq!(uart.output(), sent);
        prop_assert_eq!(uart.read(LSR), 0x60);
    }
}
