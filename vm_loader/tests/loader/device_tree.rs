//! The device tree of an aarch64 VM, read back with the `fdt` crate.

use crate::files::arm64_image;
use crate::machine::{GIB, MIB, ram, range};
use fdt::Fdt;
use fdt::node::FdtNode;
use vm_loader::aarch64::{
    Conduit, DeviceTreeError, GicV3, LinuxDirect, LoadError, Machine, Pl011, Timer,
};
use vm_loader::{GpaRange, MemoryLayout};

/// Two processors with one serial port.
pub(crate) const MACHINE: Machine<'static> = Machine {
    processors: &[0, 0x1_0000_0102],
    psci: Conduit::Hvc,
    gic: GicV3 {
        distributor: range(0x800_0000, 0x801_0000),
        redistributors: &[range(0x80a_0000, 0x80e_0000)],
    },
    timer: Timer::STANDARD,
    serial_ports: &[Pl011 {
        registers: range(0x900_0000, 0x900_1000),
        spi: 1,
    }],
    rng_seed: &[7; 32],
};

const MEMORY: MemoryLayout<'static> = MemoryLayout {
    ram: &[ram(GIB, 2 * GIB), ram(8 * GIB, 9 * GIB)],
    reserved: &[range(GIB + 512 * MIB, GIB + 513 * MIB)],
    limit: u64::MAX,
};

fn tree(machine: &Machine<'_>, command_line: &str) -> Result<Vec<u8>, LoadError> {
    let kernel = arm64_image(0, 4 * MIB, 0, 0x1000);
    let direct = LinuxDirect {
        kernel: &kernel,
        initrd: None,
        command_line,
        memory: MEMORY,
        machine,
    };
    let plan = direct.plan()?;
    let piece = plan.pieces().iter().find(|p| p.what == "device tree");
    Ok(piece.expect("there is one").data.to_vec())
}

fn cells(node: &FdtNode<'_, '_>, name: &str) -> Vec<u32> {
    let property = node.property(name).expect("the property is there");
    let words = property.value.chunks(4);
    words
        .map(|word| u32::from_be_bytes(word.try_into().expect("whole cells")))
        .collect()
}

fn text<'a>(node: &FdtNode<'_, 'a>, name: &str) -> &'a str {
    let property = node.property(name).expect("the property is there");
    property.as_str().expect("it is text")
}

#[test]
fn processors_start_through_psci() {
    let bytes = tree(&MACHINE, "").expect("it fits");
    let tree = Fdt::new(&bytes).expect("it is valid");

    let cpus = tree.find_node("/cpus").expect("there are some");
    let found: Vec<_> = cpus
        .children()
        .map(|cpu| {
            assert_eq!(text(&cpu, "enable-method"), "psci");
            assert_eq!(text(&cpu, "device_type"), "cpu");
            (cpu.name.to_owned(), cells(&cpu, "reg"))
        })
        .collect();
    assert_eq!(
        found,
        [
            ("cpu@0".to_owned(), vec![0, 0]),
            ("cpu@100000102".to_owned(), vec![1, 0x102])
        ]
    );
    let psci = tree.find_node("/psci").expect("there is one");
    assert_eq!(text(&psci, "method"), "hvc");
    let compatible = psci.property("compatible").expect("it is there").value;
    assert_eq!(compatible, b"arm,psci-1.0\0arm,psci-0.2\0");
}

#[test]
fn memory_is_what_the_guest_may_use() {
    let bytes = tree(&MACHINE, "").expect("it fits");
    let tree = Fdt::new(&bytes).expect("it is valid");

    let found: Vec<_> = tree
        .find_all_nodes("/memory")
        .map(|node| {
            let reg = cells(&node, "reg");
            assert_eq!(text(&node, "device_type"), "memory");
            let wide = |i: usize| u64::from(reg[i]) << 32 | u64::from(reg[i + 1]);
            (wide(0), wide(2))
        })
        .collect();

    assert_eq!(
        found,
        [
            (GIB, 512 * MIB),
            (GIB + 513 * MIB, 511 * MIB),
            (8 * GIB, GIB)
        ]
    );
}

#[test]
fn interrupts_go_to_the_gic() {
    let bytes = tree(&MACHINE, "").expect("it fits");
    let tree = Fdt::new(&bytes).expect("it is valid");

    let gic = tree.find_compatible(&["arm,gic-v3"]).expect("there is one");
    let handle = cells(&gic, "phandle");
    assert_eq!(
        cells(&tree.find_node("/").expect("the root"), "interrupt-parent"),
        handle
    );
    assert_eq!(cells(&gic, "#interrupt-cells"), [3]);
    assert_eq!(cells(&gic, "#redistributor-regions"), [1]);
    assert!(gic.property("interrupt-controller").is_some());
    assert_eq!(
        cells(&gic, "reg"),
        [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0x4_0000]
    );
    let timer = tree
        .find_compatible(&["arm,armv8-timer"])
        .expect("there is one");
    assert_eq!(
        cells(&timer, "interrupts"),
        [1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]
    );
    let serial = tree.find_compatible(&["arm,pl011"]).expect("there is one");
    assert_eq!(cells(&serial, "interrupts"), [0, 1, 4]);
    assert_eq!(cells(&serial, "reg"), [0, 0x900_0000, 0, 0x1000]);
    let clock = tree
        .find_compatible(&["fixed-clock"])
        .expect("there is one");
    let clock = cells(&clock, "phandle")[0];
    assert_eq!(cells(&serial, "clocks"), [clock, clock]);
}

#[test]
fn chosen_has_command_line_console_and_entropy() {
    let bytes = tree(&MACHINE, "console=ttyAMA0 x=1").expect("it fits");
    let tree = Fdt::new(&bytes).expect("it is valid");

    let chosen = tree.chosen();
    assert_eq!(chosen.bootargs(), Some("console=ttyAMA0 x=1"));
    assert_eq!(
        chosen.stdout().expect("there is one").name,
        "serial@9000000"
    );
    let chosen = tree.find_node("/chosen").expect("there is one");
    assert_eq!(
        chosen.property("rng-seed").expect("it is there").value,
        [7; 32]
    );
    assert!(chosen.property("linux,initrd-start").is_none());
}

#[test]
fn machines_that_make_no_sense_are_refused() {
    let error = |machine: Machine<'_>| match tree(&machine, "") {
        Err(LoadError::DeviceTree(error)) => error,
        other => panic!("{other:?}"),
    };
    let port = MACHINE.serial_ports[0];

    assert!(matches!(
        error(Machine {
            processors: &[],
            ..MACHINE
        }),
        DeviceTreeError::Count {
            what: "processors",
            ..
        }
    ));
    for processors in [[0, 0], [0, 1 << 31]] {
        assert!(matches!(
            error(Machine {
                processors: &processors,
                ..MACHINE
            }),
            DeviceTreeError::Mpidr { .. }
        ));
    }
    assert!(matches!(
        error(Machine {
            serial_ports: &[Pl011 { spi: 988, ..port }],
            ..MACHINE
        }),
        DeviceTreeError::Interrupt { found: 988, .. }
    ));
    let nowhere = Pl011 {
        registers: GpaRange::EMPTY,
        ..port
    };
    assert!(matches!(
        error(Machine {
            serial_ports: &[nowhere],
            ..MACHINE
        }),
        DeviceTreeError::NoRegisters { .. }
    ));
    assert_eq!(
        tree(&MACHINE, &"x".repeat(2048)),
        Err(LoadError::DeviceTree(DeviceTreeError::CommandLineTooLong {
            size: 2048
        }))
    );
    assert_eq!(
        tree(&MACHINE, "a\0"),
        Err(LoadError::DeviceTree(DeviceTreeError::CommandLineZero {
            offset: 1
        }))
    );
}
