//! The library from outside: images are built from small hand-made programs and read
//! back.

mod build;
mod cli;
mod compare;
mod elf;
mod guest;
mod hostile;
mod linux_direct;
mod manifest;
mod synthetic;
