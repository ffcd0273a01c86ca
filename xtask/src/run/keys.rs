//! What a person types while the terminal is the guest's console: everything goes to the
//! guest, but for a few commands behind Ctrl-A.

/// In front of each command.
const PREFIX: u8 = 0x01;

/// What the commands are, for a person.
pub(super) const HELP: &str = "\
Ctrl-A X        end the machine
Ctrl-A H        this text
Ctrl-A Ctrl-A   send Ctrl-A to the guest";

/// What follows from what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// For the guest.
    Send(Vec<u8>),
    /// End the machine.
    End,
    /// Show [`HELP`].
    Help,
}

/// Looks for commands; they may be cut anywhere between two reads.
#[derive(Debug, Default)]
pub(super) struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// What follows from these bytes, in order.
    pub(super) fn typed(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        for &byte in bytes {
            if !self.after_prefix {
                match byte {
                    PREFIX => self.after_prefix = true,
                    byte => send(&mut actions, byte),
                }
                continue;
            }
            self.after_prefix = false;
            match byte {
                b'x' | b'X' => actions.push(Action::End),
                b'h' | b'H' | b'?' => actions.push(Action::Help),
                PREFIX | b'a' | b'A' => send(&mut actions, PREFIX),
                // No command: the person did not mean one.
                byte => {
                    send(&mut actions, PREFIX);
                    send(&mut actions, byte);
                }
            }
        }
        actions
    }
}

fn send(actions: &mut Vec<Action>, byte: u8) {
    match actions.last_mut() {
        Some(Action::Send(bytes)) => bytes.push(byte),
        _ => actions.push(Action::Send(vec![byte])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> Vec<Action> {
        let mut keys = Keys::default();
        pieces.iter().flat_map(|piece| keys.typed(piece)).collect()
    }

    fn send(bytes: &[u8]) -> Action {
        Action::Send(bytes.to_vec())
    }

    #[test]
    fn text_and_control_keys_go_to_the_guest() {
        let text = b"ls\r\x03\x1a\x1d\x1b[A\xc3\xa4";
        assert_eq!(typed(&[text]), [send(text)]);
    }

    #[test]
    fn commands_are_known_wherever_they_are_cut() {
        assert_eq!(typed(&[b"\x01x"]), [Action::End]);
        assert_eq!(
            typed(&[b"a\x01", b"Xb"]),
            [send(b"a"), Action::End, send(b"b")]
        );
        assert_eq!(typed(&[b"\x01h\x01?"]), [Action::Help, Action::Help]);
    }

    #[test]
    fn the_prefix_itself_can_be_sent() {
        assert_eq!(typed(&[b"\x01\x01"]), [send(b"\x01")]);
        assert_eq!(typed(&[b"\x01ab"]), [send(b"\x01b")]);
        assert_eq!(typed(&[b"\x01q"]), [send(b"\x01q")]);
    }
}
