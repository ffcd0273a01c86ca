//! The host's configuration file and the options of the command line, as the paravisor
//! reads them: any bytes give a typed error of one line or a configuration in which every
//! value is within its range, never a panic.
//!
//! The first byte says whom to trust; what stands before the first zero byte after it is
//! the value of an option, the rest is the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use openhcl_config::Config;
use openhcl_config::OPTIONS;
use openhcl_config::Sources;
use std::time::Duration;

/// No message is longer, whatever it quotes.
const MESSAGE_MAX: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let (option, file) = match rest.iter().position(|byte| *byte == 0) {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (&[][..], rest),
    };
    let name = OPTIONS[usize::from(flags >> 4) % OPTIONS.len()].name;
    let variables = || {
        let value = String::from_utf8_lossy(option).into_owned();
        std::iter::once((name.to_owned(), value))
    };
    let sources = Sources {
        file: (flags & 1 == 0).then_some(file),
        host_is_trusted: flags & 2 == 0,
        development_image: flags & 4 == 0,
    };
    match Config::load(sources, variables()) {
        Err(error) => {
            let message = error.to_string();
            assert!(
                !message.contains('\n') && message.len() < MESSAGE_MAX,
                "{message}"
            );
        }
        Ok(loaded) => {
            let config = &loaded.config;
            assert!(sources.development_image || !*config.test_hooks);
            assert!(config.shutdown_deadline.value < Duration::from_secs(10));
            assert!((1..=1024).contains(&config.diag.max_connections.value));
            let mut rows = 0;
            config.for_each(|path, value, origin| {
                assert!(!path.is_empty() && !format!("{value}{origin}").contains('\n'));
                rows += 1;
            });
            assert_eq!(rows, 19);
            // The same sources mean the same.
            assert_eq!(Config::load(sources, variables()).as_ref(), Ok(&loaded));
        }
    }
});
