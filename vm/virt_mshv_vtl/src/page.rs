//! Pages that the kernel, the host and the sidecar share with us: a run page or a command
//! page for each CPU, and a register page.
//!
//! They change while VTL0 runs, and `cancel` at any time. Everything is read and written
//! through atomic operations, so no order of events is undefined behaviour; what is relied
//! upon is that whoever has the VP alone accesses all but `cancel`.

#![expect(unsafe_code, reason = "maps pages and makes atomics of their words")]

use crate::device::kernel;
use crate::error::Error;
use hv_defs::HV_PAGE_SIZE;
use hv_defs::register_page::HvX64RegisterPage;
use hv_defs::register_page::RegisterPageDirty;
use hv_defs::synic::HV_MESSAGE_SIZE;
use hv_defs::synic::HvMessage;
use hv_defs::vp_context::HvX64SegmentRegister;
use mshv_defs::CpuContext;
use mshv_defs::FxState;
use mshv_defs::GP_CR2;
use mshv_defs::RunPage;
use rustix::mm;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use virt::Gp;

const SIZE: usize = HV_PAGE_SIZE as usize;

/// A page that is mapped.
pub(crate) struct Page(NonNull<u8>);

// SAFETY: a mapping belongs to the process, not to a thread; all access is atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// The page at `offset` of `file`.
    pub(crate) fn map(file: BorrowedFd<'_>, offset: u64) -> Result<Self, Error> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe {
            mm::mmap(
                ptr::null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )
        };
        let failed = kernel("map a page of a VP");
        let address = address.map_err(&failed)?;
        let address = NonNull::new(address.cast()).ok_or(failed(rustix::io::Errno::FAULT))?;
        Ok(Self(address))
    }

    /// Eight bytes at a multiple of eight.
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= SIZE);
        // SAFETY: these bytes are in the page, which is mapped as long as `self` lives, and
        // aligned, because a page is. All access to them is atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    /// Four bytes at a multiple of four.
    pub(crate) fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= SIZE);
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    /// One byte. Whoever uses this uses nothing wider for the same byte.
    pub(crate) fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < SIZE);
        // SAFETY: as in `word`.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(offset)) }
    }

    pub(crate) fn get(&self, offset: usize) -> u64 {
        self.word(offset).load(Relaxed)
    }

    pub(crate) fn set(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Relaxed);
    }

    /// The message at `offset`.
    pub(crate) fn message(&self, offset: usize) -> HvMessage {
        let mut words = [0; HV_MESSAGE_SIZE / 8];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.get(offset + 8 * index);
        }
        zerocopy::transmute!(words)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it is this type's own, and nobody has borrowed from it. Should it fail,
        // the mapping stays, and does no harm.
        let _ = unsafe { mm::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// The run page of a CPU.
pub(crate) struct Run(Page);

impl Run {
    pub(crate) fn map(vtl: BorrowedFd<'_>, cpu: u16) -> Result<Self, Error> {
        Page::map(vtl, mshv_defs::run_page_offset(cpu)).map(Self)
    }

    /// Not 0: the VP is not to be run.
    pub(crate) fn cancel(&self) -> &AtomicU32 {
        self.0.half(offset_of!(RunPage, cancel))
    }

    /// Why VTL0 was left.
    pub(crate) fn message(&self) -> HvMessage {
        self.0.message(offset_of!(RunPage, exit_message))
    }

    /// The registers that VTLs share.
    pub(crate) fn context(&self) -> Context<'_> {
        Context::new(&self.0, offset_of!(RunPage, cpu_context))
    }
}

/// Words of a [`CpuContext`].
const CONTEXT_WORDS: usize = size_of::<CpuContext>() / 8;

/// What a [`Context`] holds.
pub(crate) type ContextWords = [u64; CONTEXT_WORDS];

/// The registers that VTLs share, in the page where VTL0 has left them and will find them.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    page: &'a Page,
    offset: usize,
}

impl<'a> Context<'a> {
    /// The [`CpuContext`] at `offset`.
    pub(crate) fn new(page: &'a Page, offset: usize) -> Self {
        Self { page, offset }
    }

    /// A general register, but RSP.
    pub(crate) fn gp(&self, register: Gp) -> u64 {
        self.gp_at(register as usize)
    }

    pub(crate) fn set_gp(&self, register: Gp, value: u64) {
        self.set_gp_at(register as usize, value);
    }

    /// By number; what RSP has is of no use.
    pub(crate) fn gp_at(&self, number: usize) -> u64 {
        self.get(gp_offset(number))
    }

    /// By number; RSP is ignored: in its place is CR2.
    pub(crate) fn set_gp_at(&self, number: usize, value: u64) {
        if number != GP_CR2 {
            self.set(gp_offset(number), value);
        }
    }

    pub(crate) fn cr2(&self) -> u64 {
        self.get(gp_offset(GP_CR2))
    }

    pub(crate) fn set_cr2(&self, value: u64) {
        self.set(gp_offset(GP_CR2), value);
    }

    pub(crate) fn xmm(&self, register: u8) -> u128 {
        let offset = xmm_offset(register);
        u128::from(self.get(offset)) | u128::from(self.get(offset + 8)) << 64
    }

    pub(crate) fn set_xmm(&self, register: u8, value: u128) {
        let offset = xmm_offset(register);
        self.set(offset, value as u64);
        self.set(offset + 8, (value >> 64) as u64);
    }

    /// x87 and SSE as after a reset.
    pub(crate) fn reset_fx(&self) {
        let mut fx = [0_u64; size_of::<FxState>() / 8];
        // x87 and SSE control: AMD APM volume 2, table 14-1.
        fx[0] = 0x40;
        fx[offset_of!(FxState, mxcsr) / 8] = 0x1f80;
        for (index, word) in fx.into_iter().enumerate() {
            self.set(offset_of!(CpuContext, fx) + 8 * index, word);
        }
    }

    /// All of them.
    pub(crate) fn load(&self) -> ContextWords {
        std::array::from_fn(|index| self.get(8 * index))
    }

    /// Writes all of them.
    pub(crate) fn store(&self, words: &ContextWords) {
        for (index, word) in words.iter().enumerate() {
            self.set(8 * index, *word);
        }
    }

    fn get(&self, offset: usize) -> u64 {
        self.page.get(self.offset + offset)
    }

    fn set(&self, offset: usize, value: u64) {
        self.page.set(self.offset + offset, value);
    }
}

const fn gp_offset(number: usize) -> usize {
    offset_of!(CpuContext, gp) + 8 * (number % 16)
}

const fn xmm_offset(register: u8) -> usize {
    offset_of!(CpuContext, fx) + offset_of!(FxState, xmm) + 16 * (register as usize % 16)
}

/// The register page of a CPU.
pub(crate) struct RegisterPage(Page);

/// A word of the register page.
macro_rules! word {
    ($name:ident) => {
        pub(crate) fn $name(&self) -> u64 {
            self.0.get(offset_of!(HvX64RegisterPage, $name))
        }
    };
}

impl RegisterPage {
    pub(crate) fn map(vtl: BorrowedFd<'_>, cpu: u16) -> Result<Self, Error> {
        Page::map(vtl, mshv_defs::register_page_offset(cpu)).map(Self::new)
    }

    pub(crate) fn new(page: Page) -> Self {
        Self(page)
    }

    word!(rip);
    word!(rflags);
    word!(cr0);
    word!(cr3);
    word!(cr4);
    word!(efer);
    word!(pending_interruption);
    word!(interrupt_state);

    /// Whether the host has filled it with VTL0's registers.
    pub(crate) fn is_valid(&self) -> bool {
        let [_, _, is_valid, vtl] = self.0.half(0).load(Relaxed).to_le_bytes();
        is_valid != 0 && vtl == 0
    }

    pub(crate) fn rsp(&self) -> u64 {
        self.0.get(page_gp_offset(Gp::Rsp as usize))
    }

    pub(crate) fn segment(&self, index: usize) -> HvX64SegmentRegister {
        let offset = offset_of!(HvX64RegisterPage, segments)
            + size_of::<HvX64SegmentRegister>() * (index % 6);
        let words = [self.0.get(offset), self.0.get(offset + 8)];
        zerocopy::transmute!(words)
    }

    pub(crate) fn set_rip(&self, value: u64) {
        self.0.set(offset_of!(HvX64RegisterPage, rip), value);
        self.mark(RegisterPageDirty::new().with_instruction_pointer(true));
    }

    pub(crate) fn set_rflags(&self, value: u64) {
        self.0.set(offset_of!(HvX64RegisterPage, rflags), value);
        self.mark(RegisterPageDirty::new().with_flags(true));
    }

    /// All of them, because their dirty bit is one for all.
    pub(crate) fn set_gp(&self, values: &[u64; 16]) {
        for (index, value) in values.iter().enumerate() {
            self.0.set(page_gp_offset(index), *value);
        }
        self.mark(RegisterPageDirty::new().with_general_purpose(true));
    }

    /// Only so that we find it ourselves: the host does not take it from here.
    pub(crate) fn remember_pending_interruption(&self, value: u64) {
        self.0
            .set(offset_of!(HvX64RegisterPage, pending_interruption), value);
    }

    /// As above.
    pub(crate) fn remember_interrupt_state(&self, value: u64) {
        self.0
            .set(offset_of!(HvX64RegisterPage, interrupt_state), value);
    }

    /// What is changed and the host has not taken over yet.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> RegisterPageDirty {
        self.dirty().load(Relaxed).into()
    }

    /// The host takes over nothing.
    pub(crate) fn forget_changes(&self) {
        self.dirty().store(0, Relaxed);
    }

    fn mark(&self, classes: RegisterPageDirty) {
        let dirty = self.dirty().load(Relaxed);
        self.dirty().store(dirty | u32::from(classes), Relaxed);
    }

    fn dirty(&self) -> &AtomicU32 {
        self.0.half(offset_of!(HvX64RegisterPage, dirty))
    }
}

const fn page_gp_offset(index: usize) -> usize {
    offset_of!(HvX64RegisterPage, gprs) + 8 * index
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::os::fd::AsFd;

    /// A file with the pages of CPU 0, as the driver has one.
    fn pages() -> (Run, RegisterPage) {
        let file = rustix::fs::memfd_create("vtl", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, mshv_defs::register_page_offset(1)).unwrap();
        let run = Run::map(file.as_fd(), 0).unwrap();
        (run, RegisterPage::map(file.as_fd(), 0).unwrap())
    }

    #[test]
    fn a_stack_pointer_does_not_become_cr2() {
        let (run, _) = pages();
        let run = run.context();
        run.set_cr2(7);

        for number in 0..16 {
            run.set_gp_at(number, 0x100);
        }

        assert_eq!(run.cr2(), 7);
        assert_eq!((run.gp(Gp::Rbx), run.gp(Gp::Rbp)), (0x100, 0x100));
    }

    #[test]
    fn sse_registers_do_not_touch_each_other() {
        let (run, _) = pages();
        let run = run.context();
        run.reset_fx();

        for register in 0..16 {
            run.set_xmm(register, u128::MAX - u128::from(register));
        }

        for register in 0..16 {
            assert_eq!(run.xmm(register), u128::MAX - u128::from(register));
        }
    }

    #[test]
    fn changes_are_marked_until_they_are_forgotten() {
        let (_, page) = pages();

        page.set_rip(0x1234);
        page.set_rflags(2);
        page.set_gp(&[5; 16]);

        let dirty = page.changes();
        assert!(dirty.instruction_pointer() && dirty.flags() && dirty.general_purpose());
        assert!(!dirty.segments() && !dirty.xmm());
        assert_eq!((page.rip(), page.rflags(), page.rsp()), (0x1234, 2, 5));
        page.forget_changes();
        assert_eq!(page.dirty().load(Relaxed), 0);
    }

    #[test]
    fn a_page_of_another_vtl_is_not_valid() {
        let (_, page) = pages();
        assert!(!page.is_valid());
        page.0
            .half(0)
            .store(u32::from_le_bytes([1, 0, 1, 0]), Relaxed);
        assert!(page.is_valid());
        page.0
            .half(0)
            .store(u32::from_le_bytes([1, 0, 1, 1]), Relaxed);
        assert!(!page.is_valid());
    }
}
