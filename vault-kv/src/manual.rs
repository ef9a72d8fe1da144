//! The manual.

#[doc = include_str!("manual/storage.md")]
pub mod storage {}
