//! AMD SVM: the structures that the processor reads, and what is decided from them.
//!
//! References are to the AMD64 Architecture Programmer's Manual, volume 2 ("APM").

pub mod check;
pub mod context;
pub mod debug;
pub mod fetch;
pub mod flags;
pub mod idle;
pub mod nmi;
pub mod paging;
pub mod permissions;
pub mod shadow;
pub mod special;
pub mod store;
pub mod vmcb;
