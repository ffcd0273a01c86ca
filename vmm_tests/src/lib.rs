//! vmm_tests
