//! The receiver: FIFO, trigger levels, character timeout, errors.

use super::*;

/// Four characters of 8N1 at 115200 baud.
const TIMEOUT: Duration = Duration::from_nanos(10 * 1_000_000_000 / 115_200 * 4);

fn just_before() -> Duration {
    TIMEOUT - Duration::from_nanos(10)
}

#[test]
fn the_receive_interrupt_follows_the_trigger_level() {
    // "FIFO control register", bits 6 and 7; "FIFO interrupt mode operation".
    for (bits, level) in [(0_u8, 1), (1, 4), (2, 8), (3, 14)] {
        let mut uart = Fixture::open();
        uart.write(FCR, bits << 6 | 1);
        uart.write(IER, 0x01);
        for count in 1..=16 {
            uart.input(&[count]);
            assert_eq!(uart.asserted(), count >= level, "{count} of {level}");
        }
        for left in (0..16).rev() {
            uart.read(RBR);
            assert_eq!(uart.asserted(), left >= level, "{left} of {level}");
        }
    }
}

#[test]
fn fewer_bytes_than_the_level_interrupt_after_four_characters() {
    let mut uart = Fixture::open();
    uart.write(IER, 0x01);
    uart.input(b"ab");
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
    let due = uart.uart.deadline().unwrap();
    assert_eq!(due, uart.world.lock().clock.after(TIMEOUT));
    uart.world.advance(just_before());
    uart.uart.poll();
    assert!(!uart.asserted());
    uart.world.advance(TIMEOUT - just_before());
    uart.uart.poll();
    assert!(uart.asserted());
    assert_eq!(uart.uart.deadline(), None);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::TIMEOUT);
    // A read clears it and starts the time again.
    assert_eq!(uart.read(RBR), b'a');
    assert!(!uart.asserted());
    uart.world.advance(TIMEOUT);
    uart.uart.poll();
    assert_eq!(uart.read(IIR), iir::FIFO | iir::TIMEOUT);
    assert_eq!(uart.read(RBR), b'b');
    uart.world.advance(TIMEOUT);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
}

#[test]
fn bytes_and_reads_put_the_timeout_off() {
    let mut uart = Fixture::open();
    uart.write(IER, 0x01);
    uart.input(b"ab");
    uart.world.advance(just_before());
    uart.input(b"c");
    uart.world.advance(just_before());
    uart.read(RBR);
    uart.world.advance(just_before());
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
    uart.world.advance(TIMEOUT);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::TIMEOUT);
}

#[test]
fn a_full_level_is_shown_before_a_timeout() {
    let mut uart = Fixture::open();
    uart.write(FCR, 0x41);
    uart.write(IER, 0x01);
    uart.input(b"abc");
    uart.world.advance(TIMEOUT);
    uart.input(b"d");
    assert_eq!(uart.read(IIR), iir::FIFO | iir::RECEIVED);
}

#[test]
fn without_fifos_there_is_one_byte_and_no_timeout() {
    let mut uart = Fixture::new();
    uart.write(MCR, OPEN);
    uart.write(IER, 0x01);
    uart.input(b"ab");
    assert_eq!(uart.read(IIR), iir::RECEIVED);
    uart.world.advance(Duration::from_secs(60));
    assert_eq!(uart.read(IIR), iir::RECEIVED);
    assert_eq!(uart.read(RBR), b'a');
    assert!(!uart.asserted());
    assert_eq!(uart.read(LSR), 0x60);
    uart.uart.poll();
    assert_eq!(uart.read(RBR), b'b');
}

#[test]
fn a_reset_of_the_receive_fifo_empties_it() {
    let mut uart = Fixture::open();
    uart.write(IER, 0x01);
    uart.input(b"ab");
    uart.world.advance(TIMEOUT);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::TIMEOUT);
    uart.write(FCR, 0xc3);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(uart.read(IIR), iir::FIFO | iir::NONE);
    assert_eq!(uart.uart.counters().discarded, 2);
}

#[test]
fn an_error_appears_with_its_byte() {
    // LSR bits 2 to 4 "when its associated character is at the top of the FIFO"; bit 7
    // while any is in the FIFO.
    let mut uart = Fixture::open();
    uart.write(IER, 0x04);
    uart.input(b"a");
    assert!(uart.uart.receive_break());
    uart.input(b"b");
    assert!(!uart.asserted());
    assert_eq!(uart.read(LSR), 0xe1);
    assert_eq!(uart.read(RBR), b'a');
    assert!(uart.asserted());
    assert_eq!(uart.read(IIR), iir::FIFO | iir::LINE);
    assert_eq!(uart.read(LSR), 0xe1 | 0x18);
    assert_eq!(uart.read(LSR), 0x61, "a read clears all of it");
    assert!(!uart.asserted());
    assert_eq!(uart.read(RBR), 0);
    assert_eq!(uart.read(RBR), b'b');
}

#[test]
fn a_break_waits_for_room() {
    let mut uart = Fixture::open();
    uart.input(&[1; 16]);
    assert!(!uart.uart.receive_break());
    uart.read(RBR);
    assert!(uart.uart.receive_break());
}

#[test]
fn an_overrun_in_loopback_keeps_the_fifo_and_replaces_the_register() {
    let mut uart = Fixture::open();
    uart.write(MCR, LOOP);
    uart.write(IER, 0x04);
    for byte in 0..17 {
        uart.write(THR, byte);
    }
    assert_eq!(uart.read(IIR), iir::FIFO | iir::LINE);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61);
    let bytes: Vec<_> = (0..16).map(|_| uart.read(RBR)).collect();
    assert_eq!(bytes, (0..16).collect::<Vec<_>>());

    uart.write(FCR, 0);
    uart.write(THR, 1);
    uart.write(THR, 2);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(RBR), 2);
}

#[test]
fn an_empty_receiver_gives_zero() {
    let mut uart = Fixture::open();
    assert_eq!(uart.read(RBR), 0);
    assert_eq!(uart.read(LSR), 0x60);
}
