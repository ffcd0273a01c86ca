//! string_page_buf
