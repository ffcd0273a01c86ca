//! The device of a PC: its ports, and memory that it can reach.
#![expect(
    unsafe_code,
    reason = "port I/O, and memory that a device writes to behind the compiler's back"
)]

use crate::FwCfgError;
use crate::Items;
use crate::TRANSFER_DEADLINE;
use nix::libc;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::arch::asm;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::time::Instant;

/// The first of the device's ports.
const PORTS: u16 = 0x510;
/// How many it has.
const PORT_COUNT: u16 = 12;
/// Address of a control block, upper half, big-endian.
const PORT_DMA_HIGH: u16 = 0x514;
/// Lower half; a write starts the transfer.
const PORT_DMA_LOW: u16 = 0x518;
/// What the DMA registers read as.
const SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// The device failed.
const CONTROL_ERROR: u32 = 1 << 0;
/// Read from the device.
const CONTROL_READ: u32 = 1 << 1;
/// First select the item whose key is in the upper half.
const CONTROL_SELECT: u32 = 1 << 3;

const PAGE: usize = 4096;

/// Bits of an entry of `/proc/self/pagemap`: the page is in memory, and where.
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;

/// The device, with the right to use its ports.
pub(crate) struct Device {
    ports: Ports,
    control: Page,
    data: Page,
}

impl Device {
    /// Finds the device.
    pub(crate) fn open() -> Result<Self, FwCfgError> {
        let ports = Ports::acquire()?;
        if ports.signature() != SIGNATURE {
            return Err(FwCfgError::NoDevice);
        }
        let pagemap = File::open("/proc/self/pagemap")
            .map_err(|source| system("/proc/self/pagemap cannot be opened", source))?;
        Ok(Self {
            ports,
            control: Page::new(pagemap.try_clone().map_err(|e| system("pagemap", e))?)?,
            data: Page::new(pagemap)?,
        })
    }

    fn transfer(&mut self, key: u16, mut select: u32, buffer: &mut [u8]) -> Result<(), FwCfgError> {
        for piece in buffer.chunks_mut(PAGE) {
            self.transfer_piece(key, select, piece)?;
            select = 0;
        }
        Ok(())
    }

    /// One transfer of at most a page.
    fn transfer_piece(
        &mut self,
        key: u16,
        select: u32,
        piece: &mut [u8],
    ) -> Result<(), FwCfgError> {
        let [control, data] = [self.control.address()?, self.data.address()?];
        let mut block = [0; 16];
        block[..4].copy_from_slice(&(CONTROL_READ | select).to_be_bytes());
        // A piece has at most 4096 bytes.
        block[4..8].copy_from_slice(&(piece.len() as u32).to_be_bytes());
        block[8..].copy_from_slice(&data.to_be_bytes());
        self.control.write(&block);
        self.ports.start(control);

        let started = Instant::now();
        let state = loop {
            let state = self.control.first_word();
            if state == 0 || state & CONTROL_ERROR != 0 {
                break state;
            }
            if started.elapsed() > TRANSFER_DEADLINE {
                // The device may still write: its memory is never used again.
                self.control.leak();
                self.data.leak();
                return Err(FwCfgError::Timeout { key });
            }
        };
        // Locked pages stay in memory, but only the absence of a reason keeps the kernel
        // from moving one.
        if [self.control.address()?, self.data.address()?] != [control, data] {
            return Err(FwCfgError::Moved);
        }
        if state != 0 {
            return Err(FwCfgError::Refused {
                key,
                length: piece.len(),
            });
        }
        self.data.read(piece);
        Ok(())
    }
}

impl Items for Device {
    fn select(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError> {
        self.transfer(key, CONTROL_SELECT | u32::from(key) << 16, buffer)
    }

    fn next(&mut self, key: u16, buffer: &mut [u8]) -> Result<(), FwCfgError> {
        self.transfer(key, 0, buffer)
    }
}

/// The right of this thread to use the device's ports; given back when dropped. It stays
/// with the thread that acquired it.
struct Ports(std::marker::PhantomData<*const ()>);

impl Ports {
    fn acquire() -> Result<Self, FwCfgError> {
        permit(true).map_err(|source| system("its ports are not permitted", source))?;
        Ok(Self(std::marker::PhantomData))
    }

    fn signature(&self) -> [u8; 8] {
        let (high, low) = (read_port(PORT_DMA_HIGH), read_port(PORT_DMA_LOW));
        let mut signature = [0; 8];
        signature[..4].copy_from_slice(&high.to_le_bytes());
        signature[4..].copy_from_slice(&low.to_le_bytes());
        signature
    }

    /// Makes the device read the control block at `address` and do what it says.
    fn start(&self, address: u64) {
        write_port(PORT_DMA_HIGH, ((address >> 32) as u32).to_be());
        write_port(PORT_DMA_LOW, (address as u32).to_be());
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        // Taking a right away cannot fail.
        let _ = permit(false);
    }
}

fn permit(on: bool) -> io::Result<()> {
    // SAFETY: the call only changes which ports this thread may use.
    let result = unsafe {
        libc::ioperm(
            libc::c_ulong::from(PORTS),
            libc::c_ulong::from(PORT_COUNT),
            libc::c_int::from(on),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read_port(port: u16) -> u32 {
    let value;
    // SAFETY: `Ports` proves that the port is permitted to this thread; reading it changes
    // nothing in memory.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    }
    value
}

fn write_port(port: u16, value: u32) {
    // SAFETY: `Ports` proves that the port is permitted to this thread. The device writes
    // to the pages that a control block names, which are those of `Page`; not `nomem`, so
    // that what was written before is in memory.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// A page of memory that stays where it is. It is only accessed as volatile memory, never
/// through a reference, because the device may write to it at any time.
struct Page {
    memory: NonNull<u8>,
    pagemap: File,
    leaked: bool,
}

impl Page {
    fn new(pagemap: File) -> Result<Self, FwCfgError> {
        let size = NonZeroUsize::new(PAGE).expect("a page has a size");
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no
        // existing memory.
        let memory = unsafe {
            nix::sys::mman::mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE,
            )
        }
        .map_err(|source| system("no memory", source.into()))?;
        let page = Self {
            memory: memory.cast(),
            pagemap,
            leaked: false,
        };
        // SAFETY: the page is mapped, and locking changes none of its contents.
        unsafe { nix::sys::mman::mlock(memory, PAGE) }
            .map_err(|source| system("memory cannot be locked", source.into()))?;
        // Written once, so that it is a page of its own and not the shared page of zeros.
        page.write(&[0; 16]);
        Ok(page)
    }

    /// Where the device finds it.
    fn address(&self) -> Result<u64, FwCfgError> {
        let index = self.memory.as_ptr() as u64 / PAGE as u64;
        let mut entry = [0; 8];
        self.pagemap
            .read_exact_at(&mut entry, index * 8)
            .map_err(|source| system("/proc/self/pagemap cannot be read", source))?;
        let entry = u64::from_ne_bytes(entry);
        let frame = entry & PAGEMAP_FRAME;
        // Without the right to see it the kernel shows 0.
        if entry & PAGEMAP_PRESENT == 0 || frame == 0 {
            return Err(FwCfgError::NoPhysicalAddress);
        }
        Ok(frame * PAGE as u64)
    }

    fn write(&self, bytes: &[u8; 16]) {
        // SAFETY: the page is mapped and larger than 16 bytes, and aligned for bytes.
        unsafe { self.memory.cast::<[u8; 16]>().write_volatile(*bytes) }
    }

    /// The first four bytes, big-endian.
    fn first_word(&self) -> u32 {
        // SAFETY: the page is mapped and page-aligned.
        u32::from_be(unsafe { self.memory.cast::<u32>().read_volatile() })
    }

    /// Fills `buffer`, which is at most a page, from the start of the page.
    fn read(&self, buffer: &mut [u8]) {
        for (index, byte) in buffer.iter_mut().enumerate().take(PAGE) {
            // SAFETY: `index` is below the size of the page, which is mapped.
            *byte = unsafe { self.memory.add(index).read_volatile() };
        }
    }

    /// Keeps the page mapped until the process ends.
    fn leak(&mut self) {
        self.leaked = true;
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: the mapping is this page's own, and nothing refers to it any more.
            // Unmapping what is mapped cannot fail.
            let _ = unsafe { nix::sys::mman::munmap(self.memory.cast(), PAGE) };
        }
    }
}

fn system(step: &'static str, source: io::Error) -> FwCfgError {
    FwCfgError::System { step, source }
}
