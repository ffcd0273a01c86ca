//! page_table
