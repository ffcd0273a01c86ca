//! What is told when a VP cannot go on, or the guest has given up.

use std::fmt::Write;
use virt::Instruction;
use virt::SegmentName;
use virt::Vp;
use virt::VpState;

/// Names of the general registers, in the order of their numbers.
const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

const SEGMENTS: [(&str, SegmentName); 6] = [
    ("es", SegmentName::Es),
    ("cs", SegmentName::Cs),
    ("ss", SegmentName::Ss),
    ("ds", SegmentName::Ds),
    ("fs", SegmentName::Fs),
    ("gs", SegmentName::Gs),
];

/// Lines of text: what has happened to the VP, the instruction, and all registers.
pub(crate) fn report(vp: &mut dyn Vp, reason: &str, instruction: Option<&Instruction>) -> String {
    let mut text = format!("VP {}: {reason}", vp.index());
    if let Some(instruction) = instruction {
        text.push_str("\ninstruction");
        for byte in instruction.bytes() {
            append(&mut text, format_args!(" {byte:02x}"));
        }
        append(&mut text, format_args!(" at rip {:#x}", instruction.rip));
    }
    match vp.state() {
        Ok(state) => registers(&mut text, &state),
        Err(error) => append(
            &mut text,
            format_args!("\nregisters cannot be read: {error}"),
        ),
    }
    text
}

fn registers(text: &mut String, state: &VpState) {
    append(
        text,
        format_args!(
            "\nrip {:016x} rflags {:08x}",
            state.registers.rip, state.registers.rflags
        ),
    );
    for (index, (name, value)) in GENERAL.iter().zip(state.registers.gp).enumerate() {
        let between = if index % 4 == 0 { '\n' } else { ' ' };
        append(text, format_args!("{between}{name:<3} {value:016x}"));
    }
    for (name, segment) in SEGMENTS {
        let segment = state.segments[segment as usize];
        append(
            text,
            format_args!(
                "\n{name} {:04x} base {:x} limit {:x} attributes {:x}",
                segment.selector, segment.base, segment.limit, segment.attributes
            ),
        );
    }
    append(
        text,
        format_args!(
            "\ncr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} cr8 {:x} efer {:x}",
            state.cr0, state.cr2, state.cr3, state.cr4, state.cr8, state.efer
        ),
    );
    append(
        text,
        format_args!(
            "\ngdt {:x}+{:x} idt {:x}+{:x} tr {:04x} base {:x}",
            state.gdtr.base,
            state.gdtr.limit,
            state.idtr.base,
            state.idtr.limit,
            state.tr.selector,
            state.tr.base
        ),
    );
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a text cannot fail.
    let _ = text.write_fmt(arguments);
}
