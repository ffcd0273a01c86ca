//! Back-pressure, in both directions.

use super::*;

#[test]
fn bytes_go_out_at_once_while_the_other_end_takes_them() {
    let mut uart = Fixture::open();
    uart.write(IER, 0x02);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::EMPTY);
    uart.edges();
    for byte in *b"hello" {
        uart.write(THR, byte);
        assert_eq!(uart.read(LSR), 0x60);
    }
    assert_eq!(uart.output(), b"hello");
    // The first write raises the line; the next ones make an edge each, for a handler
    // that writes without reading IIR waits for one.
    let edges = uart.edges();
    assert_eq!(edges.len(), 9);
    assert_eq!(edges.last(), Some(&true));
}

#[test]
fn a_slow_end_keeps_the_transmitter_busy() {
    let mut uart = Fixture::open();
    uart.room(0);
    uart.write(IER, 0x02);
    uart.read(IIR);
    uart.write(THR, 1);
    assert_eq!(uart.read(LSR), 0x00);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
    assert!(uart.uart.wants_output());
    uart.room(1);
    assert_eq!(uart.read(LSR), 0x60);
    assert!(uart.asserted());
    assert!(!uart.uart.wants_output());
}

#[test]
fn a_full_fifo_holds_the_guest_up_and_loses_nothing() {
    let mut uart = Fixture::open();
    uart.room(0);
    for byte in 0..16 {
        uart.write(THR, byte);
    }
    let before = uart.uart.save();
    assert_eq!(uart.try_write(THR, 16), Written::Stalled);
    assert_eq!(uart.uart.save(), before);
    uart.room(3);
    uart.write(THR, 16);
    uart.room(100);
    assert_eq!(uart.output(), (0..17).collect::<Vec<_>>());
    assert_eq!(uart.uart.counters().stalls, 1);
    assert_eq!(uart.uart.counters().sent, 17);
}

#[test]
fn output_survives_every_reset_and_loopback() {
    let mut uart = Fixture::open();
    uart.room(0);
    for byte in 0..5 {
        uart.write(THR, byte);
    }
    uart.write(FCR, 0xc5);
    uart.write(FCR, 0x00);
    assert_eq!(uart.read(LSR), 0x00, "busy until it is sent");
    assert_eq!(uart.try_write(THR, 5), Written::Stalled);
    // Loopback has a path of its own, which is free.
    uart.write(MCR, LOOP);
    assert_eq!(uart.read(LSR), 0x60);
    uart.write(THR, b'x');
    assert_eq!(uart.read(RBR), b'x');
    uart.uart.reset();
    assert_eq!(uart.read(LSR), 0x00);
    uart.room(100);
    assert_eq!(uart.output(), [0, 1, 2, 3, 4]);
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn a_stall_ends_when_there_is_room_and_not_before() {
    let mut uart = Fixture::open();
    uart.room(0);
    for byte in 0..16 {
        uart.write(THR, byte);
    }
    assert!(!uart.uart.stalls());
    assert_eq!(uart.try_write(THR, 16), Written::Stalled);
    uart.uart.poll();
    assert!(uart.uart.stalls());
    uart.room(1);
    assert!(!uart.uart.stalls());
}

#[test]
fn without_fifos_one_byte_waits() {
    let mut uart = Fixture::new();
    uart.room(0);
    uart.write(THR, 1);
    assert_eq!(uart.try_write(THR, 2), Written::Stalled);
    uart.room(1);
    uart.write(THR, 2);
    assert_eq!(uart.output(), [1]);
}

#[test]
fn a_stalled_write_finds_room_that_nobody_announced() {
    let mut uart = Fixture::new();
    uart.room(0);
    uart.write(THR, 1);
    uart.world.lock().serial[0].room = 9;
    uart.write(THR, 2);
    assert_eq!(uart.output(), [1, 2]);
}

#[test]
fn input_waits_outside_while_the_fifo_is_full() {
    let mut uart = Fixture::open();
    uart.input(&[7; 40]);
    assert_eq!(uart.world.lock().serial[0].input.len(), 24);
    assert!(!uart.uart.wants_input());
    uart.uart.poll();
    assert_eq!(uart.world.lock().serial[0].input.len(), 24);
    assert_eq!(uart.read(LSR), 0x61, "no overrun");
}

#[test]
fn input_comes_by_polling_only_so_that_a_handler_ends() {
    let mut uart = Fixture::open();
    uart.write(IER, 0x01);
    uart.input(&[7; 40]);
    uart.edges();
    let mut read = 0;
    while uart.read(LSR) & 1 != 0 {
        uart.read(RBR);
        read += 1;
    }
    assert_eq!(read, 16);
    // The next bytes are due now, and will be an edge.
    assert_eq!(uart.uart.deadline(), Some(VmTime::ZERO));
    assert_eq!(uart.edges(), [false]);
    uart.uart.poll();
    assert_eq!(uart.edges(), [true]);
}

#[test]
fn when_the_input_ends_nothing_is_due() {
    let mut uart = Fixture::open();
    uart.input(&[7; 3]);
    while uart.read(LSR) & 1 != 0 {
        uart.read(RBR);
    }
    assert_eq!(uart.uart.deadline(), None);
    assert!(uart.uart.wants_input());
}

#[test]
fn a_guest_that_lowers_rts_gets_no_input() {
    let mut uart = Fixture::open();
    uart.write(MCR, OPEN & !0x02);
    uart.input(b"x");
    assert_eq!(uart.read(LSR), 0x60);
    assert!(!uart.uart.wants_input());
    assert_eq!(uart.uart.deadline(), None);
    uart.write(MCR, OPEN);
    assert_eq!(uart.uart.deadline(), Some(VmTime::ZERO));
    uart.uart.poll();
    assert_eq!(uart.read(RBR), b'x');
}

#[test]
fn a_guest_that_never_used_rts_gets_input() {
    let mut uart = Fixture::new();
    uart.input(b"x");
    assert_eq!(uart.read(RBR), b'x');
}

/// A backend that claims more than it was given.
struct Liar;

impl SerialBackend for Liar {
    fn write(&mut self, _: &[u8]) -> usize {
        usize::MAX
    }

    fn read(&mut self, _: &mut [u8]) -> usize {
        usize::MAX
    }
}

#[test]
fn a_backend_that_lies_is_believed_as_far_as_possible() {
    let world = SharedWorld::default();
    let clock = Arc::new(world);
    let mut uart = Uart::new(0, clock, InterruptLine::unconnected(), Box::new(Liar));
    uart.poll();
    assert_eq!(uart.write(access(THR), 1), Written::Done);
    assert_eq!(uart.read(access(LSR)), 0x61);
}
