//! The layouts in `loader_defs::linux` are those of the kernel's own headers. The C compiler
//! says which those are; it and the headers are among the packages that set-up installs.

use loader_defs::linux::{BootParams, E820Entry, SetupData, SetupHeader};
use std::fmt::Write;
use std::mem::offset_of;
use std::process::Command;

/// Compiles C that includes the boot protocol's header and runs it.
fn run_c(statements: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let source = directory.path().join("layout.c");
    let program = directory.path().join("layout");
    let code = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <asm/bootparam.h>\n\
         int main(void) {{\n{statements}return 0;\n}}\n"
    );
    std::fs::write(&source, code).expect("it can be written");
    let compiler = Command::new("gcc")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("there is a C compiler");
    assert!(
        compiler.status.success(),
        "{}",
        String::from_utf8_lossy(&compiler.stderr)
    );
    let output = Command::new(&program).output().expect("it runs");
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn boot_protocol_structures_are_laid_out_as_in_the_kernels_header() {
    macro_rules! fields {
        ($rust:ty, $c:literal: $($field:ident $(as $name:literal)?),* $(,)?) => {
            [$((
                $c,
                { let _name = stringify!($field); $(let _name = $name;)? _name },
                offset_of!($rust, $field),
            )),*]
        };
    }
    let header = fields!(SetupHeader, "struct setup_header":
        setup_sects, root_flags, syssize, ram_size, vid_mode, root_dev, boot_flag, jump, header,
        version, realmode_swtch, start_sys_seg, kernel_version, type_of_loader, loadflags,
        setup_move_size, code32_start, ramdisk_image, ramdisk_size, bootsect_kludge,
        heap_end_ptr, ext_loader_ver, ext_loader_type, cmd_line_ptr, initrd_addr_max,
        kernel_alignment, relocatable_kernel, min_alignment, xloadflags, cmdline_size,
        hardware_subarch, hardware_subarch_data, payload_offset, payload_length, setup_data,
        pref_address, init_size, handover_offset, kernel_info_offset,
    );
    let params = fields!(BootParams, "struct boot_params":
        acpi_rsdp_addr, ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr, e820_entries, hdr,
        e820_table,
    );
    let entry = fields!(E820Entry, "struct boot_e820_entry": addr, size, typ as "type");
    let data = fields!(SetupData, "struct setup_data": next, typ as "type", len);
    let sizes = [
        ("struct setup_header", size_of::<SetupHeader>()),
        ("struct boot_params", size_of::<BootParams>()),
        ("struct boot_e820_entry", size_of::<E820Entry>()),
        ("struct setup_data", size_of::<SetupData>()),
    ];

    let (mut code, mut expected) = (String::new(), String::new());
    for (c, field, offset) in header.into_iter().chain(params).chain(entry).chain(data) {
        writeln!(
            code,
            r#"printf("{c} {field} %zu\n", offsetof({c}, {field}));"#
        )
        .unwrap();
        writeln!(expected, "{c} {field} {offset}").unwrap();
    }
    for (c, size) in sizes {
        writeln!(code, r#"printf("{c} %zu\n", sizeof({c}));"#).unwrap();
        writeln!(expected, "{c} {size}").unwrap();
    }
    assert_eq!(run_c(&code), expected);
}
