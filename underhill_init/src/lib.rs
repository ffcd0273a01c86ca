//! underhill_init
