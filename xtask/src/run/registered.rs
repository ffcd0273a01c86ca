//! A VM in the list where `ohcldiag` looks.

use crate::run::Run;
use diag_client::registry;
use diag_client::registry::Registration;
use diag_client::registry::VmInfo;
use qemu::Vm;
use std::path::Path;
use vmm_tests::diag_address;

impl Run<'_> {
    /// Puts the VM in the list, until the result is dropped. Only once the paravisor is
    /// ready: a client that connects earlier can take vsock's helper down. A list that
    /// cannot be written is told and does no other harm.
    pub(super) fn register(&self, vm: &Vm) -> Option<Registration> {
        let address = vm.vsock()?;
        let absolute = |path: &Path| std::path::absolute(path).ok();
        let mut info = VmInfo::new(self.vm_name(), vm.process_id(), diag_address(address));
        info.consoles = absolute(self.consoles);
        info.image = absolute(self.image);
        registry::register(info)
            .inspect_err(|error| eprintln!("ohcldiag will not find this VM: {error}"))
            .ok()
    }

    /// The configuration's name, else that of the consoles' directory, which no other run
    /// has at the same time.
    pub(super) fn vm_name(&self) -> String {
        let directory = || self.consoles.file_name().unwrap_or_default();
        match &self.name {
            Some(name) => name.clone(),
            None => directory().to_string_lossy().into_owned(),
        }
    }
}
