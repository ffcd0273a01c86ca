//! Checks that what `mshv_defs` says of the kernel's driver is what the kernel says.
//!
//! A C program with one assertion for each size, offset and number is compiled against the
//! headers of the kernel that is in the image. Two of the structures are the kernel's own
//! business, in headers that no program can include, so their text is taken out.

use crate::cache::Cache;
use crate::kernel;
use anyhow::Context;
use mshv_defs::LAYOUT;
use mshv_defs::NUMBERS;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// The driver's interface, for programs.
const UAPI: &str = "include/uapi/linux/mshv.h";
/// Structures that are cut out of other headers, in the order in which they need each other.
const INNER: [(&str, &str); 3] = [
    ("arch/x86/include/asm/fpu/types.h", "fxregs_state"),
    ("arch/x86/include/asm/mshyperv.h", "mshv_vtl_cpu_context"),
    ("drivers/hv/mshv_vtl.h", "mshv_vtl_run"),
];

/// Fails if there is a difference; the compiler says which.
pub(crate) fn check(cache: &Cache) -> anyhow::Result<()> {
    let mut files = vec![UAPI];
    files.extend(INNER.map(|(file, _)| file));
    let headers = kernel::headers(cache, &files)?;
    let work = cache.temporary("kernel-headers")?;
    let file = work.path().join("layout.c");
    std::fs::write(&file, program(&headers)?)?;
    compile(&file).context("vm/mshv_defs differs from the kernel's headers")
}

fn compile(file: &Path) -> anyhow::Result<()> {
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-fsyntax-only", "-Wall", "-Werror"])
        .arg(file);
    let output = compiler.output().context("starting gcc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{said}");
    Ok(())
}

fn program(headers: &Path) -> anyhow::Result<String> {
    let mut text = String::from(
        "#include <stddef.h>\n#include <linux/ioctl.h>\n#include <linux/types.h>\n\
         typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;\n",
    );
    let uapi = headers.join(UAPI);
    writeln!(text, "#include {:?}", uapi)?;
    for (file, name) in INNER {
        let path = headers.join(file);
        let header = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        text += definition(&header, name)
            .with_context(|| format!("{file} of the kernel does not define struct {name}"))?;
        text.push('\n');
    }
    text += &assertions()?;
    Ok(text)
}

/// The text of a structure that is defined at the start of a line.
fn definition<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let text = &header[header.find(&format!("\nstruct {name} {{"))?..];
    let end = text.find("\n}")?;
    let length = text[end..].find(';')?;
    text.get(1..end + length + 1)
}

fn assertions() -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let mut equal = |c: &str, ours: usize| {
        writeln!(
            text,
            "_Static_assert({c} == {ours:#x}, \"ours: {ours:#x}\");"
        )
    };
    for structure in LAYOUT {
        equal(&format!("sizeof({})", structure.name), structure.size)?;
        for field in structure.fields {
            let c = format!("offsetof({}, {})", structure.name, field.name);
            equal(&c, field.offset)?;
        }
    }
    for (name, number) in NUMBERS {
        equal(name, *number as usize)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_cut_out_with_its_attributes() {
        let header = "int a;\nstruct b {\n\tstruct {\n\t\tint c;\n\t};\n} __packed;\nint d;\n";
        let expected = "struct b {\n\tstruct {\n\t\tint c;\n\t};\n} __packed;";
        assert_eq!(definition(header, "b"), Some(expected));
        assert_eq!(definition(header, "d"), None);
    }

    #[test]
    fn a_difference_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("layout.c");

        std::fs::write(&file, "_Static_assert(sizeof(int) == 4, \"\");").unwrap();
        assert!(compile(&file).is_ok());

        std::fs::write(&file, "_Static_assert(sizeof(int) == 8, \"ours: 8\");").unwrap();
        let error = compile(&file).unwrap_err();
        assert!(error.to_string().contains("ours: 8"));
    }
}
