//! The state of a local APIC and what happens inside: requests, priorities, ends, errors.

use crate::access::Effect;
use crate::shared::{Address, Shared, Taken, Word};
use crate::timer::{Rates, Timer};
use crate::vectors::VectorSet;
use x86_defs::apic::{
    APIC_DEFAULT_BASE, ApicBase, ApicErrors, DeliveryMode, FIRST_VECTOR, InterruptCommand,
    LocalVector, SpuriousVector, TimerMode,
};

/// What an APIC is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Its id. In xAPIC mode only ids below 255 can be addressed.
    pub apic_id: u32,
    /// It belongs to the bootstrap processor, which does not wait for a start-up.
    pub bsp: bool,
    /// It has x2APIC mode.
    pub x2apic: bool,
    /// Its timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Rates of its timer.
    pub rates: Rates,
}

/// Local sources of interrupts, in the order of their registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Timer.
    Timer,
    /// Thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// Pin LINT0.
    Lint0,
    /// Pin LINT1.
    Lint1,
    /// APIC errors.
    Error,
}

impl Source {
    pub(crate) const ALL: [Self; 6] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];

    /// Bits of its register that can be written (11.5.1 figure 11-8).
    pub(crate) fn writable(self, tsc_deadline: bool) -> u32 {
        match self {
            Self::Timer if tsc_deadline => 0x7_00ff,
            Self::Timer => 0x3_00ff,
            Self::Thermal | Self::Performance => 0x1_07ff,
            Self::Lint0 | Self::Lint1 => 0x1_a7ff,
            Self::Error => 0x1_00ff,
        }
    }
}

/// Whether the VP executes (SDM volume 3A, 9.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Startup {
    /// It does.
    Running,
    /// It waits for a start-up message after INIT.
    WaitForStartup,
}

/// What [`LocalApic::collect`] found that concerns the whole VP, in this order.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Put the VP's registers into the state after INIT.
    pub init: bool,
    /// Let it run in real mode from this page (CS selector `page << 8`, IP 0).
    pub start: Option<u8>,
}

/// A local APIC, for the CPU of its VP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalApic {
    pub(crate) config: Config,
    pub(crate) base: ApicBase,
    pub(crate) tpr: u8,
    pub(crate) logical: u8,
    pub(crate) format: u8,
    pub(crate) svr: SpuriousVector,
    pub(crate) irr: VectorSet,
    pub(crate) isr: VectorSet,
    pub(crate) tmr: VectorSet,
    pub(crate) lvt: [LocalVector; 6],
    /// Errors that the register shows, and those since it was written.
    pub(crate) errors: ApicErrors,
    pub(crate) new_errors: ApicErrors,
    pub(crate) icr: InterruptCommand,
    pub(crate) timer: Timer,
    pub(crate) startup: Startup,
    pub(crate) nmi: bool,
    pub(crate) extint: Option<u8>,
    pub(crate) auto_eoi: VectorSet,
    pub(crate) eoi_assist: crate::assist::State,
}

impl LocalApic {
    /// An APIC after power-up (11.4.7.1). All but the bootstrap processor wait for their
    /// start-up.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            base: ApicBase::new()
                .with_bsp(config.bsp)
                .with_enabled(true)
                .with_page(APIC_DEFAULT_BASE >> 12),
            tpr: 0,
            logical: 0,
            format: 0xf,
            svr: SpuriousVector::new().with_vector(0xff),
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            lvt: [LocalVector::new().with_masked(true); 6],
            errors: ApicErrors::new(),
            new_errors: ApicErrors::new(),
            icr: InterruptCommand::new(),
            timer: Timer::new(config.rates),
            startup: if config.bsp {
                Startup::Running
            } else {
                Startup::WaitForStartup
            },
            nmi: false,
            extint: None,
            auto_eoi: VectorSet::EMPTY,
            eoi_assist: crate::assist::State::default(),
        }
    }

    /// Power-up: all is as after [`Self::new`].
    pub fn reset(&mut self) {
        *self = Self::new(self.config);
    }

    /// What it is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the VP executes.
    pub fn startup(&self) -> Startup {
        self.startup
    }

    /// Starts or stops the VP in another way than by a message (TLFS: the activity state
    /// register, HvCallStartVirtualProcessor).
    pub fn set_startup(&mut self, startup: Startup) {
        self.startup = startup;
    }

    /// Vectors whose interrupts end themselves: those of the SynIC's sources with auto-EOI.
    pub fn set_auto_eoi(&mut self, vectors: VectorSet) {
        self.auto_eoi = vectors;
    }

    /// What is to be published of it.
    pub fn address(&self) -> Address {
        Address::new()
            .with_id(self.config.apic_id)
            .with_logical(self.logical)
            .with_format(self.format)
            .with_enabled(self.base.enabled())
            .with_x2apic(self.base.x2apic())
            .with_accepts(self.accepts())
            .with_priority(self.tpr)
    }

    /// Whether it takes fixed interrupts (11.4.7.2: those that it has taken stay).
    pub(crate) fn accepts(&self) -> bool {
        self.base.enabled() && self.svr.enabled()
    }

    /// Takes over what others have posted.
    pub fn collect<W: Word>(&mut self, shared: &Shared<W>) -> Collected {
        let Taken {
            edge,
            level,
            requests,
        } = shared.take();
        if requests.init() {
            self.init();
        }
        self.request_all(edge, false);
        self.request_all(level, true);
        let mut collected = Collected {
            init: requests.init(),
            start: None,
        };
        if requests.startup() && self.startup == Startup::WaitForStartup {
            self.startup = Startup::Running;
            collected.start = Some(requests.startup_page());
        }
        // A VP that has not started drops these, so that it does not begin with one.
        let running = self.startup == Startup::Running;
        self.nmi |= requests.nmi() && running;
        if requests.extint() && running {
            self.extint = Some(requests.extint_vector());
        }
        if requests.lint0() {
            self.raise(Source::Lint0, requests.extint_vector());
        }
        if requests.lint1() {
            self.raise(Source::Lint1, requests.extint_vector());
        }
        collected
    }

    /// A local source other than a pin has something to say.
    pub fn signal(&mut self, source: Source) {
        self.raise(source, 0);
        if source == Source::Performance {
            // 11.5.1: it masks itself.
            let entry = &mut self.lvt[source as usize];
            entry.set_masked(true);
        }
    }

    /// INIT (11.4.7.3; the mode stays, 11.12.5.1).
    fn init(&mut self) {
        let (base, auto_eoi) = (self.base, self.auto_eoi);
        self.clear();
        self.base = base;
        self.auto_eoi = auto_eoi;
    }

    /// All registers as after power-up, but the TSC goes on.
    pub(crate) fn clear(&mut self) {
        let mut timer = self.timer.clone();
        timer.reset();
        let eoi_assist = self.eoi_assist.forgotten();
        *self = Self::new(self.config);
        self.timer = timer;
        self.eoi_assist = eoi_assist;
    }

    fn request_all(&mut self, vectors: VectorSet, level: bool) {
        for vector in vectors.iter() {
            self.request(vector, level);
        }
    }

    /// Accepts a fixed interrupt (11.8.4).
    pub(crate) fn request(&mut self, vector: u8, level: bool) {
        if !self.accepts() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.error(ApicErrors::new().with_receive_illegal_vector(true));
            return;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
    }

    /// A source raises what its local vector says. The trigger mode of a pin has no
    /// effect: pins are pulses.
    pub(crate) fn raise(&mut self, source: Source, extint_vector: u8) {
        let entry = self.lvt[source as usize];
        if entry.masked() || !self.base.enabled() {
            return;
        }
        let mode = match source {
            Source::Timer | Source::Error => DeliveryMode::FIXED,
            _ => DeliveryMode(entry.mode()),
        };
        match mode {
            DeliveryMode::FIXED => self.request(entry.vector(), false),
            DeliveryMode::NMI => self.nmi |= self.startup == Startup::Running,
            DeliveryMode::EXTINT if matches!(source, Source::Lint0 | Source::Lint1) => {
                self.extint = Some(extint_vector);
            }
            // SMI is not supported, INIT by a pin neither.
            _ => {}
        }
    }

    /// Notes errors; the first ones after a write of the register interrupt (11.5.3).
    pub(crate) fn error(&mut self, errors: ApicErrors) {
        let first = self.new_errors == ApicErrors::new();
        self.new_errors = (self.new_errors.into_bits() | errors.into_bits()).into();
        if first {
            self.raise(Source::Error, 0);
        }
    }

    /// End of the highest interrupt in service (11.8.5).
    pub(crate) fn end_of_interrupt(&mut self) -> Effect {
        self.eoi_assist.ended();
        let level = self.isr.highest().and_then(|vector| {
            self.isr.remove(vector);
            self.tmr.contains(vector).then_some(vector)
        });
        Effect::EndOfInterrupt { level }
    }

    /// Priority of the processor (11.8.3.1): a task priority or the class of what is in
    /// service.
    pub(crate) fn ppr(&self) -> u8 {
        let service = self.isr.highest().map_or(0, |vector| vector & 0xf0);
        if self.tpr & 0xf0 >= service {
            self.tpr
        } else {
            service
        }
    }

    /// What MOV from CR8 shows (11.8.6).
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Takes over CR8, if the guest could write it without an exit.
    pub fn sync_cr8(&mut self, cr8: u8) {
        if self.cr8() != cr8 & 0xf {
            self.tpr = cr8 << 4;
        }
    }

    /// The guest's TSC is the owner's clock plus this.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.timer.set_tsc_offset(offset);
    }

    /// Raises the timer's interrupt if it has expired at tick `now`.
    pub fn poll_timer(&mut self, now: u64) {
        if self.timer.poll(now) {
            self.raise(Source::Timer, 0);
        }
    }

    /// Tick at which [`Self::poll_timer`] will have something to do; a past one means now.
    /// None as long as nothing is programmed, or its interrupt is masked and nobody would
    /// notice (the count is right at any time).
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let masked = self.lvt[Source::Timer as usize].masked();
        let noticed = !masked || self.timer_mode() == TimerMode::TSC_DEADLINE;
        self.timer.next(now).filter(|_| noticed)
    }

    pub(crate) fn timer_mode(&self) -> TimerMode {
        TimerMode(self.lvt[Source::Timer as usize].timer_mode())
    }
}
