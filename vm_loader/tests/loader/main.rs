//! Tests of the loader through its public interface.

mod aarch64;
mod acpi_tables;
mod aml;
mod device_tree;
mod files;
mod hostile;
mod linux_headers;
mod machine;
mod x86_64;
mod zero_page;
