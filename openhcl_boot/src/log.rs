//! The shim's log: always in memory, on the serial port when there is one.
//!
//! The memory survives until usermode reads it. Lines that were written before the
//! serial port was known are replayed to it. Details go to memory only, because each
//! byte on an emulated port costs about 10 µs; when the boot fails they are shown after
//! all.

use alloc::boxed::Box;
use core::cell::RefCell;
use core::fmt::{self, Write};
use string_page_buf::StringBuffer;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The boot ends here.
    Error,
    /// Something was ignored or dropped.
    Warn,
    /// A decision or a fact.
    Info,
    /// The same, for memory only.
    Detail,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info | Self::Detail => "INFO",
        }
    }
}

/// The log. Writing needs no `mut`, so that every step can have it.
#[derive(Debug)]
pub struct BootLog<'a>(RefCell<Sinks<'a>>);

struct Sinks<'a> {
    memory: StringBuffer<'a>,
    serial: Option<Box<dyn Write + 'a>>,
    /// Memory has lines that the serial port has not.
    has_hidden_lines: bool,
}

impl fmt::Debug for Sinks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks")
            .field("memory", &self.memory)
            .field("serial", &self.serial.is_some())
            .finish()
    }
}

impl<'a> BootLog<'a> {
    /// A log in memory only.
    pub fn new(memory: StringBuffer<'a>) -> Self {
        Self(RefCell::new(Sinks {
            memory,
            serial: None,
            has_hidden_lines: false,
        }))
    }

    /// Adds a serial port, and shows there what was logged so far.
    pub fn attach_serial(&self, mut serial: Box<dyn Write + 'a>) {
        let mut sinks = self.0.borrow_mut();
        // A console that does not work is no reason to stop: memory has the text.
        let _ = serial.write_str(sinks.memory.text());
        sinks.serial = Some(serial);
    }

    /// Writes a line. Does nothing if a line is being written: that is the panic handler
    /// reporting a panic inside the log.
    pub fn line(&self, level: Level, message: fmt::Arguments<'_>) {
        let Ok(mut sinks) = self.0.try_borrow_mut() else {
            return;
        };
        let mut line = Line::new();
        // Too long a line is cut, which is all that an error can mean here.
        let _ = write!(line, "[{}] {message}", level.name());
        let line = line.finish();
        let stored = sinks.memory.append(line);
        let Sinks {
            memory,
            serial: Some(serial),
            has_hidden_lines,
        } = &mut *sinks
        else {
            return;
        };
        if level == Level::Detail {
            *has_hidden_lines = true;
            return;
        }
        if level == Level::Error && *has_hidden_lines {
            // All from the start: what led here is worth a second look.
            let _ = serial.write_str(memory.text());
            *has_hidden_lines = false;
            if stored {
                return;
            }
        }
        let _ = serial.write_str(line);
    }

    /// A decision or a fact.
    pub fn info(&self, message: fmt::Arguments<'_>) {
        self.line(Level::Info, message);
    }

    /// A decision or a fact, for memory only.
    pub fn detail(&self, message: fmt::Arguments<'_>) {
        self.line(Level::Detail, message);
    }

    /// Something was ignored or dropped.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        self.line(Level::Warn, message);
    }

    /// The boot ends here.
    pub fn error(&self, message: fmt::Arguments<'_>) {
        self.line(Level::Error, message);
    }
}

// A line is put together on the stack, so that it is stored whole or not at all, and so
// that logging works when the heap is used up.
struct Line {
    text: [u8; Line::CAPACITY],
    length: usize,
}

impl Line {
    const CAPACITY: usize = 512;

    fn new() -> Self {
        Self {
            text: [0; Self::CAPACITY],
            length: 0,
        }
    }

    fn finish(&mut self) -> &str {
        // `write_str` keeps one byte free.
        self.text[self.length] = b'\n';
        core::str::from_utf8(&self.text[..=self.length]).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = Self::CAPACITY - 1 - self.length;
        let fits = text.floor_char_boundary(room);
        self.text[self.length..self.length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::string::String;

    struct Port(Rc<RefCell<String>>);

    impl Write for Port {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.borrow_mut().push_str(text);
            Ok(())
        }
    }

    #[test]
    fn early_lines_are_replayed_to_the_serial_port() {
        let mut memory = [0; 4096];
        let port = Rc::new(RefCell::new(String::new()));

        let log = BootLog::new(StringBuffer::new(&mut memory).unwrap());
        log.info(format_args!("first {}", 1));
        log.attach_serial(Box::new(Port(port.clone())));
        log.warn(format_args!("second"));
        drop(log);

        let expected = "[INFO] first 1\n[WARN] second\n";
        assert_eq!(*port.borrow(), expected);
        assert_eq!(string_page_buf::read(&memory).unwrap().text, expected);
    }

    #[test]
    fn details_reach_the_serial_port_only_before_an_error() {
        let mut memory = [0; 4096];
        let port = Rc::new(RefCell::new(String::new()));
        let log = BootLog::new(StringBuffer::new(&mut memory).unwrap());
        log.attach_serial(Box::new(Port(port.clone())));

        log.info(format_args!("one"));
        log.detail(format_args!("two"));
        assert_eq!(*port.borrow(), "[INFO] one\n");
        log.error(format_args!("three"));
        log.error(format_args!("four"));

        let all = "[INFO] one\n[INFO] two\n[ERROR] three\n";
        let expected = alloc::format!("[INFO] one\n{all}[ERROR] four\n");
        assert_eq!(*port.borrow(), expected);
    }

    #[test]
    fn a_long_line_is_cut_and_still_ends() {
        let mut memory = [0; 4096];
        let log = BootLog::new(StringBuffer::new(&mut memory).unwrap());
        log.info(format_args!("{}", "é".repeat(1000)));
        drop(log);
        let text = string_page_buf::read(&memory).unwrap().text;
        assert!(text.len() <= Line::CAPACITY && text.ends_with("é\n"));
    }
}
