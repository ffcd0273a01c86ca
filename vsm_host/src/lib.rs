//! vsm_host
