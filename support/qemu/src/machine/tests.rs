//! What the command line looks like.

use super::*;

const PROGRAM: Wiring = Wiring::Program {
    qmp: 9,
    vsock: None,
};

fn arguments(machine: &Machine) -> Vec<String> {
    machine
        .command_line(&Qemu::unprobed("qemu"), PROGRAM)
        .unwrap()
        .arguments()
        .map(str::to_owned)
        .collect()
}

fn value(machine: &Machine, option: &str) -> String {
    let arguments = arguments(machine);
    let at = arguments.iter().position(|a| a == option).unwrap();
    arguments[at + 1].clone()
}

fn stack() -> Machine {
    Machine::vsm("host.elf", "image.igvm")
}

#[test]
fn the_whole_command_line_of_the_stack() {
    let machine = stack()
        .vps(4)
        .memory(ByteCount::gib(2))
        .vtl2_memory(ByteCount::mib(128))
        .bootarg("OPENHCL_EXIT_AFTER_BOOT=1");
    let text = machine
        .command_line(&Qemu::unprobed("qemu-system-x86_64"), Wiring::Terminal)
        .unwrap()
        .shell_text();
    assert_eq!(
        text,
        r"qemu-system-x86_64 \
  -nodefaults \
  -no-user-config \
  -no-reboot \
  -display none \
  -vga none \
  -nic none \
  -machine q35,memory-backend=ram \
  -object memory-backend-memfd,id=ram,size=2048M,share=on \
  -m 2048M \
  -smp 5 \
  -accel tcg,thread=multi \
  -cpu max \
  -global hpet.msi=on \
  -global hpet.timers=24 \
  -kernel host.elf \
  -initrd image.igvm \
  -append 'vtl2_memory=128M -- OPENHCL_EXIT_AFTER_BOOT=1' \
  -chardev stdio,id=terminal,mux=on,signal=off \
  -device isa-debugcon,iobase=0xe9,chardev=terminal \
  -device isa-debug-exit,iobase=0xf4,iosize=4 \
  -device isa-serial,index=2,chardev=terminal"
    );
}

#[test]
fn the_console_is_com1_of_a_guest_without_paravisor() {
    let machine = Machine::without_paravisor("vsm_host", "linux.igvm");
    let arguments = arguments(&machine).join(" ");
    assert!(arguments.contains("isa-serial,index=0,"), "{arguments}");
    assert!(!arguments.contains("index=2"), "{arguments}");
}

#[test]
fn one_vcpu_more_than_vps_is_given_and_parked() {
    assert_eq!(value(&stack().vps(16), "-smp"), "17");
    assert_eq!(stack().vps(2).apic_ids(), [1, 2]);
}

#[test]
fn without_parking_the_host_is_told() {
    let machine = stack().vps(2).unparked();
    assert_eq!(value(&machine, "-smp"), "2");
    assert_eq!(value(&machine, "-append"), "park=off");
    assert_eq!(machine.apic_ids(), [0, 1]);

    let kvm = stack().vps(2).accel(Accel::Kvm);
    assert_eq!(value(&kvm, "-smp"), "2");
    assert_eq!(value(&kvm, "-append"), "park=off");
}

#[test]
fn a_plain_machine_has_only_the_vcpus_of_the_vm() {
    let machine = Machine::plain("vmlinux", "initrd")
        .vps(4)
        .bootarg("console=ttyS2");
    assert_eq!(value(&machine, "-smp"), "4");
    assert_eq!(value(&machine, "-append"), "console=ttyS2");
    assert!(!arguments(&machine).iter().any(|a| a.contains("debug")));
}

#[test]
fn boot_arguments_come_after_the_separator_only() {
    let machine = stack().host_option("a=1").bootarg("b=2").bootarg("c=3 d");
    assert_eq!(value(&machine, "-append"), "a=1 -- b=2 c=3 d");
    assert!(!arguments(&stack()).iter().any(|a| a == "-append"));
}

#[test]
fn a_host_option_cannot_smuggle_boot_arguments() {
    for option in ["--", "a b", "", "x\n--"] {
        let result = stack()
            .host_option(option)
            .command_line(&Qemu::unprobed("qemu"), PROGRAM);
        assert!(
            matches!(result, Err(MachineError::HostOption { .. })),
            "{option:?}"
        );
    }
}

#[test]
fn impossible_machines_are_refused() {
    let refusal = |machine: Machine| {
        machine
            .command_line(&Qemu::unprobed("qemu"), PROGRAM)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refusal(stack().vps(0)), "0 VPs: expected 1 to 254");
    assert_eq!(refusal(stack().vps(255)), "255 VPs: expected 1 to 254");
    assert_eq!(
        refusal(stack().memory(ByteCount::bytes(1000))),
        "1000 of memory: expected a multiple of 1M, at least 1M"
    );
}

#[test]
fn numa_nodes_have_their_own_memory_and_vcpus() {
    let machine = stack().numa("2,0,3".parse().unwrap());
    let arguments = arguments(&machine).join(" ");
    for expected in [
        "-machine q35 ",
        "-object memory-backend-memfd,id=ram0,size=342M,share=on ",
        "-object memory-backend-memfd,id=ram2,size=341M,share=on ",
        "-m 1024M -smp 6 ",
        "-numa node,nodeid=0,cpus=0-2,memdev=ram0 ",
        "-numa node,nodeid=1,memdev=ram1 ",
        "-numa node,nodeid=2,cpus=3-5,memdev=ram2 ",
    ] {
        assert!(arguments.contains(expected), "{expected}: {arguments}");
    }
    assert_eq!(machine.apic_ids(), [1, 2, 3, 4, 5]);
}

#[test]
fn numa_nodes_that_do_not_fit_the_machine_are_refused() {
    let refusal = |machine: Machine| {
        let line = machine.command_line(&Qemu::unprobed("qemu"), PROGRAM);
        line.unwrap_err().to_string()
    };
    let numa = || stack().numa("2,0,3".parse().unwrap());
    assert_eq!(
        refusal(numa().vps(4)),
        "NUMA nodes 2,0,3 have 5 VPs: expected 4, as the machine has"
    );
    assert_eq!(
        refusal(numa().memory(ByteCount::mib(2))),
        "2M of memory for 3 NUMA nodes: expected 1M or more for each"
    );
}

#[test]
fn devices_network_and_debugger_are_there_only_when_asked_for() {
    let machine = stack()
        .nic("user,model=virtio-net-pci")
        .extra(["-device", "virtio-rng-pci"])
        .gdb(Gdb {
            port: 1234,
            freeze: true,
        });
    assert_eq!(value(&machine, "-nic"), "user,model=virtio-net-pci");
    assert_eq!(value(&machine, "-gdb"), "tcp:127.0.0.1:1234");
    let arguments = arguments(&machine);
    assert!(arguments.contains(&"-S".to_owned()));
    assert!(arguments.ends_with(&["-device".to_owned(), "virtio-rng-pci".to_owned()]));
}

#[test]
fn vsock_is_an_inherited_socket_for_a_program_and_a_path_for_a_person() {
    let machine = stack().vsock(Vsock::Helper("helper".into()));
    let arguments = |wiring| {
        let line = machine.command_line(&Qemu::unprobed("qemu"), wiring);
        line.unwrap().shell_text()
    };
    let program = arguments(Wiring::Program {
        qmp: 9,
        vsock: Some(VsockEnd::Socket(7)),
    });
    assert!(program.contains("socket,id=vsock,fd=7"), "{program}");
    assert!(program.contains("vhost-user-vsock-pci,chardev=vsock"));
    let person = arguments(Wiring::Terminal);
    assert!(person.contains(",path=openhcl-vsock/"), "{person}");
}

#[test]
fn the_kernels_vsock_has_an_address() {
    let machine = stack().vsock(Vsock::Kernel);
    let wiring = Wiring::Program {
        qmp: 9,
        vsock: Some(VsockEnd::Cid(77)),
    };
    let line = machine.command_line(&Qemu::unprobed("qemu"), wiring);
    let text = line.unwrap().shell_text();
    assert!(text.contains("vhost-vsock-pci,guest-cid=77"), "{text}");
}

#[test]
fn a_comma_in_the_configurations_path_does_not_end_it() {
    let machine = stack().config("a,b.json");
    assert_eq!(
        value(&machine, "-fw_cfg"),
        "name=opt/openhcl/config,file=a,,b.json"
    );
}
