//! The threads of a VM: of each VP, or one for those in the sidecar.

use super::Vm;
use super::VmError;
use super::remote;
use super::vp;
use tokio::sync::oneshot;

impl Vm {
    pub(super) async fn start_threads(&mut self) -> Result<(), VmError> {
        let machine = &self.machine;
        let (mut waiting, mut remote) = (Vec::new(), Vec::new());
        for vp in 0..machine.partition.vp_count() {
            if machine.partition.is_remote(vp) {
                let attached = machine.partition.clone().attach(vp);
                remote.push(attached.map_err(|error| VmError::Bind { vp, error })?);
                continue;
            }
            let (sender, bound) = oneshot::channel();
            let thread = vp::spawn(machine.clone(), vp, sender)
                .map_err(|error| VmError::Thread { vp, error })?;
            machine.threads().push(thread);
            waiting.push((vp, bound));
        }
        if !remote.is_empty() {
            let (remotes, thread) =
                remote::spawn(machine.clone(), remote).map_err(VmError::Sidecar)?;
            machine.threads().push(thread);
            self.remotes = Some(remotes);
        }
        for (vp, bound) in waiting {
            match bound.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(VmError::Bind { vp, error }),
                Err(_) => return Err(VmError::Ended { vp }),
            }
        }
        Ok(())
    }

    /// Has Linux get the CPU of `vp`, if it is in the sidecar. The answer says why it has got
    /// it; `None`: it has always had it, as far as this process knows.
    pub(crate) fn online(
        &self,
        vp: u32,
    ) -> impl Future<Output = Result<Option<String>, String>> + use<> {
        let machine = self.machine.clone();
        let exists = (vp as usize) < machine.vps.len();
        let asked = self.remotes.as_ref().filter(|_| exists);
        let asked = asked.map(|remotes| remotes.ask(vp));
        async move {
            if let Some(asked) = asked {
                // An error means the same: nobody works on it any more.
                let _ = asked.await;
            }
            match machine.vps.get(vp as usize) {
                Some(stats) => stats.place.reason(),
                None => {
                    let count = machine.vps.len();
                    Err(format!("VP {vp} does not exist: there are {count}"))
                }
            }
        }
    }

    /// Ends the threads and tasks, whatever they do, and waits for that.
    pub(crate) async fn end(mut self) {
        self.end_vps();
        loop {
            // One of them can start others before it ends.
            let Some(thread) = self.machine.threads().pop() else {
                break;
            };
            // They end soon: none of them waits for anything but the gate, or Linux.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.tasks.shutdown().await;
    }

    pub(super) fn end_vps(&self) {
        self.machine.gate.end();
        self.machine.herald.stop_vps();
    }
}
