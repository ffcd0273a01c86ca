//! Machines of many shapes boot, see what they were given, and end in order.
